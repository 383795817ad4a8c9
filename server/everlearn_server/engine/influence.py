"""How far a model's head would move without each client, from the sums that are kept of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from everlearn.errors import PreconditionError
from everlearn.influence import head_change
from everlearn.learners.base import Learned
from everlearn.values import FeatureScale, LinearHead
from everlearn_server.engine.clients import ClientFigures
from everlearn_server.engine.integration import Integration
from everlearn_server.engine.live_model import LiveModel


async def weighed(model: LiveModel, figures: Sequence[ClientFigures]) -> list[ClientFigures]:
    """With how far the head would move without each, from the sums that are kept of it.

    Raises PreconditionError (NO_CLIENT_SUMS), DataLossError where such sums are damaged.
    """
    scale, loop = model.ready_trunk.scale, asyncio.get_running_loop()
    found, whole = [], None
    for each in figures:
        if not each.samples:
            found.append(replace(each, head_change=0.0))
            continue
        changes, learned, left = await model.writer.between_commits(partial(_without, client=each.client))
        if whole is None or whole[0] != changes:
            whole = changes, (await loop.run_in_executor(model.solvers, learned.solve)).head
        change = await loop.run_in_executor(model.solvers, _change, learned, left, scale, whole[1])
        found.append(replace(each, head_change=change))
    return found


def _without(work: Integration, client: str) -> tuple[int, Learned, Learned]:
    """Between two commits: the number of changes so far, what has been learned, and that without a client."""
    if work.parts is None:
        raise PreconditionError(
            "how far the head would move without a client is worked out from the client's own sums, and this model "
            "does not keep them (privacy.client_sums); ask for the other figures alone",
            reason="NO_CLIENT_SUMS",
        )
    left = work.learner.alone(work.learner.to_bytes())
    left.subtract(work.parts.of(client, work.learner))
    return work.changes, work.learner.learned(), left.learned()


def _change(learned: Learned, left: Learned, scale: FeatureScale, head: LinearHead) -> float | None:
    if not left.samples:
        return None
    return head_change(learned, scale, head, left.solve(hint=head.regularization).head)
