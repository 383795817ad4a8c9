"""Tier `dp`: what has been spent on whom, charged in the transaction that releases it, and refused past the budget.

One sample with noise s (in units of what it can change) spends rho = 1 / (2 s^2) each time it is released. With unit
`sample` each is in one commit alone, so however many commits there are, that is what is spent on it. With unit
`client` m samples of a client in one commit move it m times as far and spend m^2 / (2 s^2); over commits that adds up,
and a batch whose commit would pass the budget is refused in its turn (a filter on each one's own account: Feldman &
Zrnic 2021).

What is hidden is what was in samples. That a client sent so many and when, is not: streams are numbered and their
watermarks stored, so presence means "with these contents, or with nothing in them" (zero-out adjacency, Kairouz et al.
2021), and grouping by numbers of samples tells nothing. Samples that are refused for what they are were never in the
mechanism's domain: that they were refused is stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from everlearn.errors import EverlearnError, PreconditionError
from everlearn.privacy.accountant import epsilon_of, rho_of, rho_within
from everlearn.spec.model import ModelSpec
from everlearn.spec.privacy import Privacy
from everlearn.values import FeaturesBd
from everlearn_server.engine.batches import Derived
from everlearn_server.store.rows import SpendRow

REASON: Final = "BUDGET_SPENT"
"""Of the refusal of a batch whose client has no budget left for it."""
MODEL: Final = ""
"""Stands for the model as a whole where clients are counted."""
_SLACK: Final = 1 + 1e-9
"""Of rho: sums of floats."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a model has spent, for people."""

    unit: str
    """Whose presence is hidden."""
    budget: float
    """Declared epsilon."""
    delta: float
    """Declared."""
    releases: int
    epsilon: float
    """Of whom most was spent on, at that delta."""
    clients_at_end: int
    """Who have not enough left for another step of `client_samples`."""


class Budget:
    """A guard (see Guard), and the account that a commit takes along. One thread at a time."""

    def __init__(self, privacy: Privacy, *, lineage: int, rows: Iterable[SpendRow] = ()) -> None:
        self._lineage = lineage
        self._waiting: Counter[str] = Counter()
        """Samples of each client since the last commit."""
        self._rho: dict[str, float] = {}
        """Within this lineage."""
        self._releases: Counter[str] = Counter()
        self._earlier: dict[str, float] = {}
        """In lineages before: who was in those is still in what was released then."""
        self._noise = self._next_noise = privacy.sample_noise
        self._take(privacy)
        for row in rows:
            if row.lineage == lineage:
                self._rho[row.client], self._releases[row.client] = row.rho, row.releases
            else:
                self._earlier[row.client] = self._earlier.get(row.client, 0.0) + row.rho

    @classmethod
    def of(cls, spec: ModelSpec, lineage: int, rows: Iterable[SpendRow] = ()) -> Self | None:
        """None where the tier spends nothing."""
        return cls(spec.privacy, lineage=lineage, rows=rows) if spec.privacy.tier == "dp" else None

    def configure(self, privacy: Privacy) -> None:
        """Takes options that change in place. Less noise holds from the release after the next, as in the learner."""
        self._take(privacy)
        self._next_noise = privacy.sample_noise
        self._noise = max(self._noise, self._next_noise) if self._waiting else self._next_noise

    def refusal(self, batch: Derived, scores_BC: npt.NDArray[np.float32] | None) -> EverlearnError | None:
        """See Guard."""
        if self._unit == "sample" or not len(batch.labels):
            return None
        after = self._spent_on(batch.client) + self._cost(self._waiting[batch.client] + len(batch.labels))
        if after <= self._most * _SLACK:
            return None
        spent = epsilon_of(self._spent_on(batch.client), self._delta)
        return PreconditionError(
            f"this batch would spend epsilon {epsilon_of(after, self._delta):.2f} in all on client {batch.client!r}, "
            f"and its budget is {self._epsilon:g} at delta {self._delta:g} (spent so far: {spent:.2f})",
            field="batch",
            reason=REASON,
        )

    def admitted(self, batch: Derived, features_Bd: FeaturesBd) -> FeaturesBd:
        """See Guard; lengths are bounded where the noise is drawn."""
        return features_Bd

    def took(self, batch: Derived) -> None:
        """See Guard."""
        self._waiting[batch.client] += len(batch.labels)

    def charge(self) -> tuple[SpendRow, ...]:
        """What the accounts are once all that waits is released; called once for each commit, before it is written (who
        cannot write ends the process)."""
        charged = {client: samples for client, samples in self._waiting.items() if samples}
        self._waiting.clear()
        if not charged:
            return ()
        if self._unit == "client":
            for client, samples in charged.items():
                self._rho[client] = self._rho.get(client, 0.0) + self._cost(samples)
                self._releases[client] += 1
            most = max(self._rho[client] for client in charged)
        else:
            most = self._cost(1)
        self._noise = self._next_noise
        self._releases[MODEL] += 1
        self._rho[MODEL] = max(self._rho.get(MODEL, 0.0), most)
        clients = charged if self._unit == "client" else ()
        return tuple(
            SpendRow(client=name, releases=self._releases[name], rho=self._rho[name], lineage=self._lineage)
            for name in (MODEL, *clients)
        )

    @property
    def spent(self) -> Spent:
        """What has been released."""
        accounts = [self._spent_on(client) for client in self._rho.keys() | self._earlier.keys() if client != MODEL]
        one = self._cost(self._part)
        most = max(accounts, default=0.0) if self._unit == "client" else self._rho.get(MODEL, 0.0)
        return Spent(
            unit=self._unit,
            budget=self._epsilon,
            delta=self._delta,
            releases=self._releases[MODEL],
            epsilon=epsilon_of(most, self._delta),
            clients_at_end=sum(rho + one > self._most * _SLACK for rho in accounts),
        )

    @property
    def told(self) -> str:
        """What has been spent, in words, for a version's record and its card."""
        spent, whom = self.spent, "each sample" if self._unit == "sample" else "all that any one client sent"
        return (
            f"epsilon {spent.epsilon:.3g} at delta {self._delta:g} for {whom}, of a budget of {self._epsilon:g}, with "
            f"noise in {spent.releases:,} releases before anything was stored or served; not hidden is who sent "
            "samples, how many and when"
        )

    def _take(self, privacy: Privacy) -> None:
        assert privacy.epsilon is not None, "a tier fills in all of its options"
        assert privacy.delta is not None, "likewise"
        assert privacy.unit is not None, "likewise"
        self._epsilon, self._delta, self._unit = privacy.epsilon, privacy.delta, privacy.unit
        self._part = privacy.client_samples or 1
        self._most = rho_within(privacy.epsilon, privacy.delta)

    def _spent_on(self, client: str) -> float:
        return self._rho.get(client, 0.0) + self._earlier.get(client, 0.0)

    def _cost(self, samples: int) -> float:
        return rho_of(self._noise / samples)
