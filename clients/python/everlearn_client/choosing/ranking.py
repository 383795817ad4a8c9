"""Which of several backbones to take: the cheapest of those that are as good as the best, as far as a sample can tell.

Pure functions of figures. All candidates have answered the same N samples, so two are compared sample by sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from everlearn_client.choosing.comparison import Correct, difference, is_noise, noise_errors, points

SAME_COST = 1.1
"""Two times whose ratio is below this are alike: timings vary that much from run to run."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A backbone and what it has shown."""

    name: str
    correct_N: Correct
    """Whether each sample was predicted right before it was learned; the same samples for all candidates."""
    log_me: float
    h_score: float
    gcv_residual: float
    feature_dim: int
    ms_per_image: float
    """Of the forward pass, on the server."""
    size_bytes: int
    """Trunk and head: what an export weighs."""

    @property
    def accuracy(self) -> float:
        """Share of the tested samples."""
        return float(self.correct_N.mean())


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What to take, and why, in one sentence."""

    name: str
    why: str


def by_accuracy(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Best first; of equals the cheaper."""
    return sorted(candidates, key=lambda each: (-each.accuracy, each.ms_per_image, each.size_bytes, each.name))


def recommend(candidates: Sequence[Candidate]) -> Recommendation:
    """The cheapest of those that the sample cannot tell from the most accurate. `candidates` must not be empty."""
    ranked = by_accuracy(candidates)
    best = ranked[0]
    rivals = len(ranked) - 1
    alike = [each for each in ranked if is_noise(best.correct_N, each.correct_N, comparisons=rivals)]
    noise = noise_errors(rivals)
    chosen = _cheapest(alike)
    shown = f"{chosen.accuracy:.1%} at {chosen.ms_per_image:.3g} ms an image and {chosen.size_bytes / 1e6:.1f} MB"
    if len(ranked) == 1:
        return Recommendation(
            name=chosen.name, why=f"Take {chosen.name}: {shown}; there is nothing to compare it with."
        )
    if chosen is not best:
        ahead, error = difference(best.correct_N, chosen.correct_N)
        found = (
            f"{best.name} is {points(ahead)} better, which is within the noise of {len(best.correct_N)} samples "
            f"(±{points(noise * error)}), and {_dearer(best, chosen)}"
        )
        return Recommendation(name=chosen.name, why=f"Take {chosen.name}: {shown}; {found}.")
    if len(alike) > 1:
        found = f"{len(alike) - 1} more cannot be told from it on {len(best.correct_N)} samples and cost no less"
        return Recommendation(name=chosen.name, why=f"Take {chosen.name}: {shown}; {found}.")
    ahead, error = difference(best.correct_N, ranked[1].correct_N)
    found = f"{points(ahead)} better than the next, {ranked[1].name}, beyond the noise (±{points(noise * error)})"
    return Recommendation(name=chosen.name, why=f"Take {chosen.name}: {shown}; {found}.")


def _cheapest(alike: Sequence[Candidate]) -> Candidate:
    fastest = min(each.ms_per_image for each in alike)
    quick = [each for each in alike if each.ms_per_image <= SAME_COST * fastest]
    return min(quick, key=lambda each: (each.size_bytes, -each.accuracy, each.ms_per_image, each.name))


def _dearer(best: Candidate, chosen: Candidate) -> str:
    if best.ms_per_image > SAME_COST * chosen.ms_per_image:
        return f"takes {best.ms_per_image / chosen.ms_per_image:.1f} times as long"
    return f"weighs {best.size_bytes / chosen.size_bytes:.1f} times as much"
