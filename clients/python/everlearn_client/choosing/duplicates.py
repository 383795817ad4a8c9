"""Samples that are alike byte for byte, found by digest: nothing of a sample is kept."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from everlearn_client.samples import Batch, to_rows


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
    message = to_rows(batch.samples).part(row, row + 1).message()
    return hashlib.sha256(message.SerializeToString(deterministic=True)).digest()
