"""A gradient learner, lived in by another process: torch, its memory and its crashes stay out of the server's.

    integrate -> pipe -> GradientLearner.learn           (a child of its own for each model, niced)
    to_bytes  -> pipe -> the whole state                 = a checkpoint; batches since then are kept in RAM here

When the child dies, the next one gets the checkpoint and the batches since, and is to the bit where the first one was:
every step is a function of state and batch alone. So nothing that was integrated is lost, as with the sums.

Axes: B samples in a batch, C classes, d features or values at the cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from everlearn import errors
from everlearn.backbones.tail import Tail
from everlearn.backbones.tail_manifest import dump_tail
from everlearn.errors import UnavailableError, UnlearnableError
from everlearn.learners import _frames
from everlearn.learners._frames import Frame
from everlearn.learners.base import Learned, Learner, Solution, not_separable
from everlearn.learners.gradient import layout
from everlearn.learners.learned_weights import LearnedWeights
from everlearn.memories.base import Origin
from everlearn.memories.sealing import Sealer, seal, unseal
from everlearn.runtime.process import BackgroundModule
from everlearn.spec.composition import learns_again
from everlearn.spec.model import ModelSpec
from everlearn.truth import Truth, part_of
from everlearn.values import FeaturesBd, FeatureScale, LinearHead, QuantisedBd

MODULE: Final = "everlearn.learners.gradient.child"
_RELEARNED = 16
"""Batches of one question, where what is kept of others is learned again."""
_LIVES = 3
"""Children that one question may cost: a batch that kills each of them is refused."""
_NO_MEMORY: Final = ("OutOfMemoryError", "MemoryError", "out of memory")
"""Last words of a child whose device, or this machine, had no room for a step."""


class _Killed(Exception):  # noqa: N818  # no error yet: what to do about it is the asker's
    """The child has ended at this question, more than once unless it had no memory."""


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Where gradient steps are made."""

    device: str = "cpu"
    """torch's name of it."""
    visible_devices: str = ""
    """CUDA_VISIBLE_DEVICES of the children; empty for all."""
    library_path: str = ""
    """LD_LIBRARY_PATH of the children: where some clusters put the driver; empty for none."""
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
        sealer: Sealer | None = None,
    ) -> None:
        """`sealer`: what features of single samples are sealed with in `to_bytes`; without one they are not. Keys stay
        in this process."""
        self._spec = spec
        self._scale = scale
        self._tail = tail
        self._sealer = sealer
        self._checkpoint = data if data is None else self._turned(data, unseal)
        self._settings = settings
        self._since: list[Frame] = []
        self._child: BackgroundModule | None = None
        self._closed = False
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
        """See Learner. A batch too large for the device's memory is learned as two, once; one that kills every child
        that tries raises UnlearnableError, and what was learned before it stays to the bit."""
        rows, half = len(quantised_Bd), len(quantised_Bd) // 2
        try:
            self._do(_step(quantised_Bd, labels, origin))
        except _Killed as error:
            if not (half and _has_no_memory(error)):
                raise _unlearnable(rows, error) from error
            known = len(self._since)
            try:
                for part in (slice(0, half), slice(half, rows)):
                    self._do(_step(quantised_Bd[part], part_of(labels, part), origin))
            except _Killed as again:
                if len(self._since) > known:
                    del self._since[known:]
                    self._begin()
                raise _unlearnable(rows, again) from again

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

    def forget_client(self, client: str, *, before: bytes | None = None) -> int:
        """See Learner; raises PreconditionError (reason NOT_SEPARABLE) where the memory names no client."""
        if not learns_again(self._spec):
            raise not_separable(self)
        known, parts = len(self._since), {} if before is None else {"before": before}
        try:
            answer = self._ask(Frame(told={"ask": "forget_client", "client": client}, parts=parts))
            gone = int(answer.told["gone"])
            self._since.append(Frame(told={"ask": "forget_client", "client": client}, parts=parts))
            while answer.told["left"]:  # some at a time: no answer may take for ever, and a next child repeats them
                question = Frame(told={"ask": "relearn", "batches": _RELEARNED})
                answer = self._ask(question)
                self._since.append(question)
            self._take(answer)
        except BaseException:
            if len(self._since) > known:
                del self._since[known:]
                self._begin()
            raise
        if self._sealer is not None:
            self._sealer.renew(client)
        self.to_bytes()  # what was learned of it is not to be done again by a next child
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
        self._keep()
        self._spec = spec
        try:
            self._begin()
        except BaseException:
            self._spec = before
            self._begin()
            raise

    def to_bytes(self) -> bytes:
        """See Learner."""
        return self._turned(self._keep(), seal)

    def close(self) -> None:
        """See Learner. Another thread that waits for an answer meets UnavailableError, and no next child."""
        self._closed = True
        self._end_child()

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None

    # -- inside -------------------------------------------------------------------------------------------------

    def _keep(self) -> bytes:
        """What a next child begins with, in this process's memory alone."""
        self._checkpoint = self._ask(Frame(told={"ask": "state"})).parts["state"]
        self._since.clear()
        return self._checkpoint

    def _turned(self, data: bytes, turn: Callable[[bytes, Sealer | None], bytes]) -> bytes:
        """A state with its memory sealed, or open; as it is where nothing is ever sealed."""
        if self._sealer is None:
            return data
        parts = layout.split(data)
        return layout.join(parts.header, parts.tensors, turn(parts.memory, self._sealer))

    def _do(self, question: Frame) -> None:
        """Something that changes the learner, and has to be done again by a next child."""
        self._take(self._ask(question))
        self._since.append(question)

    def _ask(self, question: Frame) -> Frame:
        for life in range(1, _LIVES + 1):
            try:
                return self._once(question)
            except EOFError as error:
                self._begin()
                if question.told["ask"] == "learn" and (life == _LIVES or _has_no_memory(error)):
                    raise _Killed(str(error)) from error
                if life == _LIVES:
                    raise UnavailableError(
                        f"the trainer's process ended {_LIVES} times at the same question, last with: {error}"
                    ) from error
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
            self._end_child()
            if self._closed:
                raise UnavailableError("the trainer is closed")
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


def _step(quantised_Bd: QuantisedBd, labels: Truth, origin: Origin | None) -> Frame:
    told: dict[str, Any] = {"ask": "learn"}
    if origin is not None:
        told |= {"client": origin.client, "time_s": origin.time_s}
    parts = {"quantised": np.ascontiguousarray(quantised_Bd, np.int16).tobytes()}
    return _frames.with_truth(Frame(told=told, parts=parts), labels)


def _has_no_memory(error: Exception) -> bool:
    return any(sign in str(error) for sign in _NO_MEMORY)


def _unlearnable(rows: int, error: Exception) -> UnlearnableError:
    why = "the device has no memory for a step on it; send smaller batches" if _has_no_memory(error) else str(error)
    return UnlearnableError(f"a batch of {rows} samples ended the trainer's process: {why}", field="batch.samples")


def begun(settings: TrainerSettings, module: str = MODULE) -> BackgroundModule:
    """A child that waits for questions, and sees the GPUs that it may."""
    seen = {"CUDA_VISIBLE_DEVICES": settings.visible_devices, "LD_LIBRARY_PATH": settings.library_path}
    environment = {name: value for name, value in seen.items() if value}
    return BackgroundModule(module, timeout_s=settings.timeout_s, environment=environment)


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


def error_of(told: Mapping[str, str]) -> errors.EverlearnError:
    """The error that a child answered with."""
    kind = getattr(errors, told["kind"])
    error: errors.EverlearnError = kind(told["message"], field=told["field"])
    error.reason = told["reason"]
    return error
