"""Which rows a bounded memory keeps and gives back: fair shares, and priorities that can be recomputed.

Axes: C classes, N rows, R rows that are given back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.int32] | Ints

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)


def even_shares(wanted_C: Ints, total: int) -> Ints:
    """Fills classes level by level until `total` is given out; what one does not want goes to the others.

    One row more of a class never gives another class more, which is what keeps a reservoir uniform while shares
    shrink. A level that does not suffice for all goes to the first, so where there are more classes than `total` the
    oldest keep a row each: new ones are in the stream, old ones only here.

    >>> even_shares(np.array([9, 1, 9]), 6).tolist()
    [3, 1, 2]
    """
    ascending_C = np.sort(wanted_C)
    if ascending_C.sum() <= total:
        return wanted_C.astype(np.int64)
    # needed[i]: rows given out once every class has as many as the i-th smallest wants.
    before_C = np.concatenate([[0], np.cumsum(ascending_C)[:-1]])
    above_C = np.arange(len(wanted_C), 0, -1)
    served = int(np.searchsorted(before_C + above_C * ascending_C, total, side="right"))
    level, extra = divmod(total - int(before_C[served]), int(above_C[served]))
    share_C: Ints = np.minimum(wanted_C, level).astype(np.int64)
    share_C[np.flatnonzero(wanted_C > level)[:extra]] += 1
    return share_C


def priority(arrival_N: Ints) -> npt.NDArray[np.uint64]:
    """A random 64-bit number for each arrival: output number n of SplitMix64 (Steele, Lea & Flood 2014, fig. 17).

    The generator's state is its counter, so the number of rows seen is all there is to store, and a batch that is
    replayed after a crash meets the same numbers.
    """
    mixed_N = (arrival_N.astype(np.uint64) + np.uint64(1)) * _GOLDEN
    mixed_N = (mixed_N ^ (mixed_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed_N = (mixed_N ^ (mixed_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed_N ^ (mixed_N >> np.uint64(31))


def surplus(class_N: Numbers, arrival_N: Ints, share_C: Ints) -> Ints:
    """Rows beyond their class's share: those of highest priority number, whatever came first.

    Keeping the k lowest of independent random numbers is a uniform choice of k, of any k that only shrinks; it is
    Vitter's reservoir (1985, algorithm R) drawn with sort keys (Fan, Muller & Rezucha 1962).
    """
    over_C = np.bincount(class_N, minlength=len(share_C)) > share_C
    rows = np.flatnonzero(over_C[class_N])
    if not rows.size:
        return rows
    rows = rows[np.lexsort((priority(arrival_N[rows]), class_N[rows]))]
    return rows[rank_in_class(class_N[rows]) >= share_C[class_N[rows]]]


def rank_in_class(sorted_N: Numbers) -> Ints:
    """0, 1, 2 ... within each run of equal numbers."""
    starts = np.flatnonzero(np.concatenate([[True], sorted_N[1:] != sorted_N[:-1]]))
    runs = np.diff(np.append(starts, len(sorted_N)))
    return np.arange(len(sorted_N)) - np.repeat(starts, runs)


def beyond_clients(client_N: Numbers, class_N: Numbers, arrival_N: Ints, limit: int) -> Ints:
    """Rows beyond `limit` of a client: of its largest classes first, and of those a uniform choice."""
    gone = [np.empty(0, np.int64)]
    for client in np.flatnonzero(np.bincount(client_N) > limit) if len(client_N) else ():
        rows = np.flatnonzero(client_N == client)
        share_C = even_shares(np.bincount(class_N[rows]), limit)
        gone.append(rows[surplus(class_N[rows], arrival_N[rows], share_C)])
    return np.concatenate(gone)


@dataclass(frozen=True)
class ByClass:
    """Where the rows of each class are."""

    row_N: Ints
    """Rows class by class."""
    start_C: Ints
    """Where a class begins in them."""
    size_C: Ints

    @classmethod
    def of(cls, class_N: Numbers, classes: int) -> ByClass:
        """An index of these rows."""
        size_C = np.bincount(class_N, minlength=classes)
        return cls(np.argsort(class_N, kind="stable"), np.cumsum(size_C) - size_C, size_C)

    def draw(self, count: int, random: np.random.Generator) -> tuple[Ints, Ints]:
        """`count` draws: the class and the row of each, [R]."""
        class_R, place_R = balanced(self.size_C, count, random)
        return class_R, self.row_N[self.start_C[class_R] + place_R]


def balanced(size_C: Ints, count: int, random: np.random.Generator) -> tuple[Ints, Ints]:
    """`count` draws, as many of each class that has rows (the odd ones of classes at random).

    Returns the class and the place within it, [R] each. A class is cut into as many strata as it is drawn, and one
    place is drawn in each: every place is equally likely, and hardly one comes twice while another is left out.
    """
    present = np.flatnonzero(size_C)
    if not present.size or count < 1:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    each, odd = divmod(count, present.size)
    draws = np.full(present.size, each)
    draws[random.permutation(present.size)[:odd]] += 1
    class_R = np.repeat(present, draws)
    stratum_R = rank_in_class(class_R) + random.random(count)
    size_R = size_C[class_R]
    place_R = (stratum_R * size_R / np.repeat(draws, draws)).astype(np.int64)
    return class_R, np.minimum(place_R, size_R - 1)
