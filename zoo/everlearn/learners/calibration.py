"""Stands in a learner's place while a trunk in 8 bits has yet to be made: counts how far the first images reach.

Nothing of it is ever at rest and nothing is learned: the images are not kept, not even in RAM, but counted in a sketch
(`export.ranges`). What came is lost with the server and was never acknowledged as durable, so that clients send it
again: to be counted anew, or, once the trunk is made, to be learned on it.

Axes: B images, T tensors, C classes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from everlearn.errors import PreconditionError
from everlearn.export.ranges import RangeSketch
from everlearn.learners.base import Learned, Learner, Solution
from everlearn.memories.base import Origin
from everlearn.spec.model import ModelSpec
from everlearn.truth import Truth
from everlearn.values import QuantisedBd

NOT_OF_INT8: Final = "its trunk in 8 bits was calibrated on the first samples, and nothing can be taken out of that"
"""Why nothing that a client sent can be erased."""


class Calibration(Learner):
    """See the module's text."""

    def __init__(self, spec: ModelSpec, tensors: int) -> None:
        """`tensors`: T, whose bins the observing trunk tells."""
        self._labels = spec.labels
        assert spec.int8_trunk is not None, "nothing else is calibrated"
        self._wanted = spec.int8_trunk.samples
        self.sketch = RangeSketch([str(place) for place in range(tensors)])
        """Of tensors by their places in the plan."""

    @property
    def labels(self) -> Sequence[str]:
        """See Learner."""
        return self._labels

    @property
    def count_C(self) -> npt.NDArray[np.int64]:  # noqa: N802  # axes
        """See Learner."""
        return np.zeros(len(self._labels), np.int64)

    @property
    def holds_samples(self) -> bool:
        """See Learner. Always: what came is durable once it was learned, which happens elsewhere."""
        return True

    @property
    def waits_for(self) -> str:
        """See Learner."""
        if self.sketch.samples >= self._wanted:
            return ""
        return f"{self.sketch.samples:,} of {self._wanted:,} images have come that the trunk in 8 bits is made from"

    @property
    def patience_s(self) -> float:
        """See Learner. A trunk that few images have made would stay for good."""
        return math.inf

    @property
    def inseparable_because(self) -> str:
        """See Learner."""
        return NOT_OF_INT8

    def integrate(self, quantised_Bd: QuantisedBd, labels: Truth, *, origin: Origin | None = None) -> None:
        """See Learner. `quantised_Bd`: bins, as an observing trunk tells them."""
        if self.waits_for:
            self.sketch.add_bins(quantised_Bd.reshape(len(quantised_Bd), -1, 2).astype(np.int64))

    def declare(self, labels: Sequence[str]) -> None:
        """See Learner."""
        self._labels += tuple(label for label in labels if label not in self._labels)

    def learned(self) -> Learned:
        """See Learner."""
        return _Nothing(self._labels, hashlib.sha256(self.sketch.to_bytes()).hexdigest())

    def configure(self, spec: ModelSpec) -> None:
        """See Learner."""
        self.declare(spec.labels)

    def to_bytes(self) -> bytes:
        """See Learner. Nothing is to be at rest."""
        return b""


class _Nothing(Learned):
    """What has been learned until a trunk is there."""

    def __init__(self, labels: Sequence[str], digest: str) -> None:
        self._labels, self._digest = labels, digest

    @property
    def labels(self) -> Sequence[str]:
        """See Learned."""
        return self._labels

    @property
    def count_C(self) -> npt.NDArray[np.int64]:  # noqa: N802  # axes
        """See Learned."""
        return np.zeros(len(self._labels), np.int64)

    def digest(self) -> str:
        """See Learned."""
        return self._digest

    def solve(self, *, hint: float | None = None) -> Solution:
        """See Learned."""
        raise PreconditionError("nothing has been learned: the trunk in 8 bits is not made yet", reason="EMPTY_MEMORY")
