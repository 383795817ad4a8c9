"""Which axes of a recipe compose, and why others do not: refused before anything runs, with the field to change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from everlearn.values import Task

if TYPE_CHECKING:
    from everlearn.spec.model import ModelSpec

GRADIENT_HEADS = frozenset({"linear", "cosine"})
"""Heads that learn by gradient steps; every other is solved from the memory."""
MOVING = frozenset({"last_blocks", "lora", "full"})
"""Adaptations that go on for as long as a model learns."""


HEADS_OF: Mapping[Task, tuple[str, ...]] = {
    "multilabel": ("ridge", "balanced_ridge", "linear"),
    "regression": ("ridge", "linear"),
}
"""Heads that a task with several targets a sample takes, its default first; classification takes all."""
LOSSES_OF: Mapping[Task, tuple[str, ...]] = {"multilabel": ("binary_cross_entropy",), "regression": ("huber", "mse")}
"""Likewise. Scores of `multilabel` are probabilities, which other losses do not give; `cosine` leaves the size of a
value open."""
PENALTIES_ON_CLASSES = frozenset({"distill", "ewc"})
"""Those that read scores as one softmax."""


_SCORES: Mapping[Task, str] = {"multilabel": "probabilities of each label", "regression": "values"}


def wrong_for_task(task: Task, axis: str, kind: str, decay: float | None) -> str | None:
    """Why a task cannot take a choice of `adapt`, `memory` or `head`; None where it can."""
    if task not in HEADS_OF:
        return None
    if axis == "head" and kind not in HEADS_OF[task]:
        return f"{kind} tells single labels apart, and the task is {task}; write kind: {' or '.join(HEADS_OF[task])}"
    if axis == "memory" and kind not in ("statistics", "latents", "none"):
        return f"{kind} keeps features of single labels, and the task is {task}; write kind: statistics"
    if axis == "memory" and decay is not None and decay < 1:
        return f"has decay {decay:g}, and sums of several targets are exact for good; leave it out"
    if axis == "adapt" and kind == "first_session":
        return f"{kind} fits the backbone to single labels, and the task is {task}; write kind: frozen"
    return None


def learns_by_gradient(spec: ModelSpec) -> bool:
    """Whether weights move by gradient steps; otherwise heads are solved from the memory alone."""
    return spec.head.kind in GRADIENT_HEADS


def contradictions(spec: ModelSpec) -> str | None:
    """The first combination that cannot be, in words that begin with the field to change; None where all compose."""
    memory = spec.memory.kind
    if memory == "latents" and spec.retention.features != "latents":
        return (
            "memory latents keeps feature vectors, and retention.features is sums; write retention.features: latents "
            "to agree, or memory.kind: statistics"
        )
    if spec.projection is not None and spec.adapt.kind != "frozen":
        return f"projection is for a frozen backbone, and adapt is {spec.adapt.kind}; leave one of them out"
    problem = _of_gradients(spec) if learns_by_gradient(spec) else _of_solved_heads(spec)
    return problem or _of_student(spec)


def _of_solved_heads(spec: ModelSpec) -> str | None:
    memory, head, adapt = spec.memory.kind, spec.head.kind, spec.adapt.kind
    if memory == "none":
        return (
            f"head {head} is solved from a memory, and there is none; write head.kind: linear, or memory.kind: "
            "statistics"
        )
    if memory == "latents" and head != "ncm":
        others = "linear, cosine or ncm" if spec.task == "classification" else "linear"
        return f"head {head} is solved from sums; with memory latents write head.kind: {others}"
    if adapt in MOVING:
        return (
            f"adapt {adapt} moves what features mean, and head {head} is solved from all features so far; write "
            "head.kind: linear, or adapt.kind: first_session or frozen"
        )
    if spec.regularize:
        return f"regularize guards weights that move by gradient steps, and head {head} is solved; leave it out"
    if spec.loss is not None or spec.train is not None:
        name = "loss" if spec.loss is not None else "train"
        return f"{name} is of gradient steps, and head {head} is solved; leave it out, or write head.kind: linear"
    return None


def _of_gradients(spec: ModelSpec) -> str | None:
    memory, adapt = spec.memory.kind, spec.adapt.kind
    if adapt == "first_session":
        return (
            f"adapt first_session is frozen from then on, and head {spec.head.kind} learns by gradient steps; write "
            "adapt.kind: last_blocks, or head.kind: balanced_ridge"
        )
    if adapt == "full" and memory != "none":
        return (
            f"memory {memory} would keep what enters the lowest layer that learns, and with adapt full that is the raw "
            "input, which is never kept; write memory.kind: none, or adapt.kind: last_blocks"
        )
    if spec.projection is not None:
        return "projection is for heads that are solved; leave it out, or write head.kind: ridge"
    if memory == "per_class_statistics":
        return (
            "memory per_class_statistics is for heads that are solved; write memory.kind: latents, statistics or none"
        )
    if spec.loss is not None and spec.loss.kind == "der" and not (memory == "latents" and spec.memory.logits):
        return "loss der needs the scores that replayed samples had; write memory: {kind: latents, logits: true}"
    return _of_targets(spec) or _of_craft(spec)


def _of_targets(spec: ModelSpec) -> str | None:
    """Of several labels, and of values: what would read them as single classes."""
    task, train = spec.task, spec.train
    if task not in LOSSES_OF:
        return None
    if spec.loss is not None and spec.loss.kind not in LOSSES_OF[task]:
        kinds = " or ".join(LOSSES_OF[task])
        return f"loss {spec.loss.kind} does not teach {_SCORES[task]}, and the task is {task}; write loss.kind: {kinds}"
    if spec.memory.kind == "statistics":
        return (
            f"memory statistics draws samples of single labels, and the task is {task}; write memory.kind: latents "
            "with retention.features: latents, or memory.kind: none, or head.kind: ridge, which is solved from it"
        )
    if spec.memory.logits:
        return f"memory.logits are for loss der, and the task is {task}; leave it out"
    for regularizer in spec.regularize:
        if regularizer.kind in PENALTIES_ON_CLASSES:
            return (
                f"regularize {regularizer.kind} reads scores as those of single labels, and the task is {task}; write "
                "mas, si or l2sp"
            )
    for name in ("early_stop", "soup"):
        if train is not None and getattr(train, name):
            return f"train.{name} counts labels that were predicted right, and the task is {task}; leave it out"
    return None


def _of_craft(spec: ModelSpec) -> str | None:
    train, adapt = spec.train, spec.adapt.kind
    if train is None:
        return None
    if train.augment is not None and adapt != "full":
        return f"train.augment varies pixels, and with adapt {adapt} the learner meets features; leave it out"
    for name in ("stochastic_depth", "freeze_blocks", "freeze_until"):
        if getattr(train, name) and adapt not in MOVING:
            return f"train.{name} is of blocks that learn, and with adapt {adapt} none does; leave it out"
    return None


def _of_student(spec: ModelSpec) -> str | None:
    """What is imitated must stand still, and its head must be one product with what the student gives."""
    if spec.distill_to is None:
        return None
    head, adapt = spec.head.kind, spec.adapt.kind
    if spec.input.modality != "image" or spec.task != "classification":
        return "distill_to is for classification of images; leave it out"
    if spec.distill_to.backbone.loader != "timm":
        return f"distill_to.backbone.loader {spec.distill_to.backbone.loader} gives nothing that learns; write timm"
    if adapt != "frozen" or spec.projection is not None:
        what = "a projection" if adapt == "frozen" else f"adapt {adapt}"
        return f"distill_to imitates the features of a frozen backbone, and there is {what}; leave one of them out"
    if learns_by_gradient(spec) or head == "ncm":
        return f"distill_to needs a head over plain features, and {head} scales them; write head.kind: balanced_ridge"
    return None
