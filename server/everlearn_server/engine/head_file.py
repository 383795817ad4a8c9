"""How a version's weights are stored: a JSON line, plain float32 numbers, and safetensors of a tail that moves."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from everlearn.backbones.tail import Tail
from everlearn.errors import DataLossError
from everlearn.learners.base import Solution
from everlearn.values import LinearHead, Novelty


def dump_solution(solution: Solution) -> bytes:
    """Header line of JSON, float32 weights [d, C] and biases [C], tail: safe to read, no pickle."""
    head, tail = solution.head, solution.tail
    header: dict[str, object] = {
        "dim": head.weight_dC.shape[0],
        "labels": head.labels,
        "normalise": head.normalise,
        "regularization": head.regularization,
        "task": head.task,
    }
    if head.novelty is not None:
        header["directions"] = len(head.novelty.offset_k)
    if tail is not None:
        header["tail_graph"] = tail.graph_digest
    return b"".join(
        (
            json.dumps(header).encode() + b"\n",
            np.ascontiguousarray(head.weight_dC, "<f4").tobytes(),
            head.bias_C.astype("<f4").tobytes(),
            *(part.astype("<f4").tobytes() for part in _parts(head.novelty)),
            tail.weights if tail is not None else b"",
        )
    )


def load_solution(data: bytes, tail: Tail | None) -> Solution:
    """Inverse of `dump_solution`; the store has verified the digest. `tail`: the trunk's own, for its graph.

    Raises DataLossError where these are not such bytes, or the version was made on another tail.
    """
    stored = load_head(data)
    if stored.tail_graph is None:
        return Solution(head=stored.head)
    if tail is None or tail.graph_digest != stored.tail_graph:
        raise DataLossError("a stored version belongs to another tail than its trunk has; apply the declaration again")
    return Solution(head=stored.head, tail=replace(tail, weights=stored.tail_weights))


@dataclass(frozen=True, kw_only=True)
class StoredHead:
    """What a version's bytes hold."""

    head: LinearHead
    tail_graph: str | None
    """Digest of the graph of the tail that the weights belong to; None where no part of the backbone moves."""
    tail_weights: bytes


def load_head(data: bytes) -> StoredHead:
    """What `dump_solution` wrote, whatever trunk it belongs to. Raises DataLossError for anything else."""
    line, _, body = data.partition(b"\n")
    try:
        header = json.loads(line)
        classes, dim = len(header["labels"]), header["dim"]
        size = 4 * (dim + 1) * classes
        numbers = np.frombuffer(body[:size], "<f4")
        novelty, rest = _novelty(body[size:], dim, classes, header.get("directions", 0))
        head = LinearHead(
            weight_dC=numbers[: dim * classes].reshape(dim, classes),
            bias_C=numbers[dim * classes :],
            normalise=header["normalise"],
            labels=tuple(header["labels"]),
            regularization=header["regularization"],
            task=header.get("task", "classification"),  # heads of earlier releases knew no other
            novelty=novelty,
        )
        if head.bias_C.shape != (classes,):
            raise ValueError(f"{head.bias_C.size} biases for {classes} classes")
    except (ValueError, KeyError, TypeError) as error:
        raise DataLossError(f"these bytes are not a head: {error}") from error
    return StoredHead(head=head, tail_graph=header.get("tail_graph"), tail_weights=rest)


def _parts(novelty: Novelty | None) -> tuple[npt.NDArray[np.float32], ...]:
    if novelty is None:
        return ()
    return novelty.basis_dk, novelty.offset_k, novelty.weight_kC, novelty.bias_C, novelty.scale_C


def _novelty(body: bytes, dim: int, classes: int, directions: int) -> tuple[Novelty | None, bytes]:
    """What stands behind a head, and what stands behind that."""
    if not directions:
        return None, body
    shapes = ((dim, directions), (directions,), (directions, classes), (classes,), (classes,))
    parts = []
    for shape in shapes:
        size = 4 * math.prod(shape)
        parts.append(np.frombuffer(body[:size], "<f4").reshape(shape))
        body = body[size:]
    return Novelty(**dict(zip(("basis_dk", "offset_k", "weight_kC", "bias_C", "scale_C"), parts, strict=True))), body
