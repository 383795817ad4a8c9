"""What a recipe means, in words for people: what it does, which axes it chooses, what is kept on disk."""

from __future__ import annotations

from collections.abc import Mapping

from everlearn.spec import presets, rollout, unknown
from everlearn.spec.composition import learns_again
from everlearn.spec.model import ModelSpec
from everlearn.spec.promises import promises
from everlearn.spec.strict import Strict

_KEPT = {
    "statistics": "counts and sums of features (exact integers); no feature of a single sample",
    "per_class_statistics": "counts and sums of features of each class; no feature of a single sample",
    "none": "nothing of the samples",
}


def told(spec: ModelSpec) -> tuple[str, ...]:
    """The recipe of a completed declaration in a few lines."""
    preset = presets.PRESETS[spec.recipe]
    lines = [f"{spec.recipe}: {preset.title}", *_drawn(spec), *axes(spec)]
    student = "" if spec.distill_to is None else "; the student's weights, which pixels in RAM have taught"
    lines.append(f"kept on disk: {_kept(spec)}{student}; raw inputs never")
    lines += [f"privacy, {line}" for line in promises(spec)]
    lines.append(_limits(spec))
    if spec.unknown.kind != "answer":
        lines.append(unknown.told(spec.unknown))
    if spec.rollout is not None:
        lines.append(rollout.told(spec.rollout))
    if preset.advice:
        lines.append(f"use it: {preset.advice}")
    return tuple(lines)


def _limits(spec: ModelSpec) -> str:
    """How far one client can move the model, and how it could besides."""
    chosen = spec.limits.model_dump(exclude_none=True)
    if spec.limits.client_share is None:
        del chosen["client_floor"]
    ways = {
        "norm": "the length of its vectors",
        "client_share": "the number of its samples",
        "client_gate": "wrong labels",
        "client_labels": "labels of its own",
    }
    if spec.task != "classification":
        del ways["client_gate"]
    if spec.task == "regression":
        del ways["client_labels"]
    told = ", ".join(f"{name} {value:g}" for name, value in chosen.items())
    held = f"limits of one client: {told or 'none'}"
    left = ", ".join(f"{way} (limits.{name})" for name, way in ways.items() if name not in chosen)
    return f"{held}; it may move the model by {left}" if left else held


def _drawn(spec: ModelSpec) -> tuple[str, ...]:
    """What is to be known of a backbone that nobody has trained."""
    if spec.backbone.seed is None:
        return ()
    learns = {
        "frozen": "none of which learns: its features are random ones",
        "last_blocks": f"of which the last {spec.adapt.blocks} learn",
        "full": "all of which learn",
    }
    told = learns.get(spec.adapt.kind, f"of which the last {spec.adapt.blocks} learn by adapt {spec.adapt.kind}")
    layers = f"layers with random weights of seed {spec.backbone.seed}"
    return (f"backbone: {spec.backbone.source}, {layers}, {told}",)


def axes(spec: ModelSpec) -> tuple[str, ...]:
    """One axis with its options a line."""
    return tuple(f"{axis}: {chosen}" for axis, chosen in _axes(spec))


def _axes(spec: ModelSpec) -> list[tuple[str, str]]:
    found = [("adapt", _options(spec.adapt)), ("memory", _options(spec.memory)), ("head", _options(spec.head))]
    if spec.projection is not None:
        found.insert(1, ("projection", _options(spec.projection)))
    found += [("regularize", _options(regularizer)) for regularizer in spec.regularize]
    if spec.loss is not None:
        found.append(("loss", _options(spec.loss)))
    if spec.train is not None:
        optimizer, train = spec.train.optimizer, spec.train
        found.append(("optimizer", _options(optimizer)))
        found.append(("schedule", _options(train.schedule)))
        found.append(("train", _listed({k: v for k, v in train.model_dump().items() if not isinstance(v, dict)})))
    if spec.distill_to is not None:
        student = spec.distill_to
        told = f"{student.backbone.architecture} (steps {student.steps}, min_agreement {student.min_agreement:g})"
        found.append(("distill_to", told))
        found.append(("optimizer of the student", _options(student.optimizer)))
    if spec.int8_export is not None:
        found.append(("int8_export", _options(spec.int8_export)))
    if spec.int8_trunk is not None:
        found.append(("int8_trunk", _options(spec.int8_trunk)))
    return found


def _options(part: Strict) -> str:
    values = part.model_dump(mode="json", exclude_none=True)
    kind = values.pop("kind", None)
    options = _listed(values)
    return f"{kind} ({options})" if kind and options else str(kind or options)


def _listed(values: Mapping[str, object]) -> str:
    """Options by name; those that are off are left out."""
    return ", ".join(f"{name} {value}" for name, value in values.items() if value not in (None, 0, False, ()))


def _kept(spec: ModelSpec) -> str:
    kept = _KEPT.get(spec.memory.kind)
    if spec.privacy.tier == "dp":
        kept = "counts and sums of features with noise; nothing without"
    if kept is None:
        kept = (
            f"up to {spec.memory.capacity:,} feature vectors of single samples, {spec.memory.precision} (personal "
            "data, sealed)"
        )
    if spec.by_gradient:
        kept += "; weights of what learns, with the optimizer's state"
        if learns_again(spec) and spec.retention.checkpoints:
            kept += f", and up to {spec.retention.checkpoints} earlier states of these, to take a client out again"
    elif spec.adapt.kind != "frozen":
        kept += "; weights of the blocks that were fitted"
    return kept
