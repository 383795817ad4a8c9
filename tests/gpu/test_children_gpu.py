"""The processes that learn, on a GPU: a first session, a trainer, a student; and what they say when it has no room."""

from __future__ import annotations

import os
import signal
from typing import Any, Final

import numpy as np
import pytest
import timm
import torch
from tests.gpu.device import AFTER_STEPS_BFLOAT16, DEVICE, ON_TORCH

from everlearn.backbones.cut import split
from everlearn.backbones.tail import Tail, TailSession
from everlearn.backbones.tail_torch import make_tail
from everlearn.errors import UnavailableError
from everlearn.learners.student import Student
from everlearn.learners.trainer import Trainer, TrainerSettings, fit_of
from everlearn.spec.model import Backbone, DistillTo, ModelSpec
from everlearn.values import FeaturesBd, FeatureScale

pytestmark = ON_TORCH
SIDE = 32
LEFT_BYTES: Final = 256 << 20
"""Of a GPU that is full: a process of CUDA's needs more to begin with."""
SETTINGS = TrainerSettings(device=DEVICE)
SOURCE = {"source": "hf://timm/x", "revision": "0" * 40}
Cut = tuple[Tail, FeaturesBd, list[str]]


def cut_of(blocks: int | None) -> Cut:
    """The upper end of a small network, or all of it; values that enter it, some of them larger for one class."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    halves = split(timm.create_model("test_resnet", num_classes=0), blocks, torch.randn(2, 3, SIDE, SIDE))
    label_N = random.integers(0, 2, 96)
    size = int(np.prod(halves.tail.cut_shape))
    larger_n = random.random(size) < 0.2
    values_Nn = (np.abs(random.normal(0, 1, (96, size))) * (1 + label_N[:, None] * larger_n)).astype(np.float32)
    tail = make_tail(halves, "test_resnet", {}, (SIDE, SIDE), blocks=blocks, activations_Nd=values_Nn[:4])
    return tail, values_Nn, [f"c{label}" for label in label_N]


@pytest.fixture(scope="module")
def cut() -> Cut:
    return cut_of(1)


def spread(tail: Tail, values_Nn: FeaturesBd, labels: list[str]) -> float:
    """Distance of the classes' mean directions relative to what is left within them."""
    features_Nd = TailSession(tail).run(values_Nn)
    features_Nd /= np.linalg.norm(features_Nd, axis=1, keepdims=True)
    is_first_N = np.array(labels) == "c0"
    apart_d = features_Nd[is_first_N].mean(axis=0) - features_Nd[~is_first_N].mean(axis=0)
    along_N = features_Nd @ apart_d
    within = np.concatenate([along_N[mask] - along_N[mask].mean() for mask in (is_first_N, ~is_first_N)])
    return float((along_N[is_first_N].mean() - along_N[~is_first_N].mean()) / within.std())


@pytest.mark.parametrize("adapt", [{}, {"rank": 2}], ids=["blocks", "adapters"])
def test_a_first_session_fits_its_blocks(cut: Cut, adapt: dict[str, Any]) -> None:
    tail, values_Nn, labels = cut
    session = {"kind": "first_session", "blocks": 1, "epochs": 10, **adapt}
    spec = ModelSpec.model_validate({"backbone": SOURCE, "recipe": "first_session_analytic", "adapt": session})
    scale = FeatureScale(step_d=np.full(tail.input_dim, 2.0**-7, np.float32))
    fitted = fit_of(spec, scale, SETTINGS)(tail, values_Nn, labels)
    assert spread(fitted, values_Nn, labels) > spread(tail, values_Nn, labels)


def trainer(cut: Cut, settings: TrainerSettings, **axes: Any) -> Trainer:
    scale = FeatureScale(step_d=np.full(cut[0].input_dim, 2.0**-8, np.float32))
    spec = ModelSpec.model_validate(
        {
            "backbone": SOURCE,
            "adapt": {"kind": "last_blocks"},
            "head": {"kind": "linear"},
            "memory": {"kind": "latents", "capacity": 64},
            "retention": {"features": "latents"},
            **axes,
        }
    )
    return Trainer(spec, scale, tail=cut[0], settings=settings)


def teach(learner: Trainer, cut: Cut) -> None:
    _, values_Nn, labels = cut
    for start in range(0, 64, 16):
        rows = slice(start, start + 16)
        learner.integrate(learner._scale.quantise(values_Nn[rows]), labels[rows])


def test_a_trainer_learns_what_one_on_the_cpu_learns_and_another_takes_over_from_its_checkpoint(cut: Cut) -> None:
    scores = []
    for settings in (TrainerSettings(), SETTINGS):
        learner = trainer(cut, settings)
        try:
            teach(learner, cut)
            learner.to_bytes()
            teach(learner, cut)
            killed(learner)  # the next process gets the checkpoint and the batches since
            solution = learner.learned().solve()
            assert solution.tail is not None
            scores.append(solution.head.scores(TailSession(solution.tail).run(cut[1])))
        finally:
            learner.close()
    arrived = list(dict.fromkeys(cut[2]))
    right = [
        float(np.mean([arrived[best] == label for best, label in zip(s.argmax(1), cut[2], strict=True)]))
        for s in scores
    ]
    assert min(right) > 0.8
    assert np.abs(scores[0] - scores[1]).mean() < AFTER_STEPS_BFLOAT16 * np.abs(scores[0]).mean()


def killed(learner: Trainer) -> None:
    assert learner._child is not None
    os.kill(learner._child.pid, signal.SIGKILL)
    learner._child._process.wait(timeout=30)


def test_a_student_imitates_and_goes_on_from_its_checkpoint() -> None:
    tail, values_Nn, _ = cut_of(None)
    weight_nd = np.random.default_rng(7).normal(0, 0.02, (values_Nn.shape[1], 24)).astype(np.float32)
    features_Nd = np.maximum(values_Nn @ weight_nd, 0)
    declared = DistillTo(
        backbone=Backbone(source="folder:/nowhere.safetensors", sha256="0" * 64, architecture="test_resnet"), steps=4
    )
    student = Student(tail, 24, declared, settings=SETTINGS)
    try:
        losses = [student.learn(values_Nn[:32], features_Nd[:32]).loss for _ in range(8)]
        assert losses[-1] < 0.7 * losses[0]
        student.to_bytes()
        student.close()
        found = student.learn(values_Nn[:32], features_Nd[:32])
        assert found.steps == 36
        assert found.loss < 0.8 * losses[0]
        weights = student.weights()
    finally:
        student.close()
    given_Nd = TailSession(weights.tail).run(values_Nn[:32]) @ weights.weight_sd + weights.bias_d
    assert np.corrcoef(given_Nd.ravel(), features_Nd[:32].ravel())[0, 1] > 0.5


@pytest.mark.skipif(DEVICE != "cuda", reason="a CPU's memory is not ours to fill")
def test_a_gpu_without_room_is_an_answer_and_what_was_learned_is_kept(cut: Cut) -> None:
    learner = trainer(cut, SETTINGS)
    try:
        teach(learner, cut)
        learner.to_bytes()
        before = learner.learned().digest()
        killed(learner)
        filler = []
        while (free_bytes := torch.cuda.mem_get_info()[0]) > LEFT_BYTES:
            filler.append(torch.empty(free_bytes - LEFT_BYTES // 2, dtype=torch.uint8, device=DEVICE))
        try:
            with pytest.raises(UnavailableError, match=r"(?i)out of memory"):
                teach(learner, cut)
        finally:
            filler.clear()
            torch.cuda.empty_cache()
        assert learner.learned().digest() == before
        teach(learner, cut)
        assert learner.samples == 128
    finally:
        learner.close()
