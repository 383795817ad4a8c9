"""Streams: which samples arrive in which order, with which labels, and when one looks how well it goes.

Every stream is one pass in batches of 32. Steps ("experiences") are known to the peers, which need them; everlearn's
learners never see them. Sources: class- and domain-incremental (van de Ven, Tuytelaars & Tolias 2022), blurry
boundaries (Koh et al. 2022, i-Blurry), long tail (Liu et al. 2022), recurring classes (Cossu et al. 2022).

Axes: N samples in order of arrival, T test samples, E looks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from tests.benchmarks.learning.data import Dataset

BATCH = 32
CLASSES = 10
IMBALANCE = 100
"""Samples of the most frequent class per sample of the rarest."""
NOISE = 0.2
"""Share of labels that are wrong."""
BLUR = 0.1
"""Share of samples that arrive in a step that is not theirs."""
TEST_SHARE = 5
"""One in so many samples is for testing."""
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """One stream over a dataset."""

    name: str
    dataset: Dataset
    seed: int
    row_N: Rows
    label_N: Rows
    """As streamed: in the noisy stream some are wrong."""
    step_ends: tuple[int, ...]
    """Samples that have arrived when each step ends."""
    test_T: Rows
    """Rows, none of which arrives."""
    by_domain: bool = False
    """Whether steps bring domains; else they bring classes."""

    @property
    def key(self) -> str:
        """For file names."""
        return f"{self.dataset.name}-{self.name}-{self.seed}".lower()

    @cached_property
    def digest(self) -> str:
        """sha256 of all that a learner is shown and tested on."""
        hashed = hashlib.sha256(repr((self.step_ends, self.looks, BATCH)).encode())
        for part in (self.row_N, self.label_N, self.test_T, self.test_label_T, self.is_held_out_N):
            hashed.update(np.ascontiguousarray(part).tobytes())
        hashed.update(self.dataset.digest.encode())
        return hashed.hexdigest()

    @cached_property
    def is_held_out_N(self) -> npt.NDArray[np.bool_]:  # noqa: N802  # axes
        """A fifth of what arrives, for those who tune: they learn without it and test on it."""
        return np.random.default_rng(1000 + self.seed).random(len(self.row_N)) < 1 / TEST_SHARE

    @cached_property
    def batches(self) -> list[tuple[int, int]]:
        """First sample and end of each batch; a batch does not go over a step's end."""
        starts = (0, *self.step_ends[:-1])
        return [
            (at, min(at + BATCH, end))
            for start, end in zip(starts, self.step_ends, strict=True)
            for at in range(start, end, BATCH)
        ]

    @cached_property
    def looks(self) -> list[int]:
        """Batches learned at each look: some within each step and always its end."""
        each = max(1, round(15 / len(self.step_ends)))
        ends = [index + 1 for index, (_, end) in enumerate(self.batches) if end in self.step_ends]
        found: list[int] = []
        for before, end in zip((0, *ends[:-1]), ends, strict=True):
            found += sorted({before + max(1, round((end - before) * share / each)) for share in range(1, each + 1)})
        return found

    @cached_property
    def step_looks(self) -> list[int]:
        """Indices of those looks that are at a step's end."""
        return [index for index, look in enumerate(self.looks) if self.batches[look - 1][1] in self.step_ends]

    @property
    def test_label_T(self) -> Rows:  # noqa: N802  # axes
        """True labels."""
        return self.dataset.labels_N[self.test_T]

    @cached_property
    def group_T(self) -> Rows:  # noqa: N802  # axes
        """What is learned and could be forgotten: the domain or the class of each test sample."""
        return (self.dataset.domain_N if self.by_domain else self.dataset.labels_N)[self.test_T]

    @cached_property
    def seen_ET(self) -> npt.NDArray[np.bool_]:  # noqa: N802  # axes
        """Whether a test sample's group had arrived by each look."""
        group_N = (self.dataset.domain_N if self.by_domain else self.dataset.labels_N)[self.row_N]
        return np.stack([np.isin(self.group_T, group_N[: self.batches[look - 1][1]]) for look in self.looks])


def build(name: str, dataset: Dataset, seed: int) -> Stream:
    """The stream of that name over classes in an order, and a split, that the seed chooses."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(dataset.labels_N))
    if name == "domain":
        return _domain(dataset, seed, random)
    test, train = order[: len(order) // TEST_SHARE], order[len(order) // TEST_SHARE :]
    pairs = random.permutation(CLASSES).reshape(-1, 2)
    steps, label = _BUILDERS[name](dataset.labels_N, train, pairs, random)
    rows = np.concatenate(steps)
    return Stream(
        name=name,
        dataset=dataset,
        seed=seed,
        row_N=rows,
        label_N=label(rows),
        step_ends=tuple(int(end) for end in np.cumsum([len(step) for step in steps])),
        test_T=test,
    )


Labeller = Callable[[Rows], Rows]
Built = tuple[list[Rows], Labeller]


def _of_classes(labels_N: Rows, rows: Rows, classes: Rows) -> Rows:
    return rows[np.isin(labels_N[rows], classes)]


def _class_incremental(labels_N: Rows, train: Rows, pairs: Rows, random: np.random.Generator) -> Built:
    return [_of_classes(labels_N, train, pair) for pair in pairs], lambda rows: labels_N[rows]


def _blurry(labels_N: Rows, train: Rows, pairs: Rows, random: np.random.Generator) -> Built:
    """A tenth of the samples arrives in another step."""
    step_of_class = np.empty(CLASSES, np.int64)
    step_of_class[pairs.ravel()] = np.repeat(np.arange(len(pairs)), 2)
    step = step_of_class[labels_N[train]]
    moved = random.random(len(train)) < BLUR
    step[moved] = random.integers(0, len(pairs), int(moved.sum()))
    return [train[step == index] for index in range(len(pairs))], lambda rows: labels_N[rows]


def _long_tail(labels_N: Rows, train: Rows, pairs: Rows, random: np.random.Generator) -> Built:
    """n_c falls from the smallest class's size to a hundredth of it, over classes in an order of its own."""
    most = int(np.bincount(labels_N[train]).min())
    counts = np.maximum(1, np.round(most * IMBALANCE ** (-np.arange(CLASSES) / (CLASSES - 1)))).astype(int)
    frequency_order = random.permutation(CLASSES)
    kept = [_of_classes(labels_N, train, np.array([one]))[:n] for one, n in zip(frequency_order, counts, strict=True)]
    rows = random.permutation(np.concatenate(kept))
    return _class_incremental(labels_N, rows, pairs, random)


def _label_noise(labels_N: Rows, train: Rows, pairs: Rows, random: np.random.Generator) -> Built:
    """Classes arrive in pairs; a fifth of the labels is wrong, one of the other classes that have arrived."""
    steps, _ = _class_incremental(labels_N, train, pairs, random)

    def noisy(rows: Rows) -> Rows:
        label_N = labels_N[rows].copy()
        step_N = np.repeat(np.arange(len(steps)), [len(step) for step in steps])
        for at in np.flatnonzero(random.random(len(rows)) < NOISE):
            others = np.setdiff1d(pairs[: step_N[at] + 1].ravel(), [label_N[at]])
            label_N[at] = random.choice(others)
        return label_N

    return steps, noisy


def _recurring(labels_N: Rows, train: Rows, pairs: Rows, random: np.random.Generator) -> Built:
    """Every class comes twice, half of its samples each time, the second time in other company."""
    again = random.permutation(CLASSES).reshape(-1, 2)
    half = random.random(len(train)) < 0.5
    steps = [_of_classes(labels_N, train[half], pair) for pair in pairs]
    return steps + [_of_classes(labels_N, train[~half], pair) for pair in again], lambda rows: labels_N[rows]


_BUILDERS: Mapping[str, Callable[[Rows, Rows, Rows, np.random.Generator], Built]] = {
    "class": _class_incremental,
    "blurry": _blurry,
    "long_tail": _long_tail,
    "noise": _label_noise,
    "recurring": _recurring,
}
TITLES: Mapping[str, str] = {
    "class": "class-incremental, 5 x 2 classes",
    "domain": "domain-incremental: plain, inverted, rotated, blurred and noisy",
    "blurry": "blurry boundaries, 10 % of samples in another step",
    "long_tail": "long tail, imbalance 100, classes in pairs",
    "noise": "class-incremental with 20 % wrong labels",
    "recurring": "recurring classes, each twice in other company",
}


def _domain(dataset: Dataset, seed: int, random: np.random.Generator) -> Stream:
    """Domain after domain, the same digits in each; the same others are tested under every domain."""
    domains = int(dataset.domain_N.max()) + 1
    each = len(dataset.labels_N) // domains
    order = random.permutation(each)
    test, train = order[: each // TEST_SHARE], order[each // TEST_SHARE :]
    rows = np.concatenate([domain * each + random.permutation(train) for domain in range(domains)])
    return Stream(
        name="domain",
        dataset=dataset,
        seed=seed,
        row_N=rows,
        label_N=dataset.labels_N[rows],
        step_ends=tuple(len(train) * (domain + 1) for domain in range(domains)),
        test_T=np.concatenate([domain * each + test for domain in range(domains)]),
        by_domain=True,
    )
