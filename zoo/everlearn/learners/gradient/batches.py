"""The rows of a step: new ones and replayed ones in one tensor, their classes, and which classes compete.

Axes: B new rows, R replayed rows, N = B + R; C classes (or outputs), S classes seen, n values at the cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from everlearn.learners.gradient.targets import Told
from everlearn.memories.base import Memory, Replayed
from everlearn.values import FeatureScale, QuantisedBd

Classes = npt.NDArray[np.int64]

DRAWN_VALUES: Final = 1 << 22
"""Most that are drawn from a memory at once: 8 MB."""


def sent(values: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """On the device. A GPU's host does not wait: it copies from pinned memory while it goes on."""
    tensor = torch.from_numpy(values)
    return moved(tensor.pin_memory(), device) if device.type == "cuda" else tensor


def moved(pinned: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on the device; zeros are left behind, for torch keeps pinned memory for the next batch as it is. They are
    copied in the device's own order, after the values and before anybody else gets the memory: nobody waits."""
    there = pinned.to(device, non_blocking=True, copy=True)
    pinned.copy_(torch.zeros_like(there), non_blocking=True)
    return there


class Competing:
    """Classes that have been seen. Those only declared take no part: nothing is known of them."""

    def __init__(self, is_seen_C: npt.NDArray[np.bool_], device: torch.device) -> None:
        self.count = int(is_seen_C.sum())
        """S."""
        self._all = self.count == len(is_seen_C)
        self._position_C = np.cumsum(is_seen_C) - 1
        self._column_S = None if self._all else sent(np.flatnonzero(is_seen_C), device)

    @property
    def log_count(self) -> float:
        """ln S: the loss of one who knows nothing."""
        return math.log(self.count) if self.count else 0.0

    def columns(self, values_NC: torch.Tensor) -> torch.Tensor:
        """Of the classes that compete: [N, S]."""
        return values_NC if self._column_S is None else values_NC.index_select(1, self._column_S)

    def positions(self, class_N: Classes) -> Classes:
        """Each class among those that compete."""
        return class_N if self._all else self._position_C[class_N]

    def classes(self, position_N: torch.Tensor) -> torch.Tensor:
        """The other way round, on the device."""
        return position_N if self._column_S is None else self._column_S[position_N]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """One step's."""

    inputs_Nn: torch.Tensor
    class_N: Classes
    """Index of each row's class; the new rows first."""
    new: int
    """B."""
    stored_RC: torch.Tensor | None = None
    """Scores that the replayed rows had."""
    target_NC: torch.Tensor | None = None
    """Dense targets, where classes are not what is learned."""
    partner_N: torch.Tensor | None = None
    """mixup: the row that each was mixed with, int64 on the inputs' device."""
    weight: float | torch.Tensor = 1.0
    """mixup: share of a row itself; of each row, [N], where they differ."""


class Table:
    """One call's rows on the device: the new ones in every step, and others of the memory in each."""

    def __init__(
        self, quantised_Bn: QuantisedBd, told: Told, step_n: torch.Tensor, classes: int, *, wipes: bool | None = None
    ) -> None:
        """`wipes`: overwrite rows on the device that are done with; by default on GPUs, whose memory torch keeps as it
        was. What the C library frees is overwritten by itself (everlearn.runtime.hardening)."""
        self._wipes = step_n.is_cuda if wipes is None else wipes
        self._step_n = step_n
        self._class_B = told.class_B
        self._target_BC = None if told.target_BC is None else sent(told.target_BC, step_n.device)
        self._classes = classes
        self.new_Bn = self._floats(quantised_Bn)
        """The new rows."""

    def close(self) -> None:
        """No row is needed any more."""
        self._wipe(self.new_Bn)

    def steps(self, memory: Memory, random: np.random.Generator, *, replay: int, steps: int) -> Iterator[Rows]:
        """The rows of so many steps. What is replayed in several is drawn at once: most of a draw's cost is its own."""
        at_once = max(1, DRAWN_VALUES // max(replay * memory.dim, 1))
        for start in range(0, steps, at_once):
            parts = min(at_once, steps - start)
            drawn = memory.draw(replay * parts, random) if replay else None
            if drawn is None or not len(drawn.class_R):
                yield from [self._new] * parts
            else:
                yield from self._with_replayed(drawn, parts)

    @property
    def _new(self) -> Rows:
        return Rows(inputs_Nn=self.new_Bn, class_N=self._class_B, new=len(self._class_B), target_NC=self._target_BC)

    def _with_replayed(self, drawn: Replayed, parts: int) -> Iterator[Rows]:
        """A memory draws classes alike, and in order: so every k-th row is a draw of classes alike again."""
        stored_RC = self._stored(drawn.logits_RC)
        for part in range(parts):
            part_RC = None if stored_RC is None else stored_RC[part::parts]
            target_NC = None
            if self._target_BC is not None:
                assert part_RC is not None, "who learns dense targets keeps those of its rows"
                # Of labels that came later a row had none, see targets.
                target_NC, part_RC = torch.cat([self._target_BC, part_RC.nan_to_num()]), None
            # Floats of one step at a time: they stay in the processor's cache until they are used.
            replayed_Rn = self._floats(drawn.quantised_Rd[part::parts])
            inputs_Nn = torch.cat([self.new_Bn, replayed_Rn])
            self._wipe(replayed_Rn)
            try:
                yield Rows(
                    inputs_Nn=inputs_Nn,
                    class_N=np.concatenate([self._class_B, drawn.class_R[part::parts]]),
                    new=len(self._class_B),
                    stored_RC=part_RC,
                    target_NC=target_NC,
                )
            finally:
                self._wipe(inputs_Nn)

    def _floats(self, quantised: QuantisedBd) -> torch.Tensor:
        # int16 travels: half the bytes. Where torch would not take it as it is, a copy: what was read may be read-only.
        there = sent(np.require(quantised, np.int16, ("C", "W")), self._step_n.device)
        floats = there * self._step_n
        if there.is_cuda:  # elsewhere they are the caller's own
            there.zero_()
        return floats

    def _wipe(self, rows_n: torch.Tensor) -> None:
        if self._wipes:
            rows_n.zero_()

    def _stored(self, logits_RC: npt.NDArray[np.float32] | None) -> torch.Tensor | None:
        if logits_RC is None:
            return None
        stored_RC = np.full((len(logits_RC), self._classes), np.nan, np.float32)
        known = min(logits_RC.shape[1], self._classes)
        stored_RC[:, :known] = logits_RC[:, :known]
        return sent(stored_RC, self._step_n.device)


def mixed(rows: Rows, alpha: float, random: np.random.Generator) -> Rows:
    """Each row mixed with another: a new one with a new one, a replayed one with a replayed one (manifold mixup at
    the cut, Verma et al. 2019), by one share from Beta(alpha, alpha)."""
    if not alpha:
        return rows
    weight = float(random.beta(alpha, alpha))
    replayed = len(rows.class_N) - rows.new
    partner_N = np.concatenate([random.permutation(rows.new), rows.new + random.permutation(replayed)])
    index_N = sent(partner_N, rows.inputs_Nn.device)
    stored_RC = rows.stored_RC
    if stored_RC is not None:
        stored_RC = torch.lerp(stored_RC[index_N[rows.new :] - rows.new], stored_RC, weight)
    inputs_Nn = torch.lerp(rows.inputs_Nn[index_N], rows.inputs_Nn, weight)
    return replace(rows, inputs_Nn=inputs_Nn, stored_RC=stored_RC, partner_N=index_N, weight=weight)


def steps_of(scale: FeatureScale, device: torch.device) -> torch.Tensor:
    """Size of an integer step of each value at the cut, on the device."""
    return torch.from_numpy(np.array(scale.step_d, np.float32)).to(device)
