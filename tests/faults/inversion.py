"""Inversion on tier `aggregate`: who sees two states, one step apart, names the image that it holds to be in it.

The observer knows the trunk and has images of its own, on which it fits a linear decoder from features to pixels
(reference: "linear inversion of a random-ReLU latent": single ones are named always, even with 8 bits and noise). It
decodes what a step adds to a class, per sample, (S' - S) / (n' - n), or what it does to the head's column of that
class, and points at the candidate that looks most like it. It is right where that is the one sample asked for: of k
alike samples of a step no observer that sees their sum alone can do better than 1 / k.

Axes: N images, P pixels, d features, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

from everlearn.heads import head_for
from everlearn.learners import ClosedForm
from everlearn.memories.statistics import Statistics
from everlearn.sums import Sums
from everlearn.values import FeaturesBd, FeatureScale

Float = npt.NDArray[np.float64]
OWN: Final = 1130
"""Images that are the observer's; all others are candidates (667: by chance 0.15 % are named)."""
BEFORE: Final = 400
"""Samples that the model has learned before."""

ALPHA: Final = 0.1
"""Of the heads: regularization, relative to the features' mean square."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What pointing came to."""

    steps: int
    named: int

    @property
    def rate(self) -> float:
        """Of steps whose sample was named."""
        return self.named / self.steps

    def __str__(self) -> str:
        return f"{self.rate:.1%} of {self.steps}"


class Observer:
    """Images, a trunk (random projection and rectifier) and the decoder."""

    def __init__(self, dim: int, *, seed: int = 0) -> None:
        self.chance = np.random.default_rng(seed)
        pixels_NP, digit_N = load_digits(return_X_y=True)
        order = self.chance.permutation(len(digit_N))
        self.pixels_NP: Float = pixels_NP[order] / 16.0
        self.labels = [str(digit) for digit in digit_N[order]]
        projection_Pd = self.chance.normal(0, 1, (64, dim))
        features_Nd = np.maximum(self.pixels_NP @ projection_Pd + self.chance.normal(0, 0.3, dim), 0)
        self.features_Nd: FeaturesBd = features_Nd.astype(np.float32)
        self.scale = FeatureScale(step_d=np.full(dim, features_Nd.max() / 2047, np.float32))
        self.decoder = fitted(self.features_Nd[:OWN].astype(np.float64), self.pixels_NP[:OWN])

    def learner(self) -> ClosedForm:
        """One that has learned of the observer's own world before."""
        sums = Sums(len(self.scale.step_d), [str(digit) for digit in range(10)])
        made = ClosedForm(Statistics(sums), head_for("ridge", regularization=ALPHA), self.scale)
        self.learn(made, list(range(BEFORE)))
        return made

    def learn(self, learner: ClosedForm, rows: list[int]) -> None:
        """Samples of so many rows."""
        learner.integrate(self.scale.quantise(self.features_Nd[rows]), [self.labels[row] for row in rows])

    def some(self, samples: int, *, one_class: bool, own: bool = False) -> list[int]:
        """Rows of a step; it is about the first."""
        start, end = (BEFORE, OWN) if own else (OWN, len(self.labels))
        rows = self.chance.permutation(np.arange(start, end))
        if one_class:
            rows = rows[[self.labels[row] == self.labels[rows[0]] for row in rows]]
        assert len(rows) >= samples, "a step is of samples that differ"
        return [int(row) for row in rows[:samples]]

    def named(self, looks_P: Float) -> int:
        """The candidate that looks most like it."""
        return OWN + int(((self.pixels_NP[OWN:] - looks_P) ** 2).sum(axis=1).argmin())

    def from_sums(self, samples: int, *, steps: int, one_class: bool) -> Found:
        """From what lies on disk before and after a step."""
        learner, named = self.learner(), 0
        before = Sums.from_bytes(learner.to_bytes())
        for _ in range(steps):
            rows = self.some(samples, one_class=one_class)
            self.learn(learner, rows)
            after, row = Sums.from_bytes(learner.to_bytes()), int(self.labels[rows[0]])
            added_d = (after.sum_Cd[row] - before.sum_Cd[row]) * self.scale.step_d
            mean_d = added_d / (after.count_C[row] - before.count_C[row])
            named += self.named(np.append(mean_d, 1.0) @ self.decoder) == rows[0]
            before = after
        return Found(steps=steps, named=named)

    def from_heads(self, samples: int, *, steps: int, one_class: bool) -> Found:
        """From the heads served before and after a step. A head is W = (G + a I)^-1 B, so a sample moves it by
        (G + a I)^-1 x times what was wrong with it; the observer takes the moments of its own images for G, and so gets
        back to x but for its length."""
        data, named = self.learner().to_bytes(), 0
        before_dC = self._head(data, []).astype(np.float64)
        own_Nd = self.features_Nd[:OWN].astype(np.float64)
        centred_Nd = own_Nd - own_Nd.mean(axis=0)
        moment_dd = centred_Nd.T @ centred_Nd / OWN
        moment_dd[np.diag_indices_from(moment_dd)] += ALPHA * np.trace(moment_dd) / len(moment_dd)
        decoder = fitted(unit(centred_Nd), self.pixels_NP[:OWN])
        for _ in range(steps):
            rows = self.some(samples, one_class=one_class)
            moved_d = (self._head(data, rows) - before_dC)[:, int(self.labels[rows[0]])]
            # The one asked for was wrong by too little, never by too much: its label's score rises.
            named += self.named(np.append(unit((moment_dd @ moved_d)[None])[0], 1.0) @ decoder) == rows[0]
        return Found(steps=steps, named=named)

    def _head(self, data: bytes, rows: list[int]) -> Float:
        """Weights [d, C] after a step of these rows."""
        learner = ClosedForm(Statistics.from_bytes(data), head_for("ridge", regularization=ALPHA), self.scale)
        self.learn(learner, rows)
        return learner.learned().solve().head.weight_dC.astype(np.float64)

    def spans(self, samples: int, *, steps: int) -> Found:
        """Not inversion but membership, which the tier does not promise to hide: a candidate whose own features are
        known lies in the span of G' - G of fewer samples than features."""
        learner, named = self.learner(), 0
        before_dd = Sums.from_bytes(learner.to_bytes()).gram_dd
        for _ in range(steps):
            rows = self.some(samples, one_class=False)
            self.learn(learner, rows)
            after_dd = Sums.from_bytes(learner.to_bytes()).gram_dd
            values_d, vectors_dd = np.linalg.eigh(after_dd - before_dd)
            span_dk = vectors_dd[:, values_d > 1e-9 * values_d.max()]
            known_Nd = self.scale.quantise(self.features_Nd[OWN:]).astype(np.float64)
            outside_N = np.linalg.norm(known_Nd - known_Nd @ span_dk @ span_dk.T, axis=1)
            named += set(np.flatnonzero(outside_N < 1e-4 * np.linalg.norm(known_Nd, axis=1)) + OWN) == set(rows)
            before_dd = after_dd
        return Found(steps=steps, named=named)


def fitted(features_Nd: Float, pixels_NP: Float) -> Float:
    """A linear decoder [d + 1, P] with an offset, by ridge regression."""
    padded_Nd = np.column_stack([features_Nd, np.ones(len(features_Nd))])
    gram_dd = padded_Nd.T @ padded_Nd
    gram_dd[np.diag_indices_from(gram_dd)] += 1e-6 * np.trace(gram_dd)
    decoder: Float = np.linalg.solve(gram_dd, padded_Nd.T @ pixels_NP)
    return decoder


def unit(rows_Nd: Float) -> Float:
    """Each at length 1."""
    scaled_Nd: Float = rows_Nd / np.linalg.norm(rows_Nd, axis=1, keepdims=True)
    return scaled_Nd
