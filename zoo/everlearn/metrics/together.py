"""What a record of test-then-train counts of several batches at once, because it costs calls more than arithmetic.

Batches wait, as they were tested, until a pane of the window is full or somebody reads, as each commit does before what
it holds is durable. Counts do not depend on when that is: what is announced of a batch goes by the temperature that was
fitted when its pane began (or, before there was one, with the batch before). Sums of floats depend on it by their
rounding. Axes: B samples, C classes, d features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, repeat
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from everlearn.metrics.confusion import Confusion
from everlearn.metrics.drift import FeatureMoments
from everlearn.metrics.scores import ScoreCounts, ScoredBatch, count
from everlearn.metrics.window import Window
from everlearn.values import FeaturesBd


@dataclass(kw_only=True, slots=True)
class Tested:
    """A batch as it was tested."""

    client: str
    labels: Sequence[str]
    predicted: Sequence[str]
    hits: list[bool]
    scores_BC: npt.NDArray[np.float32] | None
    known: tuple[str, ...]
    """Label of each column of the scores: the same object for every batch that one head tests."""
    features_Bd: FeaturesBd | None


class Together:
    """Not thread-safe. Whoever reads its parts calls `settle` before."""

    def __init__(self, window: int) -> None:
        self.confusion = Confusion()
        self.scores = ScoreCounts()
        self.moments = FeatureMoments()
        self.panes = Window(window)
        self._waiting: list[Tested] = []
        self._columns: tuple[tuple[str, ...], dict[str, int]] = ((), {})
        self.announced: float | None = None
        """The temperature that goes for this pane."""

    def add(self, tested: Tested) -> None:
        """Counts a batch, at the latest with the last one of its pane."""
        self._waiting.append(tested)
        self.panes.take(len(tested.hits))
        is_full = self.panes.is_full
        if is_full or (self.announced is None and tested.scores_BC is not None):
            self.settle()
        self.panes.turn()
        if is_full:
            self.fit()

    def settle(self) -> None:
        """Counts what waits."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        pairs: Counter[tuple[str, str]] = Counter()
        for tested in waiting:
            self.panes.present.cells.update(zip(repeat(tested.client), tested.labels, tested.predicted, strict=False))
            pairs.update(zip(tested.labels, tested.predicted, strict=True))
        self.confusion.add(pairs)
        scored = (tested for tested in waiting if tested.scores_BC is not None)
        for known, some in groupby(scored, attrgetter("known")):
            self._count_scores(list(some), known)
        features = [tested.features_Bd for tested in waiting if tested.features_Bd is not None]
        if features:
            self._count_features(np.concatenate(features))
        if self.announced is None:
            self.fit()

    def fit(self) -> None:
        """What is announced from here on goes by the temperature that is best now."""
        self.announced = self.temperature

    @property
    def temperature(self) -> float | None:
        """Fitted to the window, else to all so far; None while too little is known."""
        return self.panes.temperature() or self.scores.losses.fit()

    def _count_scores(self, waiting: Sequence[Tested], known: tuple[str, ...]) -> None:
        if self._columns[0] is not known:
            self._columns = (known, {label: column for column, label in enumerate(known)})
        column_of = self._columns[1]
        true_B = np.array([column_of.get(label, -1) for tested in waiting for label in tested.labels], np.intp)
        hit_B = np.array([hit for tested in waiting for hit in tested.hits], np.bool_)
        scores_BC = np.concatenate([tested.scores_BC for tested in waiting if tested.scores_BC is not None])
        finite_B = np.isfinite(scores_BC).all(axis=1)
        if not finite_B.all():
            scores_BC, true_B, hit_B = scores_BC[finite_B], true_B[finite_B], hit_B[finite_B]
        batch = ScoredBatch(scores_BC=scores_BC, labels=known, true_B=true_B, hit_B=hit_B)
        count(batch, self.announced, self.scores, self.panes.present.scores)

    def _count_features(self, features_Bd: FeaturesBd) -> None:
        finite_B = np.isfinite(features_Bd).all(axis=1)
        moments = FeatureMoments()
        moments.add(features_Bd if finite_B.all() else features_Bd[finite_B])
        self.moments.merge(moments)
        self.panes.present.moments.merge(moments)
