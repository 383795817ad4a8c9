"""Which learner a declaration means."""

from __future__ import annotations

from everlearn.learners import ClosedForm, Learner, TargetLearner
from everlearn.learners.first_session import FirstSession
from everlearn.learners.trainer import Trainer, TrainerSettings, fit_of
from everlearn.spec.model import ModelSpec
from everlearn_server.engine.trunks import LiveTrunk


def make_learner(spec: ModelSpec, trunk: LiveTrunk, data: bytes | None, settings: TrainerSettings) -> Learner:
    """The learner of a completed declaration on its trunk, as it was when it gave `data`; empty without.

    Blocks: a trainer's process takes seconds to begin. Raises DataLossError for bytes that do not belong to it,
    UnavailableError where no process can be begun.
    """
    if spec.by_gradient:
        return Trainer(spec, trunk.scale, tail=trunk.tail, data=data, settings=settings)
    if spec.task != "classification":
        return TargetLearner.of(spec, trunk.scale, data)
    if trunk.tail is not None:
        return FirstSession(spec, trunk.scale, trunk.tail, fit_of(spec, trunk.scale, settings), data)
    return ClosedForm.of(spec, trunk.scale, data)
