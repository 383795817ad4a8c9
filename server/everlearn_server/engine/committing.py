"""What a commit takes of a writer: all that is staged, as one value."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from everlearn_server.engine.budget import Budget
from everlearn_server.engine.integration import Integration
from everlearn_server.store.ledger import Ledger
from everlearn_server.store.rows import Commit, Erasing, Receipt, StreamRow


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Whose commit it is."""

    model: str
    uid: str
    lineage: int
    timeline: str


def staged(
    work: Integration,
    owner: Owner,
    memory: bytes,
    prequential_json: str,
    *,
    budget: Budget | None = None,
    erasing: Erasing | None = None,
) -> Commit:
    """All that is staged, and its rejections taken out of `work`; under the writer's lock."""
    rejects, work.rejects = work.rejects, []
    return Commit(
        model=owner.model,
        uid=owner.uid,
        lineage=owner.lineage,
        timeline=owner.timeline,
        memory=memory,
        sample_count=work.learner.samples,
        streams={client: tail.row() for client, tail in work.tails.items() if tail.integrated > tail.durable},
        rejects=tuple(rejects),
        spends=budget.charge() if budget is not None else (),
        prequential_json=prequential_json,
        erasing=erasing,
        keeping=work.keeping,
    )


def client_sums_of(work: Integration, commit: Commit) -> Callable[[], Commit] | None:
    """Under the writer's lock: what makes the commit one that brings each changed client's own sums as well; None where
    they are not kept. That takes longer than the lock should be held; an erasure holds it."""
    parts, learner = work.parts, work.learner
    if parts is None:
        return None
    staged, forgotten = parts.take(), commit.erasing.label if commit.erasing is not None else ""

    def completed() -> Commit:
        rows = parts.rows(staged, learner, forgotten=forgotten)
        if forgotten:
            for row in rows:
                work.tails[row.client].samples = row.sample_count
        return replace(commit, client_sums=rows)

    return completed


async def written(ledger: Ledger, executor: Executor, commit: Commit, complete: Callable[[], Commit] | None) -> Receipt:
    """Commits, after `complete` has; the receipt's time is of both. Raises as `Ledger.commit`."""
    if complete is None:
        return await ledger.commit(commit)

    def timed() -> tuple[Commit, float]:
        begun_s = time.monotonic()
        return complete(), time.monotonic() - begun_s

    commit, prepared_s = await asyncio.get_running_loop().run_in_executor(executor, timed)
    receipt = await ledger.commit(commit)
    return replace(receipt, busy_s=receipt.busy_s + prepared_s)


def in_turn(commit: Commit, commit_id: int) -> list[tuple[str, StreamRow]]:
    """A commit's streams, each time beginning with another one: who is told first is first with its next batch."""
    rows = list(commit.streams.items())
    first = commit_id % max(len(rows), 1)
    return rows[first:] + rows[:first]
