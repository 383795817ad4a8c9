"""A model for a moment: declared, taught a labelled sample block by block, tested on each block before learning it, and
deleted whatever happens. Never touches a model of the user's.
"""

from __future__ import annotations

import hashlib
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from everlearn_client._models import ProgressCallback
from everlearn_client.client import Client
from everlearn_client.diagnosis import CurvePoint
from everlearn_client.errors import EverlearnClientError, InvalidArgument, NotFound
from everlearn_client.samples import Batch, to_rows
from everlearn_protos.v1 import models_pb2

DOUBLINGS = 4
"""Blocks double: the head is tested with 1/16, 1/8, 1/4 and 1/2 of the sample known."""

BatchesOf = Callable[[int, int], Iterator[Batch]]
"""Batches, each small enough for a message, of samples first..last-1 of the sample. Called more than once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """What a sample showed."""

    points: tuple[CurvePoint, ...]
    """Accuracy of each block but the first, by the head that knew all before it."""
    correct_N: npt.NDArray[np.bool_]
    """The same, sample by sample, in their order."""
    probe: models_pb2.ModelProbe


def temporary_name(prefix: str) -> str:
    """A name that no model has: `{prefix}-{8 hex digits}`."""
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


@contextmanager
def temporary(
    client: Client, declaration: str, name: str, *, progress: ProgressCallback | None = None
) -> Iterator[models_pb2.Model]:
    """Applies a declaration whose model is called `name` and in the end deletes it, after an error or Ctrl-C too.

    Where it cannot be deleted, the error says which model is left.
    """
    try:
        applied = client.models.apply(declaration, progress=progress)
        yield applied.model if applied.model is not None else client.models.get(name)
    except BaseException as error:
        try:
            _delete(client, name)
        except EverlearnClientError as left:
            error.add_note(f"model {name} could not be deleted ({left.message}); `everlearn delete {name}` does it")
        raise
    _delete(client, name)


def run(client: Client, model: str, batches_of: BatchesOf, count: int) -> Trial:
    """Predicts each block with a head that knows all blocks before it, then teaches it.

    Every candidate meets the same heads in the same state, however quick its trunk is; the server's own prequential
    record would favour slow ones, whose heads are fresher by the sample.

    Raises InvalidArgument where the server refuses a sample, or there are fewer than 2 samples.
    """
    edges = block_edges(count)
    correct: list[bool] = []
    points = []
    for first, last in pairwise(edges):
        if first:
            block = [hit for batch in batches_of(first, last) for hit in _hits(client, model, batch)]
            points.append(CurvePoint(known=first, tested=len(block), correct=sum(block)))
            correct += block
        teach(client, model, batches_of(first, last))
    return Trial(points=tuple(points), correct_N=np.array(correct, bool), probe=client.models.probe(model))


def teach(client: Client, model: str, batches: Iterator[Batch]) -> None:
    """Learns all batches; returns when a head knows them. Raises InvalidArgument where the server refuses one."""
    report = client.learn(model, batches)
    if report.rejected:
        refusal = report.rejected[0]
        raise InvalidArgument(
            f"{report.rejected_samples} samples were refused, the first ones because of: {refusal.message}",
            field=refusal.field,
        )


def hits(client: Client, model: str, batches: Iterator[Batch]) -> list[bool]:
    """Whether the newest head gets each sample right."""
    return [hit for batch in batches for hit in _hits(client, model, batch)]


def block_edges(count: int) -> list[int]:
    """Where blocks begin and end: 0, then halves of halves up to `count`.

    >>> block_edges(160), block_edges(3)
    ([0, 10, 20, 40, 80, 160], [0, 1, 3])
    """
    if count < 2:
        raise InvalidArgument(f"{count} samples; at least 2 are needed to learn from one and test on another")
    return [0, *sorted({count >> shift for shift in range(DOUBLINGS + 1)} - {0})]


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Samples that are alike byte for byte."""

    duplicates: int
    """Samples whose bytes came before."""
    conflicts: int
    """Samples whose bytes carry more than one label."""
    first_of_kind: tuple[int, ...]
    """Positions of the first sample of each kind."""


def repeats(batches: Iterator[Batch]) -> Repeats:
    """Finds equal samples by the sha256 of their bytes; keeps digests only."""
    labels_of: dict[bytes, list[str]] = defaultdict(list)
    first_of_kind, position = [], 0
    for batch in batches:
        for row, label in enumerate(batch.labels):
            digest = _digest(batch, row)
            if digest not in labels_of:
                first_of_kind.append(position)
            labels_of[digest].append(label)
            position += 1
    kinds = labels_of.values()
    return Repeats(
        duplicates=position - len(kinds),
        conflicts=sum(len(labels) for labels in kinds if len(set(labels)) > 1),
        first_of_kind=tuple(first_of_kind),
    )


def _digest(batch: Batch, row: int) -> bytes:
    return hashlib.sha256(
        to_rows(batch.samples).part(row, row + 1).message().SerializeToString(deterministic=True)
    ).digest()


def _hits(client: Client, model: str, batch: Batch) -> list[bool]:
    found = client.predict(model, batch.samples, version="latest")
    return [best[0].label == label for best, label in zip(found.top, batch.labels, strict=True)]


def _delete(client: Client, name: str) -> None:
    """Deletes the model if it is there; a Ctrl-C meanwhile waits until it is gone."""
    try:
        client.models.delete(name)
    except NotFound:
        return
    except KeyboardInterrupt:
        _delete(client, name)
        raise
