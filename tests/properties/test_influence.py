"""How far heads move when a client's samples are taken out: as the scores of the samples themselves would say."""

from __future__ import annotations

import numpy as np
import pytest
from tests.faults.erasure_run import KINDS, LABELS, Model

from everlearn.contribution import Contribution
from everlearn.errors import PreconditionError
from everlearn.influence import head_change
from everlearn.learners.base import Learned, Learner
from everlearn.truth import LabelSets, Values


class Fleet:
    """A learner of several clients' samples, and what each brought."""

    def __init__(self, kind: str, *, seed: int = 0) -> None:
        self.model, random = Model(kind, dim=6), np.random.default_rng(seed)
        self.batches = {f"client {n}": [self.batch(random) for _ in range(8 + 4 * n)] for n in range(3)}

    def batch(self, random: np.random.Generator) -> Contribution:
        """Features that tell of what is true."""
        made = self.model.batch(random)
        rows = made.quantised_Bd // 4
        if isinstance(made.truth, Values):
            rows[:, :2] += np.int16(100) * made.truth.values_BK.astype(np.int16)
        else:
            sets = made.truth.sets_B if isinstance(made.truth, LabelSets) else [(label,) for label in made.truth]
            for row, labels in zip(rows, sets, strict=True):
                row[[LABELS.index(label) for label in labels]] += 500
        return Contribution(quantised_Bd=rows, truth=made.truth)

    def learner(self, *without: str) -> Learner:
        learner = self.model.learner()
        for client, batches in self.batches.items():
            for batch in batches if client not in without else ():
                learner.integrate(batch.quantised_Bd, batch.truth)
        return learner

    def change(self, client: str) -> float | None:
        whole, left = self.learner().learned(), self.learner(client).learned()
        return head_change(whole, self.model.scale, whole.solve().head, left.solve().head)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_change_of_the_scores_of_all_samples_in_units_of_their_spread(kind: str) -> None:
    fleet = Fleet(kind)
    whole, left = fleet.learner().learned().solve().head, fleet.learner("client 2").learned().solve().head
    features = np.concatenate([each.quantised_Bd for batches in fleet.batches.values() for each in batches])
    real_Bd = fleet.model.scale.restore(features).astype(np.float64)
    before_BC = real_Bd @ whole.weight_dC + whole.bias_C
    known = [left.labels.index(label) for label in whole.labels]
    after_BC = real_Bd @ left.weight_dC[:, known] + left.bias_C[known]
    moved = ((after_BC - before_BC) ** 2).sum(axis=1).mean()
    spread = ((before_BC - before_BC.mean(axis=0)) ** 2).sum(axis=1).mean()
    assert fleet.change("client 2") == pytest.approx(np.sqrt(moved / spread), rel=1e-6)


def test_who_brings_nothing_new_moves_little_and_who_contradicts_moves_much() -> None:
    fleet = Fleet("statistics")
    fleet.batches["echo"] = [batch for batches in fleet.batches.values() for batch in batches]
    fleet.batches["liar"] = [
        Contribution(quantised_Bd=batch.quantised_Bd, truth=("dog",) * batch.samples)
        for batch in fleet.batches["client 2"]
    ]
    changes = {client: fleet.change(client) for client in fleet.batches}
    assert changes["liar"] is not None
    assert changes["echo"] is not None
    assert changes["liar"] > 1.3 * changes["echo"]
    assert changes["liar"] == max(change for change in changes.values() if change is not None)


def test_a_class_that_one_client_alone_brought_counts_as_zero_without_it() -> None:
    fleet = Fleet("statistics")
    batch = fleet.batches["client 0"][0]
    fleet.batches["alone"] = [Contribution(quantised_Bd=batch.quantised_Bd[:1], truth=("fox",))]
    change = fleet.change("alone")
    assert change is not None
    assert 0 < change < 10


def test_scores_that_are_all_alike_have_no_unit_to_measure_in() -> None:
    model = Model("statistics", dim=3)
    learner, rows = model.learner(), np.ones((4, 3), np.int16)
    learner.integrate(rows, ("a", "a", "a", "a"))
    learned = learner.learned()
    head = learned.solve().head
    assert head_change(learned, model.scale, head, head) is None
    assert head_change(model.learner().learned(), model.scale, head, head) is None


def test_what_keeps_no_sums_is_refused() -> None:
    class Other(Learned):
        labels = ()
        count_C = np.zeros(0, np.int64)  # axes

        def digest(self) -> str:
            return ""

        def solve(self, *, hint: float | None = None) -> None:  # type: ignore[override]
            return None

    model = Model("statistics", dim=3)
    learner = model.learner()
    learner.integrate(np.eye(3, dtype=np.int16), ("a", "b", "a"))
    head = learner.learned().solve().head
    with pytest.raises(PreconditionError, match="no sums"):
        head_change(Other(), model.scale, head, head)
