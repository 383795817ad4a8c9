"""Which axes of a recipe compose, and why others do not: refused before anything runs, with the field to change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from everlearn.spec import dp, rollout, unknown
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
"""Likewise."""
_OF_ONE = "makes the scores of a sample shares of one, as of a single label"
_NOT_TAUGHT: Mapping[str, str] = {
    "cross_entropy": _OF_ONE,
    "er_ace": _OF_ONE,
    "der": f"{_OF_ONE}; and a memory of several targets a sample keeps those where der would keep scores",
    "cosine": "fits the direction of a sample's scores alone, and leaves their size open",
    "binary_cross_entropy": "fits probabilities",
    "mse": "fits values, which may lie below 0 and above 1",
    "huber": "fits values, which may lie below 0 and above 1",
}
"""What a loss does to scores, where the task wants other scores."""
_SCORES: Mapping[Task, str] = {"multilabel": "a probability of each label", "regression": "values"}


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


def learns_again(spec: ModelSpec) -> bool:
    """Whether what was learned by steps can be learned again without a client: the memory names whose a row is, or
    there is none."""
    return (
        learns_by_gradient(spec)
        and spec.task == "classification"
        and spec.memory.kind in ("latents", "none")
        and spec.adapt.kind != "first_session"
        and spec.privacy.tier != "dp"
    )


def learns_by_gradient(spec: ModelSpec) -> bool:
    """Whether weights move by gradient steps; otherwise heads are solved from the memory alone."""
    return spec.head.kind in GRADIENT_HEADS


def contradictions(spec: ModelSpec) -> str | None:
    """The first combination that cannot be, in words that begin with the field to change; None where all compose."""
    memory = spec.memory.kind
    if memory == "latents" and spec.retention.features != "latents":
        return (
            "memory latents keeps features of single samples, which are personal data, and retention.features is sums; "
            "write retention.features: latents to agree, or memory.kind: statistics"
        )
    if spec.projection is not None and spec.adapt.kind != "frozen":
        return f"projection is for a frozen backbone, and adapt is {spec.adapt.kind}; leave one of them out"
    problem = _of_gradients(spec) if learns_by_gradient(spec) else _of_solved_heads(spec)
    problem = problem or _of_student(spec) or _of_aggregate(spec) or dp.contradiction(spec)
    problem = problem or _of_limits(spec) or _of_client_sums(spec) or _of_late_labels(spec)
    return (
        problem or _of_int8(spec) or _of_int8_trunk(spec) or unknown.contradiction(spec) or rollout.contradiction(spec)
    )


def _of_aggregate(spec: ModelSpec) -> str | None:
    """What would keep single samples where the tier promises that none is told apart."""
    privacy = spec.privacy
    if privacy.tier != "aggregate":
        return None
    tier = "privacy.tier aggregate lets sums over many samples rest alone, and"
    if learns_by_gradient(spec):
        return (
            f"{tier} weights that learn by steps remember single samples: they have been read back from such; write "
            "head.kind: balanced_ridge, or tier: no_raw"
        )
    if spec.adapt.kind != "frozen":
        return (
            f"{tier} adapt {spec.adapt.kind} fits weights to few samples: they have been read back from such; write "
            "adapt.kind: frozen, or tier: no_raw"
        )
    if spec.memory.kind == "latents" or spec.retention.features != "sums":
        return f"{tier} latents are features of single samples; write retention.features: sums, or tier: no_raw"
    if spec.memory.kind == "per_class_statistics":
        return (
            f"{tier} a matrix of each class's own gives the features of its first samples away; write memory.kind: "
            "statistics, or tier: no_raw"
        )
    if spec.distill_to is not None:
        return f"{tier} a student's weights remember single samples; leave distill_to out, or write tier: no_raw"
    if (privacy.min_clients or 0) > (privacy.min_samples or 0):
        return (
            f"privacy.min_clients is {privacy.min_clients} and privacy.min_samples {privacy.min_samples}, and each "
            f"client brings a sample at least; write min_samples: {privacy.min_clients} or more"
        )
    return None


def _of_limits(spec: ModelSpec) -> str | None:
    """Limits that go by what the task has not."""
    if spec.limits.client_gate is not None and spec.task != "classification":
        return (
            "limits.client_gate compares shares of samples that were predicted right, label by label, and the task is "
            f"{spec.task}; leave it out"
        )
    if spec.limits.client_gate is not None and spec.privacy.tier != "no_raw":
        return (
            "limits.client_gate counts what each client's samples showed, label by label, and privacy.tier "
            f"{spec.privacy.tier} promises that nothing is told of so few; leave one of them out"
        )
    if spec.limits.client_labels is not None and spec.task == "regression":
        return "limits.client_labels counts labels, and the task is regression; leave it out"
    return None


def _of_client_sums(spec: ModelSpec) -> str | None:
    """They are kept to be subtracted; where nothing can be, they would be personal data for nothing."""
    if not spec.privacy.client_sums:
        return None
    kept = "privacy.client_sums keeps each client's part so that it can be subtracted, and"
    if spec.memory.kind == "latents":
        return (
            f"{kept} memory latents keeps single features, each client's under a key of its own, which `everlearn "
            "erase` drops without receipts as it is; leave privacy.client_sums out"
        )
    if learns_by_gradient(spec):
        return (
            f"{kept} nothing can be subtracted from weights that learned by steps; leave it out, or write head.kind: "
            "balanced_ridge with memory.kind: statistics"
        )
    if spec.adapt.kind != "frozen":
        return (
            f"{kept} adapt {spec.adapt.kind} fits blocks to samples, from which nothing can be; leave it out, or write "
            "adapt.kind: frozen"
        )
    if spec.memory.decay is not None and spec.memory.decay < 1:
        return f"{kept} memory.decay {spec.memory.decay:g} rounds sums with every batch; leave one of them out"
    if spec.distill_to is not None:
        return f"{kept} a student learns by steps from the same samples; leave distill_to or privacy.client_sums out"
    return None


def _of_int8(spec: ModelSpec) -> str | None:
    """Ranges are learned from pixels on their way through a frozen backbone, and tell of the furthest of them."""
    if spec.int8_export is None:
        return None
    if spec.privacy.tier != "no_raw":
        return (
            f"int8_export goes by how far single images reach, and privacy.tier {spec.privacy.tier} promises that "
            "nothing is told of one; leave int8_export out, or write tier: no_raw"
        )
    if spec.privacy.client_sums:
        return "int8_export keeps ranges that no client can be taken out of; leave it or privacy.client_sums out"
    if spec.input.modality != "image" or spec.task != "classification":
        return "int8_export is for classification of images; leave it out"
    if spec.adapt.kind != "frozen" or spec.projection is not None:
        what = "a projection" if spec.adapt.kind == "frozen" else f"adapt {spec.adapt.kind}"
        return f"int8_export is of a frozen backbone, and there is {what}; leave one of them out"
    if spec.distill_to is not None:
        return "int8_export and distill_to both make a small model beside this one; leave one of them out"
    return None


def _of_int8_trunk(spec: ModelSpec) -> str | None:
    """The trunk is made once, from what single images do in a frozen backbone, and nothing leaves it again."""
    if spec.int8_trunk is None:
        return None
    if spec.privacy.tier != "no_raw":
        return (
            f"int8_trunk goes by how far single images reach, and privacy.tier {spec.privacy.tier} promises that "
            "nothing is told of one; leave int8_trunk out, or write tier: no_raw"
        )
    if spec.privacy.client_sums:
        return (
            "int8_trunk keeps ranges that no client can be taken out of, and privacy.client_sums is there for taking "
            "one out; leave one of them out"
        )
    if spec.input.modality != "image":
        return (
            f"int8_trunk is for images, whose backbones are convolutions, and samples are of modality "
            f"{spec.input.modality}; leave it out"
        )
    if spec.adapt.kind != "frozen":
        return (
            f"int8_trunk stands still once it is made, and adapt {spec.adapt.kind} moves weights; write adapt.kind: "
            "frozen, or leave int8_trunk out"
        )
    if spec.projection is not None:
        return "int8_trunk would round a projection's random features as well; leave one of them out"
    if spec.distill_to is not None:
        return "int8_trunk and distill_to both make a small model for devices; leave one of them out"
    if spec.int8_export is not None:
        return "int8_export makes a graph in 8 bits beside the model's, and with int8_trunk that is one; leave it out"
    return None


def _of_late_labels(spec: ModelSpec) -> str | None:
    """What waits is features; where those are the input itself, or where nothing may be told of one sample, none do."""
    if spec.late_labels is None:
        return None
    if spec.privacy.tier != "no_raw":
        return (
            f"late_labels tells whoever has a sample's id whether that one was learned, and privacy.tier "
            f"{spec.privacy.tier} promises that nothing is told of one; leave late_labels out, or write tier: no_raw"
        )
    for what, whose in ((spec.backbone.loader, "identity"), (spec.adapt.kind, "full")):
        if what == whose:
            return (
                f"late_labels keeps what enters the lowest layer that learns, and with {whose} that is the raw input, "
                "which is never kept; leave it out, or use a backbone of which a part stands still"
            )
    return None


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
    task = spec.task
    if task not in LOSSES_OF:
        return None
    if spec.loss is not None and spec.loss.kind not in LOSSES_OF[task]:
        kinds = " or ".join(LOSSES_OF[task])
        return (
            f"loss {spec.loss.kind} {_NOT_TAUGHT[spec.loss.kind]}, and task {task} wants {_SCORES[task]}; write "
            f"loss.kind: {kinds}"
        )
    if spec.memory.kind == "statistics":
        return (
            "memory statistics draws samples from each label's own mean, and of several targets a sample it holds how "
            "features go with targets in a line: head ridge is solved from just that, exactly, and steps on samples "
            "drawn from it could only come near. Write head.kind: ridge, or memory.kind: latents with "
            "retention.features: latents, or memory.kind: none"
        )
    if spec.memory.logits:
        return f"memory.logits are for loss der, and the task is {task}; leave it out"
    return None


def _of_craft(spec: ModelSpec) -> str | None:
    train, adapt = spec.train, spec.adapt.kind
    if train is None:
        return None
    if train.augment is not None and adapt != "full":
        return f"train.augment varies pixels, and with adapt {adapt} the learner meets features; leave it out"
    if train.augment is not None and spec.input.modality != "image":
        return f"train.augment varies images, and samples are of modality {spec.input.modality}; leave it out"
    for name in ("stochastic_depth", "freeze_blocks", "freeze_until", "compile"):
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
