"""A gradient learner, lived in by another process: torch, its memory and its crashes stay out of the server's.

    integrate -> pipe -> GradientLearner.learn           (a child of its own for each model, niced)
    to_bytes  -> pipe -> the whole state                 = a checkpoint; batches since then are kept in RAM here

When the child dies, the next one gets the checkpoint and the batches since, and is to the bit where the first one was:
every step is a function of state and batch alone. So nothing that was integrated is lost, as with the sums.

Axes: B samples in a batch, C classes, d features or values at the cut.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from everlearn import errors
from everlearn.backbones.tail import Tail
from everlearn.backbones.tail_manifest import dump_tail
from everlearn.errors import PreconditionError, UnavailableError
from everlearn.learners import _frames
from everlearn.learners._frames import Frame
from everlearn.learners.base import Learned, Learner, Solution
from everlearn.memories.base import Origin
from everlearn.runtime.process import BackgroundModule
from everlearn.spec.model import ModelSpec
from everlearn.truth import Truth
from everlearn.values import FeaturesBd, FeatureScale, LinearHead, QuantisedBd

MODULE: Final = "everlearn.learners.gradient.child"
_LIVES = 3
"""Children that one question may cost: a batch that kills each of them is refused."""


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Where gradient steps are made."""

    device: str = "cpu"
    """torch's name of it."""
    visible_devices: str = ""
    """CUDA_VISIBLE_DEVICES of the children; empty for all."""
    threads: int = 1
    """Of one child, on a CPU."""
    timeout_s: float = 600.0
    """Longest answer; who takes longer is taken to hang."""


class Trainer(Learner):
    """See the module's text. Raises UnavailableError where no child can be kept alive."""

    def __init__(
        self,
        spec: ModelSpec,
        scale: FeatureScale,
        *,
        tail: Tail | None = None,
        data: bytes | None = None,
        settings: TrainerSettings = TrainerSettings(),  # frozen
    ) -> None:
        self._spec = spec
        self._scale = scale
        self._tail = tail
        self._checkpoint = data
        self._settings = settings
        self._since: list[Frame] = []
        self._child: BackgroundModule | None = None
        self._labels: list[str] = []
        self._count_C: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._samples = 0
        try:
            self._begin()
            self.declare(spec.labels)
        except BaseException:
            self.close()
            raise

    @property
    def labels(self) -> Sequence[str]:
        """See Learner."""
        return self._labels

    @property
    def count_C(self) -> npt.NDArray[np.int64]:  # noqa: N802  # axes
        """See Learner."""
        return self._count_C

    @property
    def samples(self) -> int:
        """See Learner."""
        return self._samples

    @property
    def ttl_s(self) -> float | None:
        """See Learner."""
        return self._spec.memory.ttl_s

    def integrate(self, quantised_Bd: QuantisedBd, labels: Truth, *, origin: Origin | None = None) -> None:
        """See Learner."""
        told: dict[str, Any] = {"ask": "learn"}
        if origin is not None:
            told |= {"client": origin.client, "time_s": origin.time_s}
        parts = {"quantised": np.ascontiguousarray(quantised_Bd, np.int16).tobytes()}
        self._do(_frames.with_truth(Frame(told=told, parts=parts), labels))

    def declare(self, labels: Sequence[str]) -> None:
        """See Learner."""
        new = [label for label in labels if label not in self._labels]
        if new:
            self._do(Frame(told={"ask": "declare", "labels": new}))

    def expire(self, now_s: float) -> int:
        """See Learner."""
        question = Frame(told={"ask": "expire", "now_s": now_s})
        gone = int(self._ask(question).told["gone"])
        if gone:
            self._since.append(question)
        return gone

    def learned(self) -> Learned:
        """See Learner."""
        solution, figures = None, dict[str, Any]()
        if self.samples:
            answer = self._ask(Frame(told={"ask": "solve"}))
            solution, figures = self._solution(answer), answer.told["figures"]
        return LearnedWeights(tuple(self._labels), self._count_C, self._samples, solution, figures)

    def configure(self, spec: ModelSpec) -> None:
        """See Learner. Weights and memory stay; an optimizer or a regulariser of another kind begins anew."""
        before = self._spec
        self.to_bytes()
        self._spec = spec
        try:
            self._begin()
        except BaseException:
            self._spec = before
            self._begin()
            raise

    def to_bytes(self) -> bytes:
        """See Learner."""
        self._checkpoint = self._ask(Frame(told={"ask": "state"})).parts["state"]
        self._since.clear()
        return self._checkpoint

    def close(self) -> None:
        """See Learner."""
        if self._child is not None:
            self._child.close()
            self._child = None

    # -- inside -------------------------------------------------------------------------------------------------

    def _do(self, question: Frame) -> None:
        """Something that changes the learner, and has to be done again by a next child."""
        self._take(self._ask(question))
        self._since.append(question)

    def _ask(self, question: Frame) -> Frame:
        for life in range(1, _LIVES + 1):
            try:
                return self._once(question)
            except EOFError as error:
                if life == _LIVES:
                    raise UnavailableError(
                        f"the trainer's process ended {_LIVES} times at the same batch, last with: {error}"
                    ) from error
                self._begin()
        raise AssertionError("unreachable")

    def _once(self, question: Frame) -> Frame:
        if self._child is None:
            raise UnavailableError("the trainer is closed")
        answer = self._child.ask(lambda stream: _frames.write(stream, question), _frames.read)
        if "error" in answer.told:
            raise error_of(answer.told["error"])
        return answer

    def _begin(self) -> None:
        """A child that is where the last one was."""
        for life in range(1, _LIVES + 1):
            self.close()
            self._child = begun(self._settings)
            try:
                self._take(self._once(self._opening()))
                for question in self._since:
                    self._take(self._once(question))
                return
            except EOFError as error:
                if life == _LIVES:
                    raise UnavailableError(f"no trainer process stays alive; the last ended with: {error}") from error

    def _opening(self) -> Frame:
        settings = self._settings
        told = {
            "ask": "open",
            "spec": self._spec.model_dump(mode="json", exclude_none=True),
            "bits": self._scale.bits,
            "device": settings.device,
            "threads": settings.threads,
        }
        parts = {"step_d": self._scale.step_d.astype(np.float32).tobytes()}
        if self._tail is not None:
            parts |= tail_parts(self._tail)
        if self._checkpoint is not None:
            parts["state"] = self._checkpoint
        return Frame(told=told, parts=parts)

    def _take(self, answer: Frame) -> None:
        self._labels = list(answer.told["labels"])
        self._count_C = np.array(answer.told["counts"], np.int64)
        self._samples = int(answer.told["samples"])

    def _solution(self, answer: Frame) -> Solution:
        labels, parts = tuple(answer.told["labels"]), answer.parts
        head = LinearHead(
            weight_dC=np.frombuffer(parts["weight"], "<f4").reshape(-1, len(labels)),
            bias_C=np.frombuffer(parts["bias"], "<f4"),
            normalise=answer.told["normalise"],
            labels=labels,
            regularization=0.0,
            task=answer.told["task"],
        )
        tail = replace(self._tail, weights=parts["tail"]) if self._tail is not None else None
        return Solution(head=head, tail=tail)


def begun(settings: TrainerSettings) -> BackgroundModule:
    """A child that waits for questions."""
    seen = {"CUDA_VISIBLE_DEVICES": settings.visible_devices} if settings.visible_devices else {}
    return BackgroundModule(MODULE, timeout_s=settings.timeout_s, environment=seen)


def fit_of(spec: ModelSpec, scale: FeatureScale, settings: TrainerSettings) -> Callable[..., Tail]:
    """What a first session fits its blocks with: a process for that alone, which ends with it."""

    def fit(tail: Tail, values_Nn: FeaturesBd, labels: Sequence[str]) -> Tail:
        child = begun(settings)
        try:
            told = {
                "ask": "fit",
                "spec": spec.model_dump(mode="json", exclude_none=True),
                "labels": list(labels),
                "device": settings.device,
                "threads": settings.threads,
            }
            parts = {**tail_parts(tail), "values": np.ascontiguousarray(values_Nn, np.float32).tobytes()}
            question = Frame(told=told, parts=parts)
            answer = child.ask(lambda stream: _frames.write(stream, question), _frames.read)
        except EOFError as error:
            raise UnavailableError(f"the process that fits the first session ended with: {error}") from error
        finally:
            child.close()
        if "error" in answer.told:
            raise error_of(answer.told["error"])
        return replace(tail, weights=answer.parts["tail"])

    return fit


def tail_parts(tail: Tail) -> dict[str, bytes]:
    """A tail as parts of a frame."""
    return {"tail_graph": tail.graph, "tail_weights": tail.weights, "tail_manifest": dump_tail(tail)}


class LearnedWeights(Learned):
    """Weights of one moment."""

    def __init__(
        self,
        labels: Sequence[str],
        count_C: npt.NDArray[np.int64],
        samples: int,
        solution: Solution | None,
        figures: Mapping[str, float],
    ) -> None:
        self._labels = labels
        self._count_C = count_C
        self._samples = samples
        self._solution = solution
        self._figures = figures

    @property
    def labels(self) -> Sequence[str]:
        """See Learned."""
        return self._labels

    @property
    def count_C(self) -> npt.NDArray[np.int64]:  # noqa: N802  # axes
        """See Learned."""
        return self._count_C

    @property
    def samples(self) -> int:
        """See Learned."""
        return self._samples

    @property
    def figures(self) -> Mapping[str, float]:
        """See Learned."""
        return self._figures

    def digest(self) -> str:
        """See Learned."""
        state = hashlib.sha256(json.dumps([list(self._labels), self._count_C.tolist()]).encode())
        if self._solution is not None:
            head, tail = self._solution.head, self._solution.tail
            state.update(head.weight_dC.tobytes("C") + head.bias_C.tobytes())
            state.update(tail.digest.encode() if tail is not None else b"")
        return state.hexdigest()

    def solve(self, *, hint: float | None = None) -> Solution:
        """See Learned. There is nothing to search: the weights are the classifier."""
        if self._solution is None:
            raise PreconditionError("no sample has been learned; stream some first", reason="EMPTY_MEMORY")
        return self._solution


def error_of(told: Mapping[str, str]) -> errors.EverlearnError:
    """The error that a child answered with."""
    kind = getattr(errors, told["kind"])
    error: errors.EverlearnError = kind(told["message"], field=told["field"])
    error.reason = told["reason"]
    return error
