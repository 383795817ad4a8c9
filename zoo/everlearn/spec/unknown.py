"""What a model answers to a sample that is unlike all that it has learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from everlearn.spec.recipe import filled
from everlearn.spec.strict import Strict

if TYPE_CHECKING:
    from everlearn.spec.model import ModelSpec

_KINDS: dict[str, dict[str, object]] = {"answer": {}, "abstain": {"false_alarms": 0.01}}


class Unknown(Strict):
    """Whether a sample unlike all learned classes gets the best of them, or none. `unknown: abstain` is short for
    `unknown: {kind: abstain}`."""

    kind: Literal["answer", "abstain"] = "answer"
    """`answer`: the best of the learned classes, always. `abstain`: each answer tells how unlike all classes the sample
    is (`novelty`), and beyond 1 it has no label; in the exported file too."""
    false_alarms: Annotated[float, Field(ge=0.0001, le=0.5)] | None = None
    """abstain: share of samples of learned classes that may be taken for unknown; by default 0.01. It is worked out
    from the sums alone; up to three times as many were measured, and more of a class of few samples."""

    @model_validator(mode="before")
    @classmethod
    def _of_its_kind(cls, data: Any) -> Any:
        return filled({"kind": data} if isinstance(data, str) else data, "kind", _KINDS, default="answer")

    @property
    def level(self) -> float | None:
        """Declared false alarms; None where every sample is answered."""
        return self.false_alarms if self.kind == "abstain" else None


def contradiction(spec: ModelSpec) -> str | None:
    """Why samples cannot be compared with what was learned, in words that begin with the field to change; None where
    they can."""
    if spec.unknown.kind == "answer":
        return None
    abstain = "unknown abstain compares a sample with the sums of each class, and"
    if spec.task != "classification":
        return f"{abstain} task {spec.task} has no classes of one label a sample; leave unknown out"
    if spec.memory.kind == "none" or spec.head.kind in ("linear", "cosine"):
        return (
            f"{abstain} head {spec.head.kind} learns by gradient steps and keeps none; write head.kind: "
            "balanced_ridge, or leave unknown out"
        )
    if spec.privacy.tier == "dp":
        return f"{abstain} with privacy.tier dp those are hidden in noise; leave unknown out"
    if spec.distill_to is not None:
        return f"{abstain} a student's features are imitations, off by more than samples are; leave one of them out"
    return None


def told(declared: Unknown) -> str:
    """What becomes of samples that are unlike all classes, in words."""
    return (
        "unknown: a sample that is unlike all learned classes gets no label (novelty beyond 1), and so do about "
        f"{100 * (declared.level or 0.0):g} % of those that are of a learned class"
    )
