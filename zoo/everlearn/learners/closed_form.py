"""Learns a classifier from a stream of features, without a server and without keeping the features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from everlearn.errors import InputError
from everlearn.heads.base import Head
from everlearn.memories.base import Memory
from everlearn.values import FeaturesBd, FeatureScale, LinearHead


class ClosedForm:
    """Quantise, integrate, solve: after any stream the head is that of joint training on all of it.

    >>> from everlearn.heads import head_for
    >>> from everlearn.memories import memory_for
    >>> scale = FeatureScale(step_d=np.full(2, 0.001, np.float32))
    >>> learner = ClosedForm(memory_for("statistics").create(2, []), head_for("balanced_ridge"), scale)
    >>> learner.learn(np.array([[0.0, 1.0], [0.1, 0.9]], np.float32), ["cat", "cat"])
    >>> learner.learn(np.array([[1.0, 0.0], [0.9, 0.2]], np.float32), ["dog", "dog"])
    >>> learner.predict(np.array([[0.2, 0.8], [0.8, 0.1]], np.float32))
    ['cat', 'dog']
    """

    def __init__(self, memory: Memory, head: Head, scale: FeatureScale) -> None:
        self.memory = memory
        self.scale = scale
        self._head = head

    def learn(self, features_Bd: FeaturesBd, labels: Sequence[str]) -> None:
        """Learns a batch; B may be 0. Raises InputError for wrong shapes, labels, NaN or infinity: nothing is learned.

        A feature beyond the scale's range saturates (the scale has headroom for that).
        """
        self.memory.integrate(self.scale.quantise(self._checked(features_Bd)), labels)

    def head(self, hint: float | None = None) -> LinearHead:
        """The classifier now. `hint`: an earlier head's regularization, for a quick solve (see Head).

        Raises PreconditionError (reason EMPTY_MEMORY) where nothing has been learned.
        """
        return self._head.solve(self.memory.sums, self.scale, hint=hint)

    def predict(self, features_Bd: FeaturesBd) -> list[str]:
        """Label of each sample by the classifier now. It solves anew; for many calls keep `head()`."""
        head = self.head()
        return [head.labels[index] for index in head.scores(self._checked(features_Bd)).argmax(axis=1)]

    def _checked(self, features_Bd: FeaturesBd) -> FeaturesBd:
        dim = self.scale.step_d.size
        if features_Bd.ndim != 2 or features_Bd.shape[1] != dim:
            raise InputError(f"features have shape {features_Bd.shape}; it must be [B, {dim}]", field="features")
        if not np.isfinite(features_Bd).all():
            row = int(np.flatnonzero(~np.isfinite(features_Bd).all(axis=1))[0])
            raise InputError("features are NaN or infinite; they must be finite", field=f"features[{row}]")
        return features_Bd
