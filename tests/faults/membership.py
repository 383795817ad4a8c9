"""Membership inference on tier `dp`: can one who holds every file that a model ever was tell whether X was learned?

The observer is the strongest that differential privacy speaks of: it knows all the other samples and the canary, and
reads what was persisted. Against Gaussian noise no guess is better than the likelihood ratio (Neyman &
Pearson 1933), which is what `seen_in_states` is: how far along the canary's own direction the state lies. A weaker one
sees the last head alone (`seen_in_head`).

Worlds with and without the canary are made by the server's own learner and account, and guesses are counted. Whatever
(epsilon, delta) holds, TPR <= e^epsilon FPR + delta, and likewise with the worlds exchanged (Kairouz, Oh & Viswanath
2015, theorem 2.1), so Clopper-Pearson intervals of the two rates bound epsilon from below (Jagielski, Ullman & Oprea
2020). Counting directly needs e^epsilon worlds; of what is claimed to be no more than a Gaussian mechanism of mu,
Phi^-1(TPR) - Phi^-1(FPR) <= mu too, which finds smaller faults (Nasr et al. 2023, section 4).

Axes: N worlds, B samples, C classes, d features.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri
from scipy.stats import beta

from everlearn.learners.noised import LearnedNoised, Noised
from everlearn.privacy.accountant import epsilon_of
from everlearn.privacy.mechanism import SumsMechanism
from everlearn.privacy.noised_sums import NoisedSums
from everlearn.spec.load import parse
from everlearn.spec.model import ModelSpec
from everlearn.values import FeaturesBd, FeatureScale, QuantisedBd
from everlearn_server.engine.batches import Derived
from everlearn_server.engine.budget import Budget

Float = npt.NDArray[np.float64]
LABELS: Final = ("cat", "dog", "newt")
DIM: Final = 12
SCALE: Final = FeatureScale(step_d=np.full(DIM, 2.0**-7, np.float32))
PART: Final = 4
"""Samples of one client in a step; another one sends as many."""
ALPHA: Final = 1e-5
"""Chance that one rate lies outside of its interval: the noise is the system's, no seed makes a test repeat itself."""
FAULTS: Final = ("a third of the noise", "unbounded", "charged once", "a fiftieth of the noise")
CANARY: Final = "canary"


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What guesses came to."""

    claimed: float
    """Epsilon, by the account that is stored."""
    counted: float
    """Epsilon is at least this, whatever the mechanism."""
    gaussian: float
    """Epsilon is at least this, if the mechanism is what it is said to be."""
    releases: int
    """In which the canary was."""

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against the claim."""
        return max(self.counted, self.gaussian) <= self.claimed


class Model:
    """A declaration, the canary's samples in a step, and what the others send."""

    def __init__(self, *, unit: str, epsilon: float, noise: float, steps: int, seed: int = 0) -> None:
        """`steps`: as many as there are; of unit client the canary is refused once its budget is spent."""
        privacy = {"tier": "dp", "unit": unit, "epsilon": epsilon, "delta": 1e-5, "noise": noise}
        if unit == "client":
            privacy["client_samples"] = PART
        self.spec = spec_of(privacy)
        self.steps = steps
        chance = np.random.default_rng(seed)
        self.others_SBd = quantised(chance.normal(0, 2, (steps, PART, DIM)))
        self.labels_SB = [[LABELS[at] for at in row] for row in chance.integers(0, len(LABELS), (steps, PART))]
        rows = self.spec.privacy.client_samples or 1
        self._weights: tuple[Float, Float, Float] | None = None
        # All alike and as long as features can be: nothing that is sent moves the sums farther.
        self.canary_Bd: QuantisedBd = np.repeat(quantised(chance.choice((-8.0, 8.0), (1, DIM))), rows, axis=0)

    @property
    def weights(self) -> tuple[Float, Float, Float]:
        """What the canary adds to n, S and the lower triangle of G, over the variance of the noise."""
        if self._weights is None:
            mechanism = SumsMechanism(scale=SCALE)
            count_C, sum_Cd, lower_dd = mechanism.stds(self.spec.privacy.sample_noise, len(LABELS))
            bounded_Bd = mechanism.bounded(self.canary_Bd).astype(np.float64)
            first_C = np.eye(len(LABELS))[0]
            lower_dd[np.triu_indices(DIM, 1)] = np.inf  # the other half is not there
            gram_dd = bounded_Bd.T @ bounded_Bd / lower_dd**2
            sums_Cd = np.outer(first_C, bounded_Bd.sum(axis=0)) / sum_Cd**2
            self._weights = first_C * len(bounded_Bd) / count_C**2, sums_Cd, gram_dd
        return self._weights

    def world(self, *, member: bool, fault: str = "") -> tuple[NoisedSums, Budget]:
        """The last state that one world left on disk, and its account."""
        learner, budget = learner_of(self.spec, fault), Budget.of(self.spec, 1)
        assert budget is not None, "the tier is dp"
        for step, (rows_Bd, labels) in enumerate(zip(self.others_SBd, self.labels_SB, strict=True)):
            self._send(learner, budget, f"other {step}", step, rows_Bd, labels)  # whose budget is whole
            # Of unit sample one sample is in one release.
            if member and (self.spec.privacy.unit == "client" or not step):
                self._send(learner, budget, CANARY, step, self.canary_Bd, [LABELS[0]] * len(self.canary_Bd))
            learner.release()
            if fault != "charged once" or not step:
                budget.charge()
            else:
                budget._waiting.clear()
        return NoisedSums.from_bytes(learner.to_bytes(), SCALE), budget

    def _send(
        self, learner: Noised, budget: Budget, client: str, step: int, rows_Bd: QuantisedBd, labels: Sequence[str]
    ) -> None:
        batch = Derived(
            client=client, epoch=1, sequence=step + 1, features_Bd=SCALE.restore(rows_Bd), labels=tuple(labels)
        )
        if budget.refusal(batch, None) is None:
            learner.integrate(rows_Bd, labels)
            budget.took(batch)


def audit(model: Model, worlds: int, *, by_head: bool = False, fault: str = "") -> Audit:
    """Guesses in so many worlds with the canary, and as many without it."""
    look = seen_in_head if by_head else seen_in_states
    scores = {
        member: np.array([look(model, model.world(member=member, fault=fault)[0]) for _ in range(worlds)])
        for member in (True, False)
    }
    _, budget = model.world(member=True, fault=fault)
    delta = model.spec.privacy.delta
    assert delta is not None, "a tier fills in all of its options"
    true_rate, false_rate = rates(scores[True], scores[False])
    mu = float(ndtri(true_rate[0]) - ndtri(false_rate[1]))
    unit_of_client = model.spec.privacy.unit == "client"
    return Audit(
        claimed=budget.spent.epsilon,
        counted=counted_epsilon(true_rate, false_rate, delta),
        gaussian=epsilon_of(max(mu, 0.0) ** 2 / 2, delta),
        releases=budget._releases[CANARY] if unit_of_client else 1,
    )


def seen_in_states(model: Model, state: NoisedSums) -> float:
    """The likelihood ratio of the worlds, but for what is the same in all: how far the last state lies along what the
    canary adds, weighed by the noise. Each release has noise of its own of one size, so the last state, their sum, says
    all that the others say together."""
    count_C, sum_Cd, lower_dd = model.weights
    return float(state.count_C @ count_C + np.sum(state.sum_Cd * sum_Cd) + np.sum(state.lower_dd * lower_dd))


def seen_in_head(model: Model, state: NoisedSums) -> float:
    """How sure the head is of the canary's label."""
    solved = LearnedNoised(state, "ridge", "auto").solve().head
    score_C = solved.scores(SCALE.restore(model.canary_Bd[:1]))[0]
    return float(score_C[0] - np.delete(score_C, 0).max())


def rates(members: Float, others: Float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Intervals of the rates at which members and others are taken for members. The threshold is chosen on a quarter
    of the worlds, where it promises most, and judged on the others."""
    few = len(members) // 4
    best, threshold = -math.inf, 0.0
    for candidate in np.quantile(np.concatenate([members[:few], others[:few]]), np.linspace(0.1, 0.9, 17)):
        kept, taken = interval(members[:few] > candidate), interval(others[:few] > candidate)
        promise = float(ndtri(kept[0]) - ndtri(taken[1]))
        if promise > best:
            best, threshold = promise, float(candidate)
    return interval(members[few:] > threshold), interval(others[few:] > threshold)


def interval(guesses: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Of the rate of true ones (Clopper & Pearson 1934), each end right but for ALPHA."""
    true, count = int(guesses.sum()), len(guesses)
    low = float(beta.ppf(ALPHA, true, count - true + 1)) if true else 0.0
    return low, float(beta.ppf(1 - ALPHA, true + 1, count - true)) if true < count else 1.0


def counted_epsilon(true_rate: tuple[float, float], false_rate: tuple[float, float], delta: float) -> float:
    """Epsilon is no less."""
    pairs = (true_rate[0], false_rate[1]), (1 - false_rate[1], 1 - true_rate[0])
    return max([0.0, *(math.log((least - delta) / most) for least, most in pairs if least > delta)])


def learner_of(spec: ModelSpec, fault: str) -> Noised:
    """As the server makes it, or one that does not do what its account says."""
    learner = Noised.of(spec, SCALE)
    share = {"a third of the noise": 1 / 3, "a fiftieth of the noise": 0.02}.get(fault, 1.0)
    learner._noise = learner._next_noise = spec.privacy.sample_noise * share
    if fault == "unbounded":
        bounded: Callable[[QuantisedBd], QuantisedBd] = lambda quantised_Bd: quantised_Bd  # noqa: E731  # typed
        object.__setattr__(learner._sums.mechanism, "bounded", bounded)
    return learner


def spec_of(privacy: dict[str, object]) -> ModelSpec:
    """Of a model of bare tensors."""
    read = {"modality": "tensor", "shape": [DIM], "range": [-16.0, 16.0]}
    privacy = {"min_samples": PART, **privacy}
    spec = {"backbone": {"source": "identity"}, "input": read, "labels": LABELS, "privacy": privacy}
    return parse(json.dumps({"metadata": {"name": "audited"}, "spec": spec})).spec


def quantised(values: Float) -> QuantisedBd:
    """On the grid; any number of axes before d."""
    rows_Bd: FeaturesBd = values.reshape(-1, DIM).astype(np.float32)
    return SCALE.quantise(rows_Bd).reshape(values.shape)
