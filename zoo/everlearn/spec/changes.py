"""What a new declaration changes, field by field, and of which class each change is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from everlearn.spec.composition import GRADIENT_HEADS
from everlearn.spec.fields import leaf_values
from everlearn.spec.load import scalar
from everlearn.spec.model import Model


class ChangeClass(Enum):
    """How far a change reaches. Values are the names on the wire."""

    LIVE = "LIVE"
    """In place; nothing is learned again."""
    REVISION = "REVISION"
    """A next version; the present one serves until the gate passes."""
    REPLACE = "REPLACE"
    """Features or classes mean something else: the memory starts empty. Needs consent."""
    RETENTION = "RETENTION"
    """What may be at rest. Tightening deletes at once; loosening needs consent."""
    IMMUTABLE = "IMMUTABLE"
    """Refused."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One field that changes."""

    field: str
    """Its path, e.g. `spec.input.size`."""
    klass: ChangeClass
    before: str
    """YAML scalar or flow collection; empty where there was none."""
    after: str
    note: str = ""
    """What follows from it, in words; may be empty."""
    loosens: bool = False
    """RETENTION only: more may be at rest than before."""


_LIVE, _REVISION, _REPLACE = ChangeClass.LIVE, ChangeClass.REVISION, ChangeClass.REPLACE
_RETENTION, _IMMUTABLE = ChangeClass.RETENTION, ChangeClass.IMMUTABLE

# Every leaf field by name, none by a pattern: a new field has no class until someone has thought about it.
CLASS_OF = {
    "apiVersion": _IMMUTABLE,
    "kind": _IMMUTABLE,
    "metadata.name": _IMMUTABLE,
    "metadata.labels": _LIVE,
    "spec.backbone.source": _REPLACE,
    "spec.backbone.revision": _REPLACE,
    "spec.backbone.file": _REPLACE,
    "spec.backbone.format": _REPLACE,
    "spec.backbone.sha256": _REPLACE,
    "spec.backbone.loader": _REPLACE,
    "spec.backbone.sides_sha256": _REPLACE,
    "spec.backbone.architecture": _REPLACE,
    "spec.backbone.keys": _REPLACE,
    "spec.backbone.output": _REPLACE,
    "spec.backbone.seed": _REPLACE,
    "spec.input.modality": _REPLACE,
    "spec.input.size": _REPLACE,
    "spec.input.resize": _REPLACE,
    "spec.input.crop_pct": _REPLACE,
    "spec.input.interpolation": _REPLACE,
    "spec.input.mean": _REPLACE,
    "spec.input.std": _REPLACE,
    "spec.input.encodings": _LIVE,
    "spec.input.max_image_bytes": _LIVE,
    "spec.input.max_image_pixels": _LIVE,
    "spec.input.shape": _REPLACE,
    "spec.input.range": _REPLACE,
    "spec.input.tokenizer": _REPLACE,
    "spec.input.max_tokens": _REPLACE,
    "spec.input.max_text_bytes": _LIVE,
    "spec.task": _REPLACE,
    "spec.outputs": _REPLACE,
    "spec.labels": _REPLACE,  # unless labels are only appended: see _labels
    "spec.recipe": _LIVE,  # a name: what it expands to has classes of its own
    "spec.projection": _REPLACE,
    "spec.adapt.kind": _REPLACE,
    "spec.adapt.blocks": _REPLACE,
    "spec.adapt.rank": _REPLACE,
    "spec.adapt.targets": _REPLACE,
    "spec.adapt.samples": _REPLACE,
    "spec.adapt.epochs": _REPLACE,
    "spec.adapt.patience_s": _LIVE,
    "spec.memory.kind": _REPLACE,
    "spec.memory.bits": _REPLACE,
    "spec.memory.decay": _LIVE,
    "spec.memory.capacity": _LIVE,
    "spec.memory.precision": _REPLACE,
    "spec.memory.selection": _LIVE,
    "spec.memory.ttl_s": _LIVE,
    "spec.memory.client_share": _LIVE,
    "spec.memory.logits": _LIVE,
    "spec.head.kind": _REVISION,
    "spec.head.regularization": _REVISION,
    "spec.regularize": _LIVE,
    "spec.loss": _LIVE,
    "spec.train": _LIVE,
    "spec.distill_to": _LIVE,
    "spec.int8_export": _LIVE,
    "spec.int8_trunk": _REPLACE,
    "spec.gate.min_accuracy": _LIVE,
    "spec.gate.max_drop": _LIVE,
    "spec.gate.min_samples": _LIVE,
    "spec.gate.parity": _LIVE,
    "spec.serving.promotion": _LIVE,
    "spec.serving.keep_versions": _LIVE,
    "spec.retention.raw": _RETENTION,
    "spec.retention.features": _RETENTION,
    "spec.retention.exports": _RETENTION,
    "spec.retention.checkpoints": _RETENTION,
    "spec.privacy.tier": _RETENTION,
    "spec.privacy.min_samples": _RETENTION,
    "spec.privacy.min_clients": _RETENTION,
    "spec.privacy.min_class_samples": _RETENTION,
    "spec.privacy.epsilon": _RETENTION,
    "spec.privacy.delta": _RETENTION,
    "spec.privacy.unit": _REPLACE,
    "spec.privacy.noise": _RETENTION,
    "spec.privacy.client_samples": _RETENTION,
    "spec.privacy.client_sums": _REPLACE,
    "spec.limits.norm": _REPLACE,
    "spec.limits.client_share": _LIVE,
    "spec.limits.client_floor": _LIVE,
    "spec.limits.client_gate": _LIVE,
    "spec.limits.client_labels": _LIVE,
    "spec.unknown.kind": _REVISION,
    "spec.unknown.false_alarms": _REVISION,
    "spec.late_labels": _RETENTION,
    "spec.rollout": _LIVE,
}

_NOTES = {
    _REVISION: "a new version is solved from the memory",
    _REPLACE: "the memory starts empty",
    _IMMUTABLE: "cannot change; declare another model",
}

_STRICTER_FIRST: dict[str, Sequence[object]] = {
    "spec.retention.raw": ("never",),
    "spec.retention.features": ("sums", "latents"),
    "spec.privacy.tier": ("dp", "aggregate", "no_raw"),
}
_MORE_IS_STRICTER = frozenset(
    f"spec.privacy.{name}" for name in ("min_samples", "min_clients", "min_class_samples", "noise", "client_samples")
)
_PRIVACY = "spec.privacy."


def classify(before: Model, after: Model, *, seen_labels: Sequence[str] = ()) -> tuple[Change, ...]:
    """The changes from one completed declaration to another, in order of declaration; empty where they are equal.

    `seen_labels`: the model's labels in the order of their index, those that arrived in the stream included.
    """
    old, new = leaf_values(before), leaf_values(after)
    changed = [path for path in old if old[path] != new[path]]
    return tuple(_change(path, old, new, seen_labels) for path in changed)


def _change(path: str, before: Mapping[str, object], after: Mapping[str, object], seen: Sequence[str]) -> Change:
    old, new = before[path], after[path]
    klass, loosens = CLASS_OF[path], False
    note = _NOTES.get(klass, "")
    if path == "spec.labels":
        klass, note = _labels(_texts(old), _texts(new), seen)
    elif path == "spec.backbone.sha256" and _same_commit(before, after) and (old is None or new is None):
        klass, note = _LIVE, "the commit is the same, so the file is too"
    elif path == "spec.head.kind" and (old in GRADIENT_HEADS) != (new in GRADIENT_HEADS):
        klass, note = _REPLACE, f"one is solved, the other learns by steps; {_NOTES[_REPLACE]}"
    elif path == "spec.privacy.client_sums":
        klass, note = _client_sums(old, new)
        loosens = new is True
    elif path == "spec.privacy.tier" and "dp" in (old, new):
        klass, note = _REPLACE, f"sums with noise and sums without do not mix; {_NOTES[_REPLACE]}"
    elif klass is _RETENTION:
        loosens = _waits_more(old, new) if path == "spec.late_labels" else _loosens(path, old, new)
        tighter = (
            "holds from the next commit on; versions that show smaller classes are not served any more"
            if path.startswith(_PRIVACY)
            else "what is beyond it is deleted at once"
        )
        singles = path in ("spec.retention.features", "spec.late_labels")
        more = "features of single samples, which are personal data," if singles else "more"
        where = " in RAM" if path == "spec.late_labels" else ""
        note = f"{more} may be kept{where} from now on" if loosens else tighter
    return Change(field=path, klass=klass, before=scalar(old), after=scalar(new), note=note, loosens=loosens)


def _client_sums(before: object, wanted: object) -> tuple[ChangeClass, str]:
    if wanted is True:
        return _REPLACE, (
            "each client's own sums, which are personal data, are kept from now on; what came before cannot be told "
            f"apart by client, so {_NOTES[_REPLACE]}"
        )
    return _RETENTION, "they are deleted at once, with their keys" if before is True else "none are kept"


def _same_commit(before: Mapping[str, object], after: Mapping[str, object]) -> bool:
    """A commit of the hub pins the file by itself: a digest beside it says nothing new."""
    which = ("spec.backbone.source", "spec.backbone.revision", "spec.backbone.file", "spec.backbone.format")
    return all(before[path] == after[path] for path in which) and str(after[which[0]]).startswith("hf://")


def _labels(old: Sequence[str], new: Sequence[str], seen: Sequence[str]) -> tuple[ChangeClass, str]:
    """Indices are for ever: labels may only be appended, after those that the stream has brought."""
    table = [*old, *(label for label in seen if label not in old)]
    known = min(len(new), len(table))
    if list(new[: len(old)]) != list(old):
        return _REPLACE, f"labels are removed or reordered; {_NOTES[_REPLACE]}"
    if list(new[:known]) != table[:known]:
        begin = scalar(table)
        return _REPLACE, f"labels that were learned have other indices; begin with {begin} to keep the memory"
    if len(new) <= len(table):
        return _LIVE, "the stream has brought them already, in this order"
    return _REVISION, f"{len(new) - len(table)} classes are appended"


def _loosens(path: str, old: object, new: object) -> bool:
    """Whatever is not known to be stricter loosens."""
    order = _STRICTER_FIRST.get(path)
    if order is not None:
        return old not in order or new not in order or order.index(new) > order.index(old)
    if path.startswith(_PRIVACY) and (old is None or new is None):
        return False  # an option comes or goes with its tier, whose own change says which way
    if path in _MORE_IS_STRICTER:
        old, new = new, old
    if isinstance(old, float) and isinstance(new, float):
        return new > old
    return not (isinstance(old, int) and isinstance(new, int) and new < old)


def _waits_more(old: object, new: object) -> bool:
    """Whether more samples may wait than before, or longer."""
    if not isinstance(new, Mapping):
        return False
    return not isinstance(old, Mapping) or any(new[part] > old[part] for part in new)


def _texts(value: object) -> tuple[str, ...]:
    assert isinstance(value, tuple)
    return value
