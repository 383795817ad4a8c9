"""Models for a moment: declared, taught a labelled sample block by block, tested on each block before learning it, and
deleted whatever happens. Never touches a model of the user's.

The sample passes each backbone once, however many models are tried on it: they are taught features.
Axes: N samples, d features.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from everlearn_client._models import ProgressCallback
from everlearn_client.choosing.diagnosis import CurvePoint
from everlearn_client.client import Client
from everlearn_client.errors import DeadlineExceeded, EverlearnClientError, InvalidArgument, NotFound, Unavailable
from everlearn_client.events import LearnEvent, Received
from everlearn_client.samples import MESSAGE_LIMIT_BYTES, Batch, Features, split_batch
from everlearn_protos.v1 import models_pb2

Item = TypeVar("Item")
Result = TypeVar("Result")
DOUBLINGS = 4
"""Blocks double: the head is tested with 1/16, 1/8, 1/4 and 1/2 of the sample known."""
AT_ONCE = 8
"""Models taught at a time. The server paces the commits of each, so that one alone would mostly wait."""
MOST_BYTES = 2**30
"""Features held here. Where a model learns from the raw input itself (adapt full), those are its pixels."""
RETRY_FOR_S = 60.0
"""Of failing in a row: a server that is away for longer ends the trial."""
REVISED_S = 120.0
"""Longest wait for a head of another regularization; solving takes a second or two where features are thousands."""
STREAM_ROWS = 32
"""Samples a message, as a learner streams them: where the head learns by steps, a batch is what it steps on."""
_FLOAT_BYTES = 4
_ANSWER_BYTES = MESSAGE_LIMIT_BYTES - 64 * 2**10


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedded:
    """A sample as each of the backbones sees it."""

    labels: Sequence[str]
    features_Nd: Mapping[str, npt.NDArray[np.float32]]
    """By feature digest."""
    passes: int
    """Backbones that ran on each sample."""
    seconds: float
    """All of it, as the caller saw it."""

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, digest: str, rows: slice | npt.NDArray[np.int64]) -> Batch:
        """Some samples for the models of this digest."""
        labels = np.array(self.labels, object)[rows].tolist()
        return Batch(Features(self.features_Nd[digest][rows]), labels)


@dataclass(kw_only=True, eq=False)
class Trial:
    """What a sample showed of one model."""

    points: list[CurvePoint] = field(default_factory=list)
    """Accuracy of each block but the first, by the head that knew all before it."""
    correct_N: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, bool))
    """The same, sample by sample, in their order."""
    learn_ms: list[float] = field(default_factory=list)
    """What testing and adding took the server for each sample, a figure a batch; backbone and solving left out."""
    failure: EverlearnClientError | None = None
    """What ended it early."""


def temporary_name(prefix: str) -> str:
    """A name that no model has: `{prefix}-{8 hex digits}`."""
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def on_trial(declaration: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The declaration under another name, to be tried on a sample and deleted again.

    Without the minima of privacy tier `aggregate`: they would hold the end of every sample back, and what is tried is
    the caller's own sample. Noise of tier `dp` stays, for it changes what is found.
    """
    metadata = {**(declaration.get("metadata") or {}), "name": name}
    spec = dict(declaration.get("spec") or {})
    if (spec.get("privacy") or {}).get("tier") == "aggregate":
        del spec["privacy"]
    return {**declaration, "metadata": metadata, "spec": spec}


@contextmanager
def temporary(
    client: Client, declaration: str, name: str, *, progress: ProgressCallback | None = None
) -> Iterator[models_pb2.Model]:
    """Applies a declaration whose model is called `name` and in the end deletes it, after an error or Ctrl-C too.

    Where it cannot be deleted, the error says which model is left. Raises InvalidArgument for a model of another task
    than classification: trials compare single labels.
    """
    try:
        applied = client.models.apply(declaration, progress=progress)
        model = applied.model if applied.model is not None else client.models.get(name)
        _check_task(model)
        yield model
    except BaseException as error:
        try:
            _delete(client, name)
        except EverlearnClientError as left:
            error.add_note(f"model {name} could not be deleted ({left.message}); `everlearn delete {name}` does it")
        raise
    _delete(client, name)


def _check_task(model: models_pb2.Model) -> None:
    task = model.status.input.task
    if task not in ("", "classification"):  # empty: a server that knows no other
        raise InvalidArgument(
            f"this looks at one label a sample, and the model's task is {task}; try it as classification of one label",
            field="spec.task",
        )


def with_also(one: Embedded, other: Embedded) -> Embedded:
    """The same sample as more backbones see it."""
    return Embedded(
        labels=one.labels,
        features_Nd={**one.features_Nd, **other.features_Nd},
        passes=one.passes + other.passes,
        seconds=one.seconds + other.seconds,
    )


def embed(client: Client, models: Sequence[models_pb2.Model], batches: Iterator[Batch]) -> Embedded:
    """Features of a sample for all of these models. Raises InvalidArgument where the server refuses a sample."""
    of_digest = {model.status.input.feature_digest: model for model in models}
    names = [model.name for model in of_digest.values()]
    row_bytes = _FLOAT_BYTES * sum(model.status.feature_dim for model in of_digest.values())
    rows = max(1, min(_ANSWER_BYTES // row_bytes, *(m.status.input.max_batch_samples or 1024 for m in models)))
    labels: list[str] = []
    parts: dict[str, list[npt.NDArray[np.float32]]] = {digest: [] for digest in of_digest}
    passes, begun_s = 0, time.monotonic()
    for whole in batches:
        for batch in split_batch(whole, max_samples=rows):
            found = client.embed(names, batch.samples)
            labels += batch.labels
            passes = found.passes
            for digest, features in found.features_Nd.items():
                parts[digest].append(features)
            if len(labels) * row_bytes > MOST_BYTES:
                raise InvalidArgument(
                    f"features of {len(labels)} samples take {len(labels) * row_bytes:,} bytes here, and more were to "
                    f"come; at most {MOST_BYTES:,} may: give fewer samples",
                    field="--samples",
                )
    features_Nd = {digest: np.concatenate(arrays) for digest, arrays in parts.items()}
    return Embedded(labels=labels, features_Nd=features_Nd, passes=passes, seconds=time.monotonic() - begun_s)


def run(
    client: Client,
    models: Sequence[models_pb2.Model],
    sample: Embedded,
    *,
    edges: Sequence[int] = (),
    on_block: Callable[[int, int], None] = lambda known, count: None,
) -> list[Trial]:
    """Predicts each block with a head that knows all blocks before it, then teaches it; all models side by side.

    Every candidate meets the same heads in the same state, however quick it is; the server's own prequential record
    would favour slow ones, whose heads are fresher by the sample. `edges`: of the blocks, by default `block_edges`.

    A model that fails drops out with its error, unless the server is gone: then Unavailable is raised. Raises
    InvalidArgument for fewer than 2 samples.
    """
    trials = [Trial() for _ in models]
    for first, last in pairwise(edges or block_edges(len(sample))):
        on_block(first, len(sample))
        going = [(model, trial) for model, trial in zip(models, trials, strict=True) if trial.failure is None]

        def turn(pair: tuple[models_pb2.Model, Trial], first: int = first, last: int = last) -> None:
            _block(client, pair[0], sample, first, last, pair[1])

        _side_by_side(turn, going)
    return trials


def hold_out(
    client: Client, models: Sequence[models_pb2.Model], sample: Embedded, known: int
) -> list[npt.NDArray[np.bool_]]:
    """Teaches each model the first `known` samples; whether it then gets each of the others right."""

    def turn(model: models_pb2.Model) -> npt.NDArray[np.bool_]:
        digest = model.status.input.feature_digest
        teach(client, model, sample.part(digest, slice(0, known)))
        return np.array(hits(client, model, sample.part(digest, slice(known, None))), bool)

    return _side_by_side(turn, models)


def revise(client: Client, model: models_pb2.Model, declaration: str, regularization: float) -> None:
    """Has the head solved anew from what it has learned, with another regularization; nothing is taught again.

    Raises DeadlineExceeded where no such head comes.
    """
    client.models.apply(declaration)
    deadline_s = time.monotonic() + REVISED_S
    while not math.isclose(client.models.version(model.name, "latest").regularization, regularization, rel_tol=1e-6):
        if time.monotonic() > deadline_s:
            raise DeadlineExceeded(f"no head of {model.name} with regularization {regularization:g} in {REVISED_S:g} s")
        time.sleep(0.02)


def teach(
    client: Client,
    model: models_pb2.Model,
    batch: Batch,
    *,
    times: int = 1,
    on_event: Callable[[LearnEvent], None] | None = None,
) -> None:
    """Learns features, so many times over; returns when a head knows them. Raises InvalidArgument where the server
    refuses one.
    """
    digest = model.status.input.feature_digest
    report = client.learn(
        model.name,
        (part for _ in range(times) for part in split_batch(batch, max_samples=STREAM_ROWS)),
        feature_digest=digest,
        on_event=on_event,
        retry_for_s=RETRY_FOR_S,
    )
    if report.rejected:
        refusal = report.rejected[0]
        raise InvalidArgument(
            f"{report.rejected_samples} samples were refused, the first ones because of: {refusal.message}",
            field=refusal.field,
        )


def hits(client: Client, model: models_pb2.Model, batch: Batch) -> list[bool]:
    """Whether the newest head gets each sample right."""
    right: list[bool] = []
    for part in split_batch(batch, max_samples=model.status.input.max_batch_samples):
        found = client.predict(model.name, part.samples, version="latest")
        right += [best[0].label == label for best, label in zip(found.top, part.labels, strict=True)]
    return right


def block_edges(count: int) -> list[int]:
    """Where blocks begin and end: 0, then halves of halves up to `count`.

    >>> block_edges(160), block_edges(3)
    ([0, 10, 20, 40, 80, 160], [0, 1, 3])
    """
    if count < 2:
        raise InvalidArgument(f"{count} samples; at least 2 are needed to learn from one and test on another")
    return [0, *sorted({count >> shift for shift in range(DOUBLINGS + 1)} - {0})]


def _side_by_side(turn: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """What has begun is waited for, after an error or Ctrl-C too: its model is deleted next."""
    pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="trial")
    try:
        return list(pool.map(turn, items))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _block(client: Client, model: models_pb2.Model, sample: Embedded, first: int, last: int, trial: Trial) -> None:
    batch = sample.part(model.status.input.feature_digest, slice(first, last))

    def hear(event: LearnEvent) -> None:
        if isinstance(event, Received) and event.samples and not event.duplicate:
            trial.learn_ms.append((event.times.test_ms + event.times.integrate_ms) / event.samples)

    try:
        if first:
            block = hits(client, model, batch)
            trial.points.append(CurvePoint(known=first, tested=len(block), correct=sum(block)))
            trial.correct_N = np.append(trial.correct_N, np.array(block, bool))
        teach(client, model, batch, on_event=hear)
    except Unavailable:
        raise
    except EverlearnClientError as error:
        trial.failure = error


def _delete(client: Client, name: str) -> None:
    """Deletes the model if it is there; a Ctrl-C meanwhile waits until it is gone."""
    try:
        client.models.delete(name)
    except NotFound:
        return
    except KeyboardInterrupt:
        _delete(client, name)
        raise
