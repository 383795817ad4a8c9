"""DP-SGD: each row's part in a gradient is bounded, and the noise on it is what was said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional

from everlearn.errors import InputError
from everlearn.learners.gradient.learner import GradientLearner
from everlearn.learners.gradient.network import LinearTop, Network
from everlearn.learners.gradient.private import PrivateGradients, freeze_statistics
from everlearn.learners.gradient.recipe import Recipe
from everlearn.learners.gradient.released import COUNTS_SHARE, step_noise
from everlearn.privacy.accountant import rho_of
from everlearn.spec.recipe import Optimizer, Training
from everlearn.values import FeatureScale

ROWS, CLASSES = 12, 3


class Tail(nn.Module):  # type: ignore[misc]  # torch's types are skipped, see pyproject
    """Convolution, a norm that keeps statistics, one that does not, a product."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.norm, self.out = nn.LayerNorm(16), nn.Linear(16, 8)

    def forward(self, values_Bn: torch.Tensor) -> torch.Tensor:
        maps = self.act(self.bn(self.conv(values_Bn.reshape(-1, 1, 4, 4))))
        return torch.relu(self.out(self.norm(maps.flatten(1))))


def network(*, tailed: bool) -> Network:
    torch.manual_seed(0)
    made = Network(LinearTop(8 if tailed else 16), Tail() if tailed else None)
    made.grow(torch.zeros(CLASSES, made.top.weight.shape[1]))
    nn.init.normal_(made.top.weight)
    return made


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(ROWS, 16) * torch.linspace(0.1, 3, ROWS)[:, None], torch.arange(ROWS) % CLASSES


def by_hand(made: Network, clip: float) -> list[torch.Tensor]:
    """Row by row with autograd, which knows nothing of Opacus."""
    inputs, classes = rows()
    moving = [parameter for _, parameter in made.moving()]
    summed = [torch.zeros_like(parameter) for parameter in moving]
    for row in range(ROWS):
        loss = functional.cross_entropy(made(inputs[row : row + 1]), classes[row : row + 1])
        parts = torch.autograd.grad(loss, moving)
        length = torch.sqrt(sum(part.square().sum() for part in parts))
        for total, part in zip(summed, parts, strict=True):
            total += part * min(1.0, clip / float(length))
    return [total / ROWS for total in summed]


def filled(made: Network, private: PrivateGradients) -> list[torch.Tensor]:
    inputs, classes = rows()
    private.fill(inputs, lambda logits_nC, part: functional.cross_entropy(logits_nC, classes[part], reduction="sum"))
    return [parameter.grad.clone() for _, parameter in made.moving()]


@pytest.mark.parametrize("tailed", [False, True])
@pytest.mark.parametrize("clip", [0.05, 1.0, 1e6])
def test_without_noise_it_is_the_mean_of_bounded_row_gradients(tailed: bool, clip: float) -> None:
    made = network(tailed=tailed)
    found = filled(made, PrivateGradients(made, noise=0.0, clip=clip))
    plain = network(tailed=tailed)
    if tailed:
        freeze_statistics(plain.tail)
    wanted = by_hand(plain, clip)
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-6)


def test_many_rows_are_taken_in_parts_and_nothing_else_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    made = network(tailed=True)
    private = PrivateGradients(made, noise=0.0, clip=0.5)
    whole = filled(made, private)
    monkeypatch.setattr("everlearn.learners.gradient.private.PART_NUMBERS", 5 * private._size)
    for one, other in zip(filled(made, private), whole, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_statistics_of_other_rows_do_not_learn() -> None:
    made = network(tailed=True)
    PrivateGradients(made, noise=0.0, clip=1.0)
    assert not any(".bn." in name for name, _ in made.moving())
    assert any(".conv." in name for name, _ in made.moving())
    assert not made.tail.bn.training


def test_one_row_moves_the_sum_by_its_bound_at_most_and_one_without_a_finite_gradient_by_nothing() -> None:
    made = network(tailed=True)
    private = PrivateGradients(made, noise=0.0, clip=0.5)
    inputs, classes = rows()

    def summed(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        private.fill(values, lambda logits_nC, part: functional.cross_entropy(logits_nC, labels[part], reduction="sum"))
        return torch.cat([parameter.grad.flatten() for _, parameter in made.moving()]) * len(values)

    others = summed(inputs[1:], classes[1:])
    for row in (inputs[0] * 1e3, torch.full((16,), 1e30), torch.full((16,), float("nan"))):
        moved = summed(torch.cat([row[None], inputs[1:]]), classes) - others
        assert float(moved.norm()) <= 0.5 * 1.0001


@pytest.mark.parametrize("tailed", [False, True])
def test_the_noise_has_the_declared_standard_deviation_in_every_weight(tailed: bool) -> None:
    made = network(tailed=tailed)
    quiet = filled(made, PrivateGradients(made, noise=0.0, clip=0.5))
    loud = PrivateGradients(network(tailed=tailed), noise=3.0, clip=0.5)
    found = []
    for _ in range(40):
        drawn = filled(loud._network, loud)
        found.append(torch.cat([(a - b).flatten() for a, b in zip(drawn, quiet, strict=True)]).numpy() * ROWS / 1.5)
    standard = np.concatenate(found)
    assert 1e-5 < stats.chi2.cdf(float(np.sum(standard**2)), standard.size) < 1 - 1e-5
    assert stats.chi2.cdf(float(np.sum((0.9 * standard) ** 2)), standard.size) < 1e-5  # a tenth less is noticed


def test_steps_and_counts_are_one_release() -> None:
    spent = rho_of(step_noise(2.0, 7), releases=7) + rho_of(2.0 / COUNTS_SHARE**0.5)
    assert spent == pytest.approx(rho_of(2.0))


SCALE = FeatureScale(step_d=np.full(16, 1 / 2047, np.float32))
RECIPE = Recipe(noise=1.0, train=Training(steps=3, optimizer=Optimizer(kind="sgd")))


def learner() -> GradientLearner:
    return GradientLearner.create(dim=16, labels=["a", "b"], scale=SCALE, recipe=RECIPE)


def batch(count: int = 400) -> tuple[np.ndarray, list[str]]:
    random = np.random.default_rng(0)
    kinds = np.arange(count) % 2
    values = random.normal(0, 200, (count, 16)) + np.where(kinds[:, None] == 1, 600, -600)
    return np.clip(values, -2047, 2047).astype(np.int16), ["ab"[kind] for kind in kinds]


def test_a_learner_learns_in_noise_and_tells_neither_loss_nor_exact_counts() -> None:
    made = learner()
    report = made.learn(*batch())
    assert (report.loss, report.gradient_norm, report.tested) == (None, None, 0)
    assert made.samples == 400
    assert made.memory.seen == 0
    found = {tuple(each.count_C) for each in (made, *(_learned() for _ in range(4)))}
    assert len(found) > 1
    values, labels = batch()
    scores = made.head().scores(SCALE.restore(values))
    assert np.mean(scores.argmax(axis=1) == [label == "b" for label in labels]) > 0.95


def _learned() -> GradientLearner:
    made = learner()
    made.learn(*batch())
    return made


def test_noise_is_of_no_seed_and_a_checkpoint_does_not_hold_it() -> None:
    first = learner()
    data = first.to_bytes()
    second = GradientLearner.from_bytes(data, scale=SCALE, recipe=RECIPE)
    first.learn(*batch(20))
    second.learn(*batch(20))
    assert not np.allclose(first.head().weight_dC, second.head().weight_dC)
    again = GradientLearner.from_bytes(first.to_bytes(), scale=SCALE, recipe=RECIPE)
    assert again.releases == 1
    assert np.array_equal(again.head().weight_dC, first.head().weight_dC)


def test_a_label_that_is_not_declared_is_refused_and_nothing_is_learned() -> None:
    made = learner()
    values, _ = batch(2)
    with pytest.raises(InputError, match="not declared"):
        made.learn(values, ["a", "unicorn"])
    assert made.labels == ["a", "b"]
    assert made.releases == 0
