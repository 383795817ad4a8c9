"""What one pass of a stream is worth to a student that comes untrained: real digits, a small residual network below
EfficientNet-Lite0's features. The learner alone, in this process: a server skips what comes faster than it learns.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
import timm
import torch
from tests.benchmarks.scene import Scene, front
from tests.benchmarks.table import Row

from everlearn.backbones.cut import split
from everlearn.backbones.tail import Tail, TailSession
from everlearn.backbones.tail_torch import make_tail
from everlearn.heads import head_for
from everlearn.inputs.front import to_pixels
from everlearn.learners import ClosedForm
from everlearn.learners.gradient.imitation import Imitation
from everlearn.learners.student import StudentWeights
from everlearn.memories import memory_for
from everlearn.spec.model import Backbone, DistillTo
from everlearn.values import FeaturesBd

SIZE, STREAM, BATCH = 96, 1400, 32
STUDENT: Final = "test_resnet"
PASSES = ((2, 1), (4, 1), (12, 1), (4, 2), (12, 6))
"""Steps a batch, and every how many batches one is learned. Twelve on every batch is the default; the last two take a
sixth of its steps, as a student might that a stream leaves behind."""


def measure(scene: Scene, *, quick: bool) -> list[Row]:
    """Agreement on unseen digits after one pass, for some numbers of steps on all batches or on some."""
    torch.set_num_threads(1)
    images, labels_N = scene.digits
    order = np.random.default_rng(0).permutation(len(images))
    told = front(SIZE)
    pixels_Nn = np.stack([to_pixels(images[index], told).reshape(-1) for index in order])
    labels = [f"{labels_N[index]}" for index in order]
    features_Nd = scene.digit_features_Bd[order]
    teacher = ClosedForm(
        memory_for("statistics").create(features_Nd.shape[1], ()), head_for("balanced_ridge"), scene.trunk(SIZE).scale
    )
    teacher.learn(features_Nd[:STREAM], labels[:STREAM])
    tail = _untrained(pixels_Nn[:4])
    return [
        _row(scene, steps, every, tail, teacher, pixels_Nn, features_Nd, labels)
        for steps, every in PASSES[: 1 if quick else None]
    ]


def _untrained(pixels_Nn: FeaturesBd) -> Tail:
    torch.manual_seed(0)
    halves = split(timm.create_model(STUDENT, num_classes=0), None, torch.randn(2, 3, SIZE, SIZE))
    return make_tail(halves, STUDENT, {}, (SIZE, SIZE), blocks=None, activations_Nd=pixels_Nn)


def _row(
    scene: Scene,
    steps: int,
    every: int,
    tail: Tail,
    teacher: ClosedForm,
    pixels_Nn: FeaturesBd,
    features_Nd: FeaturesBd,
    labels: list[str],
) -> Row:
    spent = f"{steps} steps on " + ("each batch" if every == 1 else f"one batch in {every}")
    scene.tell(f"a student, {spent}")
    backbone = Backbone(source="folder:/student.safetensors", sha256="0" * 64, architecture=STUDENT)
    student = Imitation(tail, features_Nd.shape[1], DistillTo(backbone=backbone, steps=steps))
    for start in range(0, STREAM, every * BATCH):
        rows = slice(start, min(start + BATCH, STREAM))
        student.learn(pixels_Nn[rows], features_Nd[rows])
    weights, weight_sd, bias_d = student.weights()
    learned = StudentWeights(
        tail=replace(tail, weights=weights),
        weight_sd=weight_sd,
        bias_d=bias_d,
        steps=student.steps,
        samples=student.samples,
    )
    session, head = TailSession(learned.tail), teacher.head()
    unseen = np.array_split(np.arange(STREAM, len(labels)), 8)
    own_Nd = np.concatenate([session.run(pixels_Nn[rows]) for rows in unseen])
    found_N, wanted_N = learned.under(head).scores(own_Nd).argmax(1), head.scores(features_Nd[STREAM:]).argmax(1)
    truth_N = np.array([head.labels.index(label) for label in labels[STREAM:]])
    parameters = sum(value.numel() for value in timm.create_model(STUDENT, num_classes=0).parameters())
    right = [100 * float((best_N == truth_N).mean()) for best_N in (found_N, wanted_N)]
    return Row(
        group="student",
        what=f"untrained {STUDENT} after one pass of {STREAM} digits at {SIZE} px, {spent}",
        measured=f"{100 * float((found_N == wanted_N).mean()):.1f} % of unseen digits labelled as by its teacher",
        detail=f"{len(truth_N)} unseen digits; right: student {right[0]:.1f} %, teacher {right[1]:.1f} %; "
        f"{student.steps} steps in all, {parameters / 1e6:.2f} M parameters; one seed",
    )
