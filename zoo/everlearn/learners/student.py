"""A student beside a model: a small network that learns to give the large one's features, so that devices run it alone.

    teacher: pixels -> frozen trunk -> features -> head (exact, from sums)          stays as it is, and serves
    student: pixels -> small network -> map -> nearly the same features -> the same head               ships

Because it imitates features, whatever the head learns serves the student too, labels that come later included. It lives
in a process of its own; when that dies, the next one goes on from the last checkpoint, and what came since is missed.

Axes: B samples in a batch, C classes, n values of an image, s features of the student, d features of the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from everlearn.backbones.tail import Tail
from everlearn.errors import InputError, UnavailableError
from everlearn.learners import _frames
from everlearn.learners._frames import Frame
from everlearn.learners.trainer import TrainerSettings, begun, error_of, tail_parts
from everlearn.runtime.process import BackgroundModule
from everlearn.spec.model import DistillTo
from everlearn.values import FeaturesBd, LinearHead

MODULE: Final = "everlearn.learners.gradient.imitation_child"


@dataclass(frozen=True, kw_only=True)
class Step:
    """What became of a batch."""

    predicted_Bd: FeaturesBd
    """The teacher's features as the student gave them before it learned the batch: the honest test."""
    loss: float
    """About the share of the teacher's variance that the student misses; 1 is what its mean would miss."""
    steps: int
    """Gradient steps so far."""
    samples: int
    """Learned so far."""


@dataclass(frozen=True, kw_only=True)
class StudentWeights:
    """The student of one moment."""

    tail: Tail
    """All of the small network."""
    weight_sd: npt.NDArray[np.float32]
    """Its features to the teacher's."""
    bias_d: npt.NDArray[np.float32]
    steps: int
    samples: int

    def under(self, head: LinearHead) -> LinearHead:
        """The head of the teacher over the student's own features: the map is folded into it.

        (z P + p) W + b = z (P W) + (p W + b). Raises InputError for a head that scales features first.
        """
        if head.normalise:
            raise InputError("the head scales features to unit length, so no map folds into it", field="head")
        weight_dC = head.weight_dC.astype(np.float64)
        return replace(
            head,
            weight_dC=(self.weight_sd.astype(np.float64) @ weight_dC).astype(np.float32),
            bias_C=(self.bias_d.astype(np.float64) @ weight_dC + head.bias_C).astype(np.float32),
        )


class Student:
    """Talks to the process; begins it with the first question. One thread at a time."""

    def __init__(
        self,
        tail: Tail,
        dim: int,
        declared: DistillTo,
        *,
        data: bytes | None = None,
        settings: TrainerSettings = TrainerSettings(),  # noqa: B008  # frozen
    ) -> None:
        """`tail`: the student as it comes. `dim`: d. `data`: a checkpoint to go on from."""
        self._tail = tail
        self._dim = dim
        self._declared = declared
        self._checkpoint = data
        self._settings = settings
        self._child: BackgroundModule | None = None

    def learn(self, pixels_Bn: FeaturesBd, features_Bd: FeaturesBd, *, steps: int | None = None) -> Step:
        """Steps towards the teacher's features of these pixels, by default as many as declared.

        Raises UnavailableError where the process has ended (the next question begins another), DataLossError for a
        checkpoint of another student, PreconditionError (reason NOT_FINITE) for steps that would lose the weights.
        """
        parts = {"pixels": _bytes(pixels_Bn), "features": _bytes(features_Bd)}
        answer = self._ask(Frame(told={"ask": "learn", "steps": steps}, parts=parts))
        told = answer.told
        predicted_Bd = np.frombuffer(answer.parts["predicted"], "<f4").reshape(-1, self._dim)
        return Step(predicted_Bd=predicted_Bd, loss=told["loss"], steps=told["steps"], samples=told["samples"])

    def weights(self) -> StudentWeights:
        """What would ship now. Raises as `learn`."""
        answer = self._ask(Frame(told={"ask": "weights"}))
        return StudentWeights(
            tail=replace(self._tail, weights=answer.parts["tail"]),
            weight_sd=np.frombuffer(answer.parts["weight"], "<f4").reshape(-1, self._dim),
            bias_d=np.frombuffer(answer.parts["bias"], "<f4"),
            steps=answer.told["steps"],
            samples=answer.told["samples"],
        )

    def to_bytes(self) -> bytes:
        """A checkpoint, from which the next process goes on too. Raises as `learn`."""
        self._checkpoint = self._ask(Frame(told={"ask": "state"})).parts["state"]
        return self._checkpoint

    def close(self) -> None:
        """Ends the process."""
        if self._child is not None:
            self._child.close()
            self._child = None

    # -- inside -------------------------------------------------------------------------------------------------

    def _ask(self, question: Frame) -> Frame:
        try:
            if self._child is None:
                self._child = begun(self._settings, MODULE)
                self._once(self._opening())
            return self._once(question)
        except EOFError as error:
            self.close()
            raise UnavailableError(f"the student's process ended with: {error}") from error

    def _once(self, question: Frame) -> Frame:
        assert self._child is not None
        answer = self._child.ask(lambda stream: _frames.write(stream, question), _frames.read)
        if "error" in answer.told:
            if question.told["ask"] == "open":
                self.close()
            raise error_of(answer.told["error"])
        return answer

    def _opening(self) -> Frame:
        told: dict[str, Any] = {
            "ask": "open",
            "declared": self._declared.model_dump(mode="json", exclude_none=True),
            "dim": self._dim,
            "device": self._settings.device,
            "threads": self._settings.threads,
        }
        parts = tail_parts(self._tail)
        if self._checkpoint is not None:
            parts["state"] = self._checkpoint
        return Frame(told=told, parts=parts)


def _bytes(values_Bn: FeaturesBd) -> bytes:
    return np.ascontiguousarray(values_Bn, "<f4").tobytes()
