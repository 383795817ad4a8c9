"""What is done to rows and features in a step: dropout, stochastic depth, mixup, augmentation; and no step waits."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from tests.gradient_streams import DIM, SCALE, Tail, learner, recipe, stream
from tests.trained_models import NoWaiting

from everlearn.backbones.cut import split
from everlearn.errors import InvalidError
from everlearn.learners.gradient.batches import Rows, mixed
from everlearn.learners.gradient.depth import Branch, Draws, leave_out
from everlearn.learners.gradient.learner import GradientLearner
from everlearn.learners.gradient.pixels import Pixels
from everlearn.spec.recipe import Augment, Training
from everlearn.values import FeatureScale, FrontConfig, TensorFront


def draws(seed: int = 0) -> Draws:
    return Draws(torch.Generator().manual_seed(seed))


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)
        self.drop_path = torch.nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drop_path(self.layer(x))


def test_a_branch_is_left_out_for_its_share_of_rows_and_the_mean_stays() -> None:
    chance = draws()
    branch, x = Branch(0.3, chance), torch.ones(20_000, 3)
    assert torch.equal(branch(x), x)
    chance.is_on = True
    kept = branch(x)
    assert ((kept == 0).all(1) | (kept > 0).all(1)).all()
    assert float((kept == 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert float(kept.mean()) == pytest.approx(1, abs=0.02)


def test_blocks_are_left_out_the_more_the_higher_they_are() -> None:
    tail = torch.nn.Sequential(Block(), Block(), Block(), Block())
    assert leave_out(tail, 0.4, draws()) == 4
    assert [block.drop_path.rate for block in tail] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    twin = copy.deepcopy(tail)
    assert twin[0].drop_path._draws is tail[0].drop_path._draws


@pytest.mark.parametrize("architecture", ["tf_efficientnet_lite0", "convnext_atto", "vit_tiny_patch16_224", "resnet18"])
def test_the_blocks_of_real_networks_are_found_and_keep_their_names(architecture) -> None:
    model = timm.create_model(architecture, pretrained=False, num_classes=0)
    size = 224 if architecture.startswith("vit") else 64
    tail = split(model, 2, torch.randn(2, 3, size, size)).tail
    for name, parameter in tail.named_parameters():
        # Of some networks a branch begins with nothing to leave out.
        if parameter.ndim == 1 and name.endswith("weight"):
            torch.nn.init.ones_(parameter)
    names = set(tail.state_dict())
    chance = draws()
    inputs_Nn = torch.randn(6, int(np.prod(tail.cut_shape)))
    with torch.no_grad():
        before = tail(inputs_Nn)
        assert leave_out(tail, 0.9, chance) >= 1
        torch.testing.assert_close(tail(inputs_Nn), before)
        chance.is_on = True
        assert not torch.allclose(tail(inputs_Nn), before)
    assert set(tail.state_dict()) == names


def test_a_tail_without_branches_is_refused() -> None:
    for tail in (Tail(), None):
        with pytest.raises(InvalidError) as caught:
            learner(recipe(stochastic_depth=0.1), tail=tail)
        assert caught.value.field == "spec.train.stochastic_depth"


class Residual(Tail):
    def __init__(self, **options: int) -> None:
        super().__init__(**options)
        self.insert(1, Block32())


class Block32(Block):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(32, 32)
        torch.nn.init.eye_(self.layer.weight)


def test_depth_is_drawn_in_steps_only_and_from_the_learners_own_generator() -> None:
    torch.manual_seed(1)
    model = learner(recipe(stochastic_depth=0.5, regularize=({"kind": "distill", "every": 2},)), tail=Residual())
    torch.manual_seed(1)
    state = torch.get_rng_state()
    for quantised_Bd, labels in stream(batches=3):
        model.learn(quantised_Bd, labels)
    assert torch.equal(torch.get_rng_state(), state)
    inputs_Bn = torch.from_numpy(SCALE.restore(quantised_Bd))
    with torch.no_grad():
        assert torch.equal(model.network(inputs_Bn), model.network(inputs_Bn))
        drawn = {model.stepper._forward(inputs_Bn).numpy().tobytes() for _ in range(4)}
    assert len(drawn) == 4


def test_dropout_hides_features_in_steps_only_and_keeps_the_mean() -> None:
    model = learner(recipe(dropout=0.4), labels=("a",))
    with torch.no_grad():
        model.network.top.weight.fill_(1.0)
        inputs_Bd = torch.ones(4000, DIM)
        scores = model.stepper._forward(inputs_Bd)
        whole = model.network(inputs_Bd)
    assert float(scores.std()) > 0
    assert float(scores.mean()) == pytest.approx(float(whole.mean()), rel=0.01)
    # Variance of a mean of 64 scaled Bernoulli draws.
    assert float(scores.std() / whole.mean()) == pytest.approx((0.4 / 0.6 / DIM) ** 0.5, rel=0.05)


def test_mixup_mixes_new_with_new_and_replayed_with_replayed_by_one_share() -> None:
    rows = Rows(inputs_Nn=torch.eye(6), class_N=np.arange(6), new=2, stored_RC=torch.eye(6)[2:])
    assert mixed(rows, 0.0, np.random.default_rng(0)) is rows
    found = mixed(rows, 1.0, np.random.default_rng(0))
    partner = found.partner_N.tolist()
    assert sorted(partner[:2]) == [0, 1]
    assert sorted(partner[2:]) == [2, 3, 4, 5]
    assert 0 < found.weight < 1
    for row, other in enumerate(partner):
        expected = found.weight * torch.eye(6)[row] + (1 - found.weight) * torch.eye(6)[other]
        torch.testing.assert_close(found.inputs_Nn[row], expected)
        if row >= 2:
            torch.testing.assert_close(found.stored_RC[row - 2], expected)


FRONT = FrontConfig(height=4, width=6, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def pixel_rows(rows: int = 8, replayed: int = 3) -> tuple[Rows, torch.Tensor]:
    pixels = torch.rand(rows + replayed, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(part)[:, None, None] for part in (FRONT.mean, FRONT.std))
    inputs_Nn = ((pixels - mean) / std).flatten(1)
    return Rows(inputs_Nn=inputs_Nn, class_N=np.arange(rows + replayed), new=rows), pixels


def test_pixels_are_varied_as_pixels_and_replayed_rows_stay() -> None:
    rows, pixels = pixel_rows()
    varied = Pixels(FRONT, Augment(flip=1.0), draws()).varied(rows)
    mean, std = (torch.tensor(part)[:, None, None] for part in (FRONT.mean, FRONT.std))
    seen = varied.inputs_Nn.reshape(-1, 3, 4, 6) * std + mean
    torch.testing.assert_close(seen[:8], pixels[:8].flip(3))
    assert torch.equal(varied.inputs_Nn[8:], rows.inputs_Nn[8:])
    assert varied.partner_N is None


@pytest.mark.parametrize("way", ["mixup", "cutmix"])
def test_mixed_pixels_carry_their_partners_and_shares(way) -> None:
    rows, _ = pixel_rows()
    varied = Pixels(FRONT, Augment(**{way: 1.0}), draws()).varied(rows)
    assert sorted(varied.partner_N[:8].tolist()) == list(range(8))
    assert varied.partner_N[8:].tolist() == [8, 9, 10]
    assert varied.weight.shape == (11,)
    assert varied.weight[8:].tolist() == [1.0] * 3
    # On average a row is as near to itself and its partner as the shares say.
    if way == "mixup":
        expected = torch.lerp(rows.inputs_Nn[varied.partner_N], rows.inputs_Nn, varied.weight[:, None])
        torch.testing.assert_close(varied.inputs_Nn, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("front", [None, TensorFront(shape=(72,), low=(0.0,), high=(1.0,)), FRONT])
def test_only_pixels_are_varied(front) -> None:
    with pytest.raises(InvalidError) as caught:
        GradientLearner.create(dim=DIM, labels=[], scale=SCALE, recipe=recipe(augment=Augment(flip=0.5)), front=front)
    assert caught.value.field == "spec.train.augment"


def test_a_network_learns_from_varied_pixels_and_goes_on_to_the_same_bits() -> None:
    scale = FeatureScale(step_d=np.full(72, 0.01, np.float32))
    declared = recipe(memory={"kind": "none"}, augment=Augment(flip=0.5, crop_padding_px=1, cutmix=1.0))
    common = {"scale": scale, "recipe": declared, "front": FRONT}
    whole = GradientLearner.create(dim=72, labels=[], **common)
    batches = []
    for seed in range(4):
        random = np.random.default_rng(seed)
        labels = [str(each) for each in random.integers(2, size=16)]
        base = np.array([[0.9] if label == "1" else [-0.9] for label in labels], np.float32)
        batches.append((scale.quantise(base + random.normal(0, 0.2, (16, 72)).astype(np.float32)), labels))
    whole.learn(*batches[0])
    parts = GradientLearner.from_bytes(whole.to_bytes(), **common)
    for batch in batches[1:]:
        assert whole.learn(*batch) == parts.learn(*batch)
    assert whole.to_bytes() == parts.to_bytes()


def test_mixing_twice_is_refused_when_declared() -> None:
    with pytest.raises(ValueError, match="leave one out"):
        Training(mixup=0.2, augment=Augment(cutmix=1.0))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": {"kind": "er_ace", "logit_adjustment": 1.0}},
        {"memory": {"kind": "latents", "logits": True}, "loss": {"kind": "der"}},
        {"dropout": 0.2, "mixup": 0.4, "ema": 0.9, "stochastic_depth": 0.2, "optimizer": {"l1": 1e-4}},
        {"regularize": tuple({"kind": kind, "every": 2} for kind in ("distill", "ewc", "si", "mas"))},
    ],
)
def test_no_step_waits_for_the_device(options, monkeypatch) -> None:
    model = learner(recipe(**options), tail=Residual())
    batches = list(stream(batches=4))
    for batch in batches[:3]:
        model.learn(*batch)
    taken = model._step

    def watched(rows, competing):
        with NoWaiting():
            taken(rows, competing)

    # On a CPU the guard looks at once; on a GPU it waits until the call has ended.
    monkeypatch.setattr("everlearn.learners.gradient.guards._refuse", lambda loss, norm: None)
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: 0.0)
    monkeypatch.setattr(model, "_step", watched)
    for batch in batches[2:]:
        assert model.learn(*batch).steps == 4
