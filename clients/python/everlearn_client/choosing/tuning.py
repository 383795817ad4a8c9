"""Which of several recipes to take: what is declared, unless another is better beyond the luck of having tried many.

Pure functions of figures; all candidates have answered the same N samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from everlearn_client.choosing.comparison import Correct, difference, is_noise, noise_errors, points
from everlearn_client.choosing.search import Options

_95_PERCENT = 1.96


@dataclass(frozen=True, kw_only=True, eq=False)
class Tried:
    """A recipe and what it has shown."""

    name: str
    options: Options
    """What differs from the declaration; empty for the declared one."""
    correct_N: Correct
    """Whether each sample was predicted right before it was learned; the same samples for all."""
    learn_us: float
    """Microseconds a sample takes the server beyond the backbone, solving left out."""
    memory_bytes: int
    """Of what is kept of the stream."""
    export_bytes: int
    """Trunk and head."""

    @property
    def accuracy(self) -> float:
        """Prequential: of all tested samples."""
        return float(self.correct_N.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % for the accuracy (Wilson 1927)."""
        return wilson(int(self.correct_N.sum()), len(self.correct_N))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What to take, and why, in one sentence."""

    tried: Tried
    why: str


def wilson(correct: int, tested: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927, "Probable inference, the law of succession, and statistical inference").

    >>> [round(end, 3) for end in wilson(50, 100)]
    [0.404, 0.596]
    """
    share, z2 = correct / tested, _95_PERCENT**2
    middle = (share + z2 / (2 * tested)) / (1 + z2 / tested)
    half = _95_PERCENT / (1 + z2 / tested) * math.sqrt(share * (1 - share) / tested + z2 / (4 * tested**2))
    return middle - half, middle + half


def by_accuracy(tried: Sequence[Tried]) -> list[Tried]:
    """Best first; of equals the one declared, then the smaller."""
    return sorted(tried, key=lambda each: (-each.accuracy, bool(each.options), each.export_bytes, each.memory_bytes))


def choose(declared: Tried, drawn: Sequence[Tried]) -> Choice:
    """The declared one, unless some are better beyond the noise: then the smallest that is as good as the best."""
    ranked = by_accuracy([declared, *drawn])
    best, rivals = ranked[0], len(drawn)
    count, noise = len(declared.correct_N), noise_errors(rivals)
    ahead, error = difference(best.correct_N, declared.correct_N)
    if not drawn:
        return Choice(tried=declared, why="Nothing was drawn to compare the declaration with.")
    if best is declared:
        return Choice(
            tried=declared, why=f"Keep what is declared: none of {rivals} others is more accurate on {count} samples."
        )
    if is_noise(best.correct_N, declared.correct_N, comparisons=rivals):
        found = (
            f"the best of {rivals} others, {best.name}, is {points(ahead)} ahead, which is within the noise of {count} "
            f"samples and so many tries (±{points(noise * error)})"
        )
        return Choice(tried=declared, why=f"Keep what is declared: {found}.")
    better = [each for each in drawn if not is_noise(each.correct_N, declared.correct_N, comparisons=rivals)]
    alike = [each for each in better if is_noise(best.correct_N, each.correct_N, comparisons=rivals)]
    taken = min(alike, key=lambda each: (each.export_bytes, each.memory_bytes, -each.accuracy))
    ahead, error = difference(taken.correct_N, declared.correct_N)
    found = f"{points(ahead)} better than what is declared, beyond the noise (±{points(noise * error)})"
    if taken is not best:
        left, _ = difference(best.correct_N, taken.correct_N)
        found += f"; {best.name} is {points(left)} better still, which is within the noise, and larger"
    return Choice(tried=taken, why=f"Take {taken.name}: {found}.")
