"""How a head is stored: a JSON line, then plain float32 numbers."""

from __future__ import annotations

import json

import numpy as np

from everlearn.values import LinearHead


def dump_head(head: LinearHead) -> bytes:
    """Header line of JSON, then float32 weights [d, C] and biases [C]: safe to read, no pickle."""
    header = {
        "dim": head.weight_dC.shape[0],
        "labels": head.labels,
        "normalise": head.normalise,
        "regularization": head.regularization,
    }
    return b"".join(
        (
            json.dumps(header).encode() + b"\n",
            np.ascontiguousarray(head.weight_dC, "<f4").tobytes(),
            head.bias_C.astype("<f4").tobytes(),
        )
    )


def load_head(data: bytes) -> LinearHead:
    """Inverse of `dump_head`; the store has verified the digest."""
    line, _, body = data.partition(b"\n")
    header = json.loads(line)
    classes, dim = len(header["labels"]), header["dim"]
    numbers = np.frombuffer(body, "<f4")
    return LinearHead(
        weight_dC=numbers[: dim * classes].reshape(dim, classes),
        bias_C=numbers[dim * classes :],
        normalise=header["normalise"],
        labels=tuple(header["labels"]),
        regularization=header["regularization"],
    )
