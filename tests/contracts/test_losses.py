"""What every loss must do, whatever file it lives in; and the equations of the papers, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gradient_streams import accuracy, learner, recipe, stream
from tests.trained_models import NoWaiting
from torch.nn import functional

import everlearn.learners.gradient.losses
from everlearn import plugins
from everlearn.errors import SpecError
from everlearn.learners.gradient.losses import loss_for
from everlearn.learners.gradient.losses.base import DenseLoss, Loss, Scored, SoftmaxLoss
from everlearn.spec.recipe import Loss as Declared

KINDS = plugins.kinds(everlearn.learners.gradient.losses)
few = settings(max_examples=25, deadline=None)
SEED = st.integers(0, 2**16)


def made(kind: str, **options: object) -> Loss:
    return loss_for(Declared.model_validate({"kind": kind, **options}))


def scored(*, rows: int = 12, new: int = 4, classes: int = 5, seed: int = 0, **more: object) -> Scored:
    """New rows are of the last two classes, replayed ones of any."""
    random = torch.Generator().manual_seed(seed)
    class_B = torch.cat(
        [
            torch.randint(classes - 2, classes, (new,), generator=random),
            torch.randint(classes, (rows - new,), generator=random),
        ]
    )
    present_S = torch.zeros(classes, dtype=torch.bool)
    present_S[class_B[:new]] = True
    logits_BS = torch.randn(rows, classes, generator=random).requires_grad_()
    return Scored(logits_BS=logits_BS, class_B=class_B, new=new, present_S=present_S, **more)


def mixing(given_: Scored, weight: float | torch.Tensor) -> Scored:
    """Each row mixed with the next of its kind."""
    own = given_.class_B
    return replace(given_, partner_B=torch.cat([own[: given_.new].roll(1), own[given_.new :].roll(1)]), weight=weight)


def entropies(logits_BS: torch.Tensor, class_B: torch.Tensor) -> list[float]:
    """Cross-entropy of each row, number by number."""
    found = []
    for row, place in zip(logits_BS.tolist(), class_B.tolist(), strict=True):
        largest = max(row)
        found.append(largest + math.log(sum(math.exp(each - largest) for each in row)) - row[place])
    return found


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_the_documented_losses_are_there() -> None:
    assert {"cross_entropy", "er_ace", "der", "binary_cross_entropy", "mse", "huber", "cosine"} <= {*KINDS}


def test_an_unknown_loss_is_refused_by_field() -> None:
    with pytest.raises(SpecError, match="cross_entropy") as caught:
        loss_for(Declared.model_construct(kind="hinge"))
    assert caught.value.field == "spec.loss.kind"


@pytest.mark.parametrize("kind", KINDS)
class TestEveryLoss:
    @few
    @given(seed=SEED, rows=st.integers(2, 9), classes=st.integers(2, 6), replayed=st.booleans())
    def test_is_a_finite_scalar_whose_gradient_brings_it_down(self, kind, seed, rows, classes, replayed) -> None:
        given_ = scored(rows=rows, new=max(rows // 2, 1) if replayed else rows, classes=classes, seed=seed)
        loss = made(kind)
        before = loss(given_)
        assert before.shape == ()
        assert before.isfinite()
        assert before >= 0
        (gradient,) = torch.autograd.grad(before, given_.logits_BS)
        assert gradient.isfinite().all()
        # One present class has nothing to compete with.
        if not gradient.any():
            assert kind == "er_ace"
            return
        moved = replace(given_, logits_BS=given_.logits_BS.detach() - 1e-2 * gradient)
        assert float(loss(moved)) < float(before.detach())

    def test_does_not_change_its_inputs_and_never_waits_for_the_device(self, kind) -> None:
        given_ = mixing(scored(stored_RS=torch.full((8, 5), torch.nan)), 0.7)
        before = given_.logits_BS.detach().clone()
        with NoWaiting():
            made(kind)(given_).backward()
        assert torch.equal(given_.logits_BS, before)

    def test_does_not_depend_on_the_order_within_new_and_replayed_rows(self, kind) -> None:
        given_ = scored()
        order = torch.tensor([2, 0, 3, 1, 11, 4, 9, 6, 5, 8, 10, 7])
        other = replace(given_, logits_BS=given_.logits_BS[order], class_B=given_.class_B[order])
        torch.testing.assert_close(made(kind)(other), made(kind)(given_))

    def test_mixed_with_itself_a_row_is_itself_and_by_half_it_does_not_matter_who_comes_first(self, kind) -> None:
        given_, loss = scored(), made(kind)
        torch.testing.assert_close(loss(mixing(given_, 1.0)), loss(given_))
        turned = mixing(given_, 0.5)
        assert turned.partner_B is not None
        torch.testing.assert_close(
            loss(replace(turned, class_B=turned.partner_B, partner_B=turned.class_B)), loss(turned)
        )

    def test_one_share_for_all_rows_is_that_share_for_each(self, kind) -> None:
        given_ = scored()
        each = made(kind)(mixing(given_, torch.full((12,), 0.3)))
        torch.testing.assert_close(each, made(kind)(mixing(given_, 0.3)))

    def test_learns_real_digits_class_after_class(self, kind) -> None:
        memory = {"kind": "latents", "logits": kind == "der"}
        optimizer = {"learning_rate": 0.002} if kind in ("mse", "huber") else {}
        model = learner(recipe(loss={"kind": kind}, memory=memory, optimizer=optimizer))
        for quantised_Bd, labels in stream():
            model.learn(quantised_Bd, labels)
        assert accuracy(model) > 0.85


@few
@given(seed=SEED, smoothing=st.floats(0, 0.5), tau=st.floats(0, 2))
def test_cross_entropy_by_hand(seed, smoothing, tau) -> None:
    log_share_S = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1]).log()
    given_ = scored(seed=seed, log_share_S=log_share_S if tau else None)
    raised_BS = given_.logits_BS.detach() + tau * log_share_S
    each_class = [entropies(raised_BS, torch.full((12,), place)) for place in range(5)]
    hard = entropies(raised_BS, given_.class_B)
    even = [mean([losses[row] for losses in each_class]) for row in range(12)]
    expected = mean([(1 - smoothing) * h + smoothing * e for h, e in zip(hard, even, strict=True)])
    found = made("cross_entropy", label_smoothing=smoothing, logit_adjustment=tau)(given_)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-4)


def test_logit_adjustment_is_the_papers_loss_of_a_balanced_classifier() -> None:
    # Menon 2021, eq. 10 with tau 1: log(1 + sum over others of (pi_other / pi_own) * exp(f_other - f_own)).
    share = [0.6, 0.3, 0.05, 0.03, 0.02]
    given_ = scored(log_share_S=torch.tensor(share).log())
    expected = []
    for row, own in zip(given_.logits_BS.tolist(), given_.class_B.tolist(), strict=True):
        others = (share[k] / share[own] * math.exp(row[k] - row[own]) for k in range(5) if k != own)
        expected.append(math.log(1 + sum(others)))
    found = made("cross_entropy", logit_adjustment=1.0)(given_)
    assert float(found.detach()) == pytest.approx(mean(expected), rel=1e-5)


@few
@given(seed=SEED)
def test_er_ace_by_hand(seed) -> None:
    given_ = scored(seed=seed)
    assert given_.present_S is not None
    here = given_.present_S.nonzero().flatten().tolist()
    among = given_.logits_BS.detach()[:4][:, here]
    places = torch.tensor([here.index(each) for each in given_.class_B[:4].tolist()])
    expected = mean(entropies(among, places)) + mean(entropies(given_.logits_BS.detach()[4:], given_.class_B[4:]))
    assert float(made("er_ace")(given_).detach()) == pytest.approx(expected, rel=1e-5)


def test_er_ace_leaves_scores_of_absent_classes_alone_where_cross_entropy_pushes_them_down() -> None:
    for kind, pushed in (("er_ace", False), ("cross_entropy", True)):
        given_ = scored(rows=4, new=4)
        made(kind)(given_).backward()
        assert bool(given_.logits_BS.grad[:, :3].any()) == pushed


@few
@given(seed=SEED, alpha=st.floats(0.05, 2), beta=st.floats(0.05, 2), known=st.integers(0, 5))
def test_der_by_hand(seed, alpha, beta, known) -> None:
    random = torch.Generator().manual_seed(seed)
    stored_RS = torch.randn(8, 5, generator=random)
    stored_RS[:, known:] = torch.nan
    stored_RS[0] = torch.nan
    given_ = scored(seed=seed, stored_RS=stored_RS)
    logits_BS = given_.logits_BS.detach()
    square = [(logits_BS[4 + row, k] - stored_RS[row, k]).item() ** 2 for row in range(1, 8) for k in range(known)]
    expected = mean(entropies(logits_BS[:4], given_.class_B[:4]))
    expected += beta * mean(entropies(logits_BS[4:], given_.class_B[4:])) + alpha * (mean(square) if square else 0)
    loss = made("der", alpha=alpha, beta=beta)(given_)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert given_.logits_BS.grad.isfinite().all()


DENSE = {
    "mse": lambda z, y: (z - y) ** 2,
    "huber": lambda z, y: 0.5 * (z - y) ** 2 if abs(z - y) <= 0.7 else 0.7 * (abs(z - y) - 0.35),
    "binary_cross_entropy": lambda z, y: math.log1p(math.exp(z)) - y * z,
}


@few
@given(seed=SEED, unknown=st.integers(0, 20))
@pytest.mark.parametrize("kind", DENSE)
def test_a_dense_loss_by_hand_leaves_out_what_is_not_known(kind, seed, unknown) -> None:
    random = torch.Generator().manual_seed(seed)
    target_BS = torch.rand(6, 4, generator=random)
    target_BS.view(-1)[torch.randperm(24, generator=random)[:unknown]] = torch.nan
    given_ = scored(rows=6, classes=4, seed=seed, target_BS=target_BS)
    expected = sum(
        DENSE[kind](z, y)
        for z, y in zip(given_.logits_BS.flatten().tolist(), target_BS.flatten().tolist(), strict=True)
        if not math.isnan(y)
    )
    loss = made(kind, **({"delta": 0.7} if kind == "huber" else {}))(given_)
    assert float(loss.detach()) == pytest.approx(expected / 6, rel=1e-4)
    loss.backward()
    assert torch.equal(given_.logits_BS.grad != 0, target_BS.isfinite())


def test_binary_cross_entropy_is_torchs_and_smooths_towards_one_half() -> None:
    target_BS = (torch.rand(12, 5, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    given_ = scored(target_BS=target_BS)
    for smoothing in (0.0, 0.2):
        wanted_BS = target_BS * (1 - smoothing) + smoothing / 2
        expected = functional.binary_cross_entropy(given_.logits_BS.sigmoid(), wanted_BS) * 5
        torch.testing.assert_close(made("binary_cross_entropy", label_smoothing=smoothing)(given_), expected)


def test_cosine_is_one_less_the_cosine_and_blind_to_length() -> None:
    target_BS = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    given_, loss = scored(target_BS=target_BS), made("cosine")
    angles = functional.normalize(given_.logits_BS) * functional.normalize(target_BS)
    torch.testing.assert_close(loss(given_), (1 - angles.sum(1)).mean())
    torch.testing.assert_close(loss(replace(given_, logits_BS=3 * given_.logits_BS)), loss(given_))


def test_options_of_another_kind_are_refused() -> None:
    for kind, option in (("mse", "label_smoothing"), ("cosine", "logit_adjustment"), ("er_ace", "alpha")):
        with pytest.raises(ValueError, match=f"{option} is not an option of {kind}"):
            Declared.model_validate({"kind": kind, option: 0.1})


def test_every_loss_is_of_probabilities_or_of_single_scores_or_of_directions() -> None:
    for kind in KINDS:
        assert isinstance(made(kind), (SoftmaxLoss, DenseLoss)) or kind == "cosine"
