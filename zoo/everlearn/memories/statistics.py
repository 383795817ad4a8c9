"""The default memory: exact sums, from which every closed-form head equals joint training on all that was learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from everlearn.memories import _state
from everlearn.memories._gaussian import GaussianReplay
from everlearn.memories.base import Memory, Origin, Replayed
from everlearn.spec.model import Memory as Declared
from everlearn.sums import Sums
from everlearn.values import QuantisedBd

KIND: Final = "statistics"


class Statistics(Memory):
    """n[C], S[C, d] and G[d, d] (streaming LDA, Hayes & Kanan 2020; exact as in ACIL, Zhuang et al. 2022).

    Its size depends on features and classes, never on samples; order leaves no trace. With `decay` below 1 each batch
    first multiplies them by it (recursive least squares with a forgetting factor; Haykin, Adaptive Filter Theory, ch.
    10): for drift. Order matters then, and from the first such batch on `is_exact` is false for good.
    """

    def __init__(
        self,
        sums: Sums,
        declared: Declared | None = None,
        *,
        seen_C: npt.NDArray[np.int64] | None = None,
        replay: GaussianReplay | None = None,
        moved: str = "",
    ) -> None:
        """`seen_C`: samples integrated of each class, where decayed sums no longer tell; `moved`: see `moved_to`."""
        self._sums = sums
        self._declared = _state.declared_as(KIND, declared)
        self._seen_C = seen_C
        self._replay = replay or GaussianReplay()
        self._moved = moved

    @classmethod
    def create(cls, dim: int, labels: Sequence[str], declared: Declared | None = None) -> Self:
        """See Memory."""
        return cls(Sums(dim, labels), declared)

    def moved_to(self, sums: Sums, declared: Declared, *, story: str) -> Self:
        """This memory on another backbone: estimated sums of the same samples (`everlearn.upgrade`), and in words where
        they come from, which stays with them."""
        assert sums.labels == self.labels, "an estimate is of the same classes"
        story = f"{self._moved}; {story}" if self._moved else story
        return type(self)(sums, declared, seen_C=self.seen_C.copy(), moved=story)

    def declare(self, labels: Sequence[str]) -> None:
        """See Memory."""
        self._sums.declare(labels)

    def integrate(
        self,
        quantised_Bd: QuantisedBd,
        labels: Sequence[str],
        *,
        origin: Origin | None = None,
        logits_BC: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """See Memory. PreconditionError (reason MEMORY_FULL) where sums would stop being exact."""
        keep = _state.filled(self._declared.decay)
        if keep == 1 and self._seen_C is None:
            self._sums.add(quantised_Bd, labels)
            return
        before_C = self.seen_C
        self._sums.add(quantised_Bd, labels, keep=keep)
        self._seen_C = np.bincount(self._sums.index_of(labels), minlength=self._sums.count_C.size)
        self._seen_C[: before_C.size] += before_C

    def draw(self, count: int, random: np.random.Generator) -> Replayed:
        """See Memory; rows that never were, made of the sums: see GaussianReplay."""
        return self._replay.draw(self._sums, self.seen, count, random, bits=self._declared.bits)

    @property
    def dim(self) -> int:
        """See Memory."""
        return self._sums.dim

    @property
    def labels(self) -> list[str]:
        """See Memory."""
        return self._sums.labels

    @property
    def seen_C(self) -> npt.NDArray[np.int64]:  # noqa: N802  # axes
        """See Memory."""
        count_C = self._sums.count_C
        if self._seen_C is None:
            return count_C.astype(np.int64)
        return np.pad(self._seen_C, (0, count_C.size - self._seen_C.size))

    @property
    def is_exact(self) -> bool:
        """See Memory; false once anything has decayed or was moved to another backbone."""
        return self._sums.is_exact

    @property
    def inexact_because(self) -> str:
        """See Memory."""
        if self.is_exact:
            return ""
        return self._moved or "what was learned earlier has decayed (memory.decay)"

    @property
    def sums(self) -> Sums:
        """See Memory; live."""
        return self._sums

    @property
    def subtracts(self) -> bool:
        """See Memory; no longer once anything has decayed, or may."""
        return self.is_exact and self._declared.decay == 1

    def subtract(self, other: Memory) -> None:
        """See Memory."""
        self._sums.subtract(_state.alike(other, type(self)).sums)
        self._replay = GaussianReplay()  # its covariance knew them

    def merge(self, other: Memory) -> None:
        """See Memory."""
        self._sums.merge(_state.alike(other, type(self)).sums)

    @property
    def held_bytes(self) -> int:
        """See Memory."""
        return self._sums.held_bytes

    def set_down(self, recall: Callable[[], bytes]) -> int:
        """See Memory; feature sums and the Gram matrix."""
        return self._sums.set_down(lambda: type(self).from_bytes(recall()).sums)

    def configure(self, declared: Declared) -> None:
        """See Memory. Another decay holds from the next batch on; what has decayed never becomes exact again."""
        self._declared = _state.declared_as(KIND, declared)

    def digest(self) -> str:
        """See Memory; of the sums alone."""
        return self._sums.digest()

    def to_bytes(self) -> bytes:
        """See Memory; exact sums without decay, of which no rows were drawn, lie in the format of `Sums.to_bytes`.

        Those bytes do not name `bits`, which only bound what is drawn: `configure` brings them.
        """
        replay = self._replay.arrays
        if self._sums.is_exact and self._declared.decay == 1 and not replay:
            return self._sums.to_bytes()
        state: dict[str, object] = {"declared": self._declared.model_dump(mode="json", exclude_none=True)}
        if self._moved:
            state["moved"] = self._moved
        sums = np.frombuffer(self._sums.to_bytes(), np.uint8)
        return _state.dump(KIND, state, {"sums": sums, "seen": self.seen_C, **replay})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """See Memory."""
        if not data.startswith(_state.MAGIC):
            return cls(Sums.from_bytes(data))
        state, arrays = _state.parse(KIND, data)
        with _state.sealed():
            sums = Sums.from_bytes(arrays["sums"].tobytes())
            seen_C = _state.column(arrays, "seen", np.int64, sums.count_C.shape)
            return cls(
                sums,
                _state.declared_from(KIND, state),
                seen_C=None if sums.is_exact else seen_C,
                replay=GaussianReplay.restored(arrays, sums.dim),
                moved=str(state.get("moved", "")),
            )
