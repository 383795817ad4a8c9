"""Which earlier moments of a model go when there are more than are declared."""

from __future__ import annotations

from collections.abc import Sequence


def surplus(samples: Sequence[int], most: int) -> list[int]:
    """Places of those that go; `samples`: learned by each moment, oldest first.

    The oldest stays: without it an erasure begins at the pretrained weights. The newest stays: it was made for who came
    last. Of the others the one goes that is nearest to the one before it, because that is what has to be learned again
    in its place; so those that are left lie about evenly over what was learned.

    >>> surplus([10, 500, 510, 900], 3)
    [2]
    """
    left, gone = list(range(len(samples))), list[int]()
    while len(left) > max(most, 0):
        between = range(1, len(left) - 1)
        at = min(between, key=lambda place: samples[left[place]] - samples[left[place - 1]], default=len(left) - 1)
        gone.append(left.pop(at))
    return sorted(gone)
