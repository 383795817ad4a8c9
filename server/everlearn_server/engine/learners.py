"""Which learner a declaration means."""

from __future__ import annotations

from everlearn.learners import ClosedForm, Learner
from everlearn.spec.model import ModelSpec
from everlearn_server.engine.trunks import LiveTrunk


def make_learner(spec: ModelSpec, trunk: LiveTrunk, data: bytes | None) -> Learner:
    """The learner of a completed declaration on its trunk, as it was when it gave `data`; empty without.

    Raises DataLossError for bytes that do not belong to it.
    """
    return ClosedForm.of(spec, trunk.scale, data)
