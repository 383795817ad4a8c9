"""A student learns to give its teacher's features, carries on where it was, and takes the teacher's head along."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import timm
import torch
from tests import tiny

from everlearn.backbones.cut import split
from everlearn.backbones.tail import Tail, TailSession
from everlearn.backbones.tail_torch import make_tail
from everlearn.errors import DataLossError, InputError
from everlearn.learners.gradient.imitation import Imitation
from everlearn.learners.student import Student, StudentWeights
from everlearn.spec.model import Backbone, DistillTo
from everlearn.spec.recipe import Optimizer
from everlearn.values import LinearHead
from everlearn_server.engine.students import steps_of

Array = npt.NDArray[np.float32]
SIDE, DIM = 16, 24
DECLARED = DistillTo(
    backbone=Backbone(source="folder:/nowhere.safetensors", sha256="0" * 64, architecture="test_resnet"), steps=2
)


@pytest.fixture(scope="module")
def small() -> Tail:
    """All of a small residual network, untrained."""
    torch.manual_seed(0)
    halves = split(timm.create_model("test_resnet", num_classes=0), None, torch.randn(2, 3, SIDE, SIDE))
    values_Nn = np.random.default_rng(0).normal(size=(4, 3 * SIDE * SIDE)).astype(np.float32)
    return make_tail(halves, "test_resnet", {}, (SIDE, SIDE), blocks=None, activations_Nd=values_Nn)


def batch(number: int) -> tuple[Array, Array]:
    """Pixels of coloured images, and what a teacher that stands still gives for them."""
    images = np.concatenate([tiny.images(8, label, seed=number, side=SIDE) for label in range(4)])
    pixels_Bn = (images.transpose(0, 3, 1, 2).reshape(len(images), -1) / 127.5 - 1).astype(np.float32)
    weight_3d = np.random.default_rng(7).normal(0, 1, (3, DIM)).astype(np.float32)
    colour_B3 = pixels_Bn.reshape(len(images), 3, -1).mean(axis=2)
    return pixels_Bn, np.maximum(colour_B3 @ weight_3d, 0)


def test_a_student_learns_to_give_its_teachers_features(small: Tail) -> None:
    student = Imitation(small, DIM, DECLARED)
    losses = [student.learn(*batch(number)).loss for number in range(25)]
    assert losses[0] > 0.8
    assert losses[-1] < 0.3
    pixels_Bn, features_Bd = batch(99)
    before_Bd = student.learn(pixels_Bn, features_Bd).predicted_Nd
    assert np.mean((before_Bd - features_Bd) ** 2) < 0.4 * features_Bd.var(axis=0).mean(), "before it learned them"


def test_a_student_that_is_taken_up_goes_on_bit_for_bit(small: Tail) -> None:
    one = Imitation(small, DIM, DECLARED)
    for number in range(3):
        one.learn(*batch(number))
    other = Imitation(small, DIM, DECLARED)
    other.restore(one.to_bytes())
    answers = [student.learn(*batch(3)) for student in (one, other)]
    assert np.array_equal(answers[0].predicted_Nd, answers[1].predicted_Nd)
    assert one.to_bytes() == other.to_bytes()
    with pytest.raises(DataLossError, match="cannot be taken up"):
        Imitation(small, DIM + 1, DECLARED).restore(one.to_bytes())


def test_what_ships_is_what_the_student_was(small: Tail) -> None:
    student = Student(small, DIM, DECLARED)
    try:
        for number in range(3):
            student.learn(*batch(number))
        found = student.weights()
        predicted_Bd = student.learn(*batch(3)).predicted_Bd
    finally:
        student.close()
    given_Bd = TailSession(found.tail).run(batch(3)[0]) @ found.weight_sd + found.bias_d
    assert np.abs(given_Bd - predicted_Bd).max() < 1e-3 * np.abs(predicted_Bd).max()


def test_the_next_process_goes_on_from_the_last_checkpoint(small: Tail) -> None:
    student = Student(small, DIM, DECLARED)
    try:
        student.learn(*batch(0))
        student.to_bytes()
        student.learn(*batch(1))
        student.close()
        assert student.learn(*batch(2)).steps == 2 * DECLARED.steps, "the batch between is missed"
    finally:
        student.close()


def test_folding_the_map_into_a_head_changes_no_score(small: Tail) -> None:
    random = np.random.default_rng(0)
    weights = StudentWeights(
        tail=small,
        weight_sd=random.normal(size=(6, DIM)).astype(np.float32),
        bias_d=random.normal(size=DIM).astype(np.float32),
        steps=1,
        samples=1,
    )
    head = LinearHead(
        weight_dC=random.normal(size=(DIM, 3)).astype(np.float32),
        bias_C=random.normal(size=3).astype(np.float32),
        normalise=False,
        labels=("a", "b", "c"),
        regularization=0.1,
    )
    z_Bs = random.normal(size=(5, 6)).astype(np.float32)
    wanted_BC = head.scores(z_Bs @ weights.weight_sd + weights.bias_d)
    assert np.allclose(weights.under(head).scores(z_Bs), wanted_BC, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="unit length"):
        weights.under(LinearHead(**{**vars(head), "normalise": True}))


@pytest.mark.parametrize("option", ["l1", "layer_decay", "weight_decay"])
def test_every_option_of_the_optimizer_moves_the_student_otherwise(small: Tail, option: str) -> None:
    value = 0.5 if option == "layer_decay" else 0.01
    declared = DECLARED.model_copy(update={"optimizer": Optimizer(kind="adamw", **{option: value})})
    found = []
    for each in (DECLARED, declared):
        student = Imitation(small, DIM, each)
        student.learn(*batch(0))
        found.append(student.weights()[1])
    assert not np.array_equal(*found)


def test_a_student_takes_the_steps_declared_unless_it_is_told_another_number(small: Tail) -> None:
    student = Imitation(small, DIM, DECLARED)
    student.learn(*batch(0))
    student.learn(*batch(1), steps=1)
    assert student.steps == 3


@pytest.mark.parametrize(("steps", "at_leisure", "hurried"), [(12, 12, 4), (3, 3, 1), (1, 1, 1)])
def test_a_student_that_falls_behind_takes_a_third_of_its_steps(steps: int, at_leisure: int, hurried: int) -> None:
    declared = DECLARED.model_copy(update={"steps": steps})
    assert [steps_of(declared, waiting) for waiting in (0, 1, 2)] == [at_leisure, hurried, hurried]
