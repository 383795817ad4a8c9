"""Takes a client out of what was learned by gradient steps: back to before it came, then what is kept of others again.

Which earlier moments are there is the store's (`store.moments`): at most `retention.checkpoints`, each from before some
client's first contribution. Where none is from before this one's, the pretrained weights are what it goes back to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from everlearn.errors import DataLossError, InvalidError
from everlearn.learners.rewinding import moment_of, samples_of
from everlearn.spec.composition import learns_again
from everlearn.spec.model import ModelSpec
from everlearn_server.store.moments import Moments
from everlearn_server.store.rows import Keeping

if TYPE_CHECKING:
    from everlearn_server.engine.integration import Integration

_logger = structlog.get_logger(__name__)
_NOT_KEPT: Final = "no state from before it contributed is kept: it was the first, or that one was let go of"
_DAMAGED: Final = "the state from before it contributed is damaged"


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a model goes back to."""

    commit_id: int = 0
    """0: the pretrained weights."""
    samples: int = 0
    """Learned by then."""
    because: str = ""
    """Why it is the pretrained weights."""
    moment: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Rewound:
    """What was done, or would be."""

    commit_id: int
    """That was gone back to; 0: to the pretrained weights."""
    because: str = ""
    """Why to those."""
    samples_before: int
    """In the model."""
    samples_after: int = 0
    """Those of others that were not kept are gone, too."""
    learned_again: int = 0
    """Samples of others."""


def keeping_of(spec: ModelSpec) -> Keeping | None:
    """How many earlier moments of a model are kept; None where nothing could go back to one."""
    if not learns_again(spec) or not spec.retention.checkpoints:
        return None
    return Keeping(most=spec.retention.checkpoints, made_of=moment_of)


def target_of(moments: Moments, model: str, client: str) -> Target:
    """The last kept moment before a client's first contribution. Blocks; not on the event loop."""
    found = moments.before(model, client)
    if found is None:
        return Target(because=_NOT_KEPT)
    try:
        moment = moment_of(found.data)
        return Target(commit_id=found.commit_id, samples=samples_of(moment), moment=moment)
    except DataLossError as error:
        _logger.error("an earlier moment cannot be read", model=model, commit=found.commit_id, error=error.message)
        return Target(because=_DAMAGED)


def rewind(work: Integration, client: str, target: Target) -> Rewound:
    """Between two batches: goes back and learns again; what is known of the client beside that goes, too."""
    learner = work.learner
    before = learner.samples
    try:
        learner.forget_client(client, before=target.moment)
    except (InvalidError, DataLossError) as error:
        if target.moment is None:
            raise
        _logger.error("an earlier moment does not belong to the present one", commit=target.commit_id, error=str(error))
        target = Target(because=_DAMAGED)
        learner.forget_client(client)
    return Rewound(
        commit_id=target.commit_id,
        because=target.because,
        samples_before=before,
        samples_after=learner.samples,
        learned_again=learner.samples - target.samples,
    )
