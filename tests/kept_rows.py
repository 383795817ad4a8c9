"""A memory for tests of gradient learning: the newest rows, int16, given back classes alike."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt

from everlearn.labels import Labels
from everlearn.memories.base import Memory, Origin, Replayed
from everlearn.spec.model import Memory as Declared
from everlearn.sums import Sums
from everlearn.values import QuantisedBd

A_CLASS = 60


class KeptRows(Memory):
    def __init__(self, dim: int, labels: Sequence[str]) -> None:
        self.table = Labels(labels)
        self.rows_Nd = np.empty((0, dim), np.int16)
        self.class_N = np.empty(0, np.int64)
        self.logits: list[npt.NDArray[np.float32] | None] = []

    @classmethod
    def create(cls, dim: int, labels: Sequence[str], declared: Declared | None = None) -> Self:
        return cls(dim, labels)

    def integrate(
        self,
        quantised_Bd: QuantisedBd,
        labels: Sequence[str],
        *,
        origin: Origin | None = None,
        logits_BC: npt.NDArray[np.float32] | None = None,
    ) -> None:
        self.rows_Nd = np.concatenate([self.rows_Nd, quantised_Bd])
        self.class_N = np.concatenate([self.class_N, self.table.take(labels).astype(np.int64)])
        self.logits += [None] * len(labels) if logits_BC is None else list(logits_BC)
        kept = np.concatenate([np.flatnonzero(self.class_N == each)[-A_CLASS:] for each in range(len(self.table))])
        self.rows_Nd, self.class_N = self.rows_Nd[kept], self.class_N[kept]
        self.logits = [self.logits[row] for row in kept]

    def draw(self, count: int, random: np.random.Generator) -> Replayed:
        present = np.unique(self.class_N)
        if not present.size:
            return Replayed(quantised_Rd=self.rows_Nd, class_R=self.class_N)
        picked = [random.choice(np.flatnonzero(self.class_N == each)) for each in random.choice(present, count)]
        logits_RC = None
        if self.logits[0] is not None:
            logits_RC = np.full((count, len(self.table)), np.nan, np.float32)
            for place, row in enumerate(picked):
                kept_C = self.logits[row]
                assert kept_C is not None
                logits_RC[place, : len(kept_C)] = kept_C
        return Replayed(quantised_Rd=self.rows_Nd[picked], class_R=self.class_N[picked], logits_RC=logits_RC)

    @property
    def sums(self) -> Sums:
        raise NotImplementedError

    def configure(self, declared: Declared) -> None:
        pass

    def to_bytes(self) -> bytes:
        width = len(self.table)
        logits = [np.zeros(0, np.float32) if each is None else each for each in self.logits]
        padded = np.array([np.pad(each, (0, width - len(each)), constant_values=np.nan) for each in logits])
        buffer = io.BytesIO()
        size = np.array([-1 if each is None else len(each) for each in self.logits])
        np.savez(
            buffer, rows=self.rows_Nd, cls=self.class_N, padded=padded, size=size, labels=np.array(list(self.table))
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        found = np.load(io.BytesIO(data))
        memory = cls(found["rows"].shape[1], [str(each) for each in found["labels"]])
        memory.rows_Nd, memory.class_N = found["rows"], found["cls"]
        memory.logits = [
            None if size < 0 else row[:size] for row, size in zip(found["padded"], found["size"], strict=True)
        ]
        return memory
