"""Learns by gradient steps under differential privacy: samples wait in RAM, and a release is steps on all of them.

One release for all that came since the last commit hides each sample among many: the noise of a step is the same
whatever the number of rows, and their gradients add up.

Axes: B samples in a batch, C classes, d features or values at the cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from everlearn.errors import InputError
from everlearn.learners.base import Learned, Learner
from everlearn.learners.trainer import Trainer
from everlearn.memories.base import Origin
from everlearn.spec.model import ModelSpec
from everlearn.truth import Truth, single_labels
from everlearn.values import QuantisedBd


class PrivateTrainer(Learner):
    """A trainer that meets samples at a release alone. What it tells is of the last one."""

    def __init__(self, trainer: Trainer, spec: ModelSpec, dim: int) -> None:
        """`trainer`: of a declaration with noise; `dim`: d."""
        self._trainer = trainer
        self._spec = spec
        self._next_spec: ModelSpec | None = None
        self._dim = dim
        self._quantised: list[QuantisedBd] = []
        self._truth: list[str] = []

    @property
    def labels(self) -> Sequence[str]:
        """See Learner; all are declared."""
        return self._trainer.labels

    @property
    def count_C(self) -> npt.NDArray[np.int64]:  # noqa: N802  # axes
        """See Learner; with noise."""
        return self._trainer.count_C

    @property
    def samples(self) -> int:
        """See Learner; exact: that samples were sent is not hidden."""
        return self._trainer.samples

    @property
    def inseparable_because(self) -> str:
        """See Learner. So no keyed hash of a contribution is kept either: it would be exact."""
        return "noise was added to what was learned, so that no part of it can be subtracted"

    def integrate(self, quantised_Bd: QuantisedBd, labels: Truth, *, origin: Origin | None = None) -> None:
        """See Learner; whose they are is not kept."""
        names = single_labels(labels)
        if quantised_Bd.shape != (len(names), self._dim):
            raise InputError(f"values have shape {quantised_Bd.shape}; it must be [{len(names)}, {self._dim}]")
        if any(name not in self.labels for name in names):
            raise InputError("a label is not declared; with privacy.tier dp a model learns declared ones alone")
        self._quantised.append(quantised_Bd.copy())
        self._truth.extend(names)

    def declare(self, labels: Sequence[str]) -> None:
        """See Learner."""
        self._trainer.declare(labels)

    def release(self) -> bool:
        """See Learner. Raises as `Trainer.integrate`."""
        if not self._truth:
            return False
        self._trainer.integrate(np.concatenate(self._quantised), self._truth)
        self._quantised, self._truth = [], []
        if self._next_spec is not None:
            self._trainer.configure(self._next_spec)
            self._spec, self._next_spec = self._next_spec, None
        return True

    def learned(self) -> Learned:
        """See Learner; of the last release."""
        return self._trainer.learned()

    def configure(self, spec: ModelSpec) -> None:
        """See Learner. What waits was taken in under the noise of now: with less, options hold after its release."""
        if self._truth and spec.privacy.sample_noise < self._spec.privacy.sample_noise:
            self._next_spec = spec
            return
        self._trainer.configure(spec)
        self._spec, self._next_spec = spec, None

    def to_bytes(self) -> bytes:
        """See Learner; nothing of what waits."""
        return self._trainer.to_bytes()

    def close(self) -> None:
        """See Learner."""
        self._trainer.close()
