"""What Gaussian noise promises: (epsilon, delta) of everything that was released about one person or sample.

Every release here is a Gaussian mechanism: a query that one unit can move by at most 1 / z standard deviations of its
noise. Releases compose exactly: rho = sum of 1 / (2 z^2) (zero-concentrated DP, Bun & Steinke 2016), and all of them
together are no more than one Gaussian mechanism with mu = sqrt(2 rho) (Dong, Roth & Su 2019, corollary 3.3), also where
each next one is chosen knowing the ones before (Smith & Thakurta 2022, theorem 3.1). So epsilon follows without a bound
that is loose anywhere, from the analytic Gaussian mechanism (Balle & Wang 2018, theorem 8). No amplification by
subsampling is claimed: who sends when is no secret and no coin of ours.
"""

from __future__ import annotations

import math
from typing import Final

import scipy

from everlearn.errors import InvalidError

# `scipy.optimize` and `scipy.special` load where they are first named: half a second that only tier dp has to wait.
_LEAST_MU: Final = 1e-8
_MOST_MU: Final = 1e3
_EXACT: Final = 1e-12


def rho_of(noise: float, *, releases: float = 1.0) -> float:
    """What `releases` of noise multiplier `noise` spend.

    >>> rho_of(2.0, releases=8)
    1.0
    """
    if not noise > 0 or not releases >= 0:
        raise InvalidError(f"noise {noise} and releases {releases}; the one must be above 0, the other at least 0")
    return releases / (2 * noise**2)


def delta_of(rho: float, epsilon: float) -> float:
    """The least delta with which epsilon holds: Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu), mu = sqrt(2 rho)."""
    mu = _mu(rho)
    if mu < _LEAST_MU:
        return 0.0
    # In logarithms: e^eps overflows where its factor is nothing.
    far = math.exp(min(epsilon + float(scipy.special.log_ndtr(-mu / 2 - epsilon / mu)), 0.0))
    return max(float(scipy.special.ndtr(mu / 2 - epsilon / mu)) - far, 0.0)


def epsilon_of(rho: float, delta: float) -> float:
    """The least epsilon that holds but with probability `delta`; infinite beyond any use.

    >>> round(epsilon_of(rho_of(3.73), 1e-5), 2)
    1.0
    """
    _check_delta(delta)
    if delta_of(rho, 0.0) <= delta:
        return 0.0
    mu = _mu(rho)
    if mu > _MOST_MU:
        return math.inf
    # zCDP's own bound (Bun & Steinke 2016, proposition 1.3) lies above, so the root is in between.
    most = rho + 2 * math.sqrt(rho * math.log(1 / delta)) + 1.0
    return float(
        scipy.optimize.brentq(lambda epsilon: delta_of(rho, epsilon) - delta, 0.0, most, xtol=_EXACT, rtol=_EXACT)
    )


def rho_within(epsilon: float, delta: float) -> float:
    """The most that may be spent so that (epsilon, delta) still holds."""
    _check_delta(delta)
    if not epsilon > 0:
        raise InvalidError(f"epsilon is {epsilon}; it must be above 0", field="epsilon")
    mu = scipy.optimize.brentq(
        lambda mu: delta_of(mu**2 / 2, epsilon) - delta, _LEAST_MU, _MOST_MU, xtol=_EXACT, rtol=_EXACT
    )
    return float(mu) ** 2 / 2


def noise_within(epsilon: float, delta: float, *, releases: float = 1.0) -> float:
    """The least noise multiplier with which so many releases stay within (epsilon, delta)."""
    return math.sqrt(releases / (2 * rho_within(epsilon, delta)))


def _mu(rho: float) -> float:
    if not rho >= 0:
        raise InvalidError(f"rho is {rho}; it must be at least 0", field="rho")
    return math.sqrt(2 * rho)


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise InvalidError(f"delta is {delta}; it must be above 0 and below 1", field="delta")
