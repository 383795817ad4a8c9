"""What applying a declaration would do: changes, downloads, cost and deletions, before anything is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from everlearn.errors import NeedsConsentError, SpecError
from everlearn.spec import dp, int8_export, presets, rollout
from everlearn.spec.changes import CLASS_OF, Change, ChangeClass, classify
from everlearn.spec.composition import MOVING
from everlearn.spec.defaults import front_config
from everlearn.spec.late_labels import room_bytes
from everlearn.spec.model import Memory, Model
from everlearn.spec.telling import told

__all__ = [
    "CLASS_OF",
    "Change",
    "ChangeClass",
    "Download",
    "Plan",
    "StoredCounts",
    "build_plan",
    "check_consent",
    "classify",
    "memory_bytes",
    "plan_id",
]

_WARN_MEMORY_BYTES = 256 * 2**20
_MANY_HELD = 1024
"""Samples that any client is taken to be able to keep."""
_ROW_BYTES = 32
"""Of a stored feature vector beside its numbers: class, client, number of arrival, time; and its place in an index."""
_KEPT = {
    "statistics": "sums over",
    "per_class_statistics": "sums over",
    "latents": "feature vectors chosen of",
    "none": "counts of",
}


@dataclass(frozen=True, kw_only=True)
class Download:
    """One file that the backbone needs."""

    source: str
    """For people: source and file name."""
    size_bytes: int
    """0 = unknown."""
    cached: bool


@dataclass(frozen=True, kw_only=True)
class StoredCounts:
    """What a model has at rest now."""

    samples: int = 0
    """In the memory."""
    classes: int = 0
    versions: int = 0
    exports: int = 0
    bytes: int = 0
    """All of it together."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What applying a declaration would do. A value: making one changes nothing."""

    id: str
    """Bound to the model's etag, the completed declaration and the lock; `apply` with another is refused."""
    action: Literal["create", "change", "none"]
    declaration: Model
    """Completed."""
    changes: tuple[Change, ...] = ()
    deletions: tuple[str, ...] = ()
    """In words, with counts."""
    downloads: tuple[Download, ...] = ()
    cost: Mapping[str, float] = field(default_factory=dict)
    """By kind, in the unit that its name ends with."""
    warnings: tuple[str, ...] = ()
    recipe: tuple[str, ...] = ()
    """What the recipe expands to and keeps, in words."""

    @property
    def replaces(self) -> tuple[Change, ...]:
        """The changes after which the memory starts empty."""
        return tuple(change for change in self.changes if change.klass is ChangeClass.REPLACE)

    @property
    def loosens(self) -> tuple[Change, ...]:
        """The changes after which more may be at rest."""
        return tuple(change for change in self.changes if change.loosens)


def build_plan(
    before: Model | None,
    after: Model,
    *,
    etag: str,
    resolved_lock: Mapping[str, str],
    downloads: Sequence[Download],
    stored: StoredCounts,
    trunk_cached: bool,
    seen_labels: Sequence[str] = (),
    feature_dim: int | None = None,
    measured: Mapping[str, float] | None = None,
) -> Plan:
    """Compares completed declarations; `before` is None for a model that does not exist yet.

    `feature_dim`: d, where it is known before the trunk is built. `measured`: what the server knows of
    `trunk_build_s` and `head_solve_ms` from earlier ones. Raises SpecError where `after` is not completed.
    """
    front_config(after)
    changes = () if before is None else classify(before, after, seen_labels=seen_labels)
    action: Literal["create", "change", "none"] = "create" if before is None else "change" if changes else "none"
    classes = len({*after.spec.labels, *seen_labels})
    cost = {} if action == "none" else _cost(after, downloads, trunk_cached, feature_dim, classes, measured or {})
    return Plan(
        id=plan_id(after, etag=etag, lock=resolved_lock),
        action=action,
        declaration=after,
        recipe=told(after.spec),
        changes=changes,
        deletions=_deletions(changes, before or after, after, stored),
        downloads=() if action == "none" else tuple(downloads),
        cost=cost,
        warnings=() if action == "none" else _warnings(after, downloads, cost, feature_dim),
    )


def memory_bytes(memory: Memory, dim: int, classes: int) -> int:
    """What a memory of `dim` features takes in RAM once it is full; on disk sums take about a quarter of it.

    >>> memory_bytes(Memory(kind="latents", capacity=1000), 1280, 10)
    1312080
    """
    sums = 8 * (classes + classes * dim + dim**2)  # n[C], S[C, d] and G[d, d]
    if memory.kind == "latents":
        row = dim * (1 if memory.precision == "int8" else 2) + _ROW_BYTES + (2 * classes if memory.logits else 0)
        means = 8 * classes * (dim + 1) if memory.selection == "herding" else 0
        return (memory.capacity or 0) * row + 8 * classes + means
    if memory.kind == "none":
        return 8 * classes
    return sums + 8 * classes * dim**2 if memory.kind == "per_class_statistics" else sums


def client_sums_bytes(memory: Memory, dim: int, classes: int) -> int:
    """What one client's own sums take on disk, as long as their numbers fit in 32 bits; up to twice as much later.

    >>> client_sums_bytes(Memory(kind="statistics"), 1280, 10)
    3330560
    """
    matrices = max(classes, 1) if memory.kind == "per_class_statistics" else 1
    return 4 * (matrices * dim * (dim + 1) // 2 + classes * dim)


def plan_id(completed: Model, *, etag: str, lock: Mapping[str, str]) -> str:
    """32 hex digits that change when the declaration, the model's etag or a resolved file does."""
    bound = {"declaration": completed.model_dump(mode="json"), "etag": etag, "lock": dict(lock)}
    return hashlib.sha256(json.dumps(bound, sort_keys=True).encode()).hexdigest()[:32]


def check_consent(plan: Plan, *, allow_replace: bool = False, allow_loosen_retention: bool = False) -> None:
    """Raises SpecError where the plan changes what cannot change, NeedsConsentError where the caller must agree."""
    for change in plan.changes:
        if change.klass is ChangeClass.IMMUTABLE:
            raise SpecError(
                f"cannot change from {change.before} to {change.after}; declare another model, or delete this one",
                field=change.field,
            )
    if plan.replaces and not allow_replace:
        loss = "; ".join(plan.deletions) or "the memory, which is empty so far"
        raise NeedsConsentError(
            f"changing {_fields(plan.replaces)} starts a new memory and deletes: {loss}; allow_replace agrees to that",
            field=plan.replaces[0].field,
        )
    if plan.loosens and not allow_loosen_retention:
        raise NeedsConsentError(
            f"changing {_fields(plan.loosens)} lets more data rest than before; allow_loosen_retention agrees to that",
            field=plan.loosens[0].field,
        )


def _fields(changes: Sequence[Change]) -> str:
    return ", ".join(change.field for change in changes)


def _deletions(changes: Sequence[Change], before: Model, after: Model, stored: StoredCounts) -> tuple[str, ...]:
    changed = {change.field for change in changes}
    words: list[str] = []
    if any(change.klass is ChangeClass.REPLACE for change in changes) and stored.samples:
        kept = _KEPT.get(before.spec.memory.kind, "what is kept of")
        words.append(f"the memory: {kept} {stored.samples:,} samples in {stored.classes:,} classes")
    keep_exports, keep_versions = after.spec.retention.exports, after.spec.serving.keep_versions
    if "spec.retention.exports" in changed and stored.exports > keep_exports:
        words.append(f"{stored.exports - keep_exports:,} of {stored.exports:,} exported files, the oldest")
    if "spec.serving.keep_versions" in changed and stored.versions > keep_versions:
        beyond = stored.versions - keep_versions
        words.append(f"up to {beyond:,} of {stored.versions:,} versions, the oldest that no alias or export names")
    return tuple(words)


def _cost(
    after: Model,
    downloads: Sequence[Download],
    trunk_cached: bool,
    feature_dim: int | None,
    classes: int,
    measured: Mapping[str, float],
) -> dict[str, float]:
    cost = {"download_bytes": float(sum(each.size_bytes for each in downloads if not each.cached))}
    if trunk_cached:
        cost["trunk_build_s"] = 0.0
    elif "trunk_build_s" in measured:
        cost["trunk_build_s"] = measured["trunk_build_s"]
    if feature_dim is not None and after.spec.adapt.kind not in MOVING:  # at a cut its width is known once it is built
        cost["memory_bytes"] = float(memory_bytes(after.spec.memory, feature_dim, classes))
        if after.spec.privacy.client_sums:
            cost["disk_bytes_per_client"] = float(client_sums_bytes(after.spec.memory, feature_dim, classes))
    if feature_dim is not None and after.spec.late_labels is not None:
        cost["late_labels_bytes"] = float(room_bytes(after.spec.late_labels, feature_dim))
    if "head_solve_ms" in measured:
        cost["head_solve_ms"] = measured["head_solve_ms"]
    return cost


def _warnings(
    after: Model, downloads: Sequence[Download], cost: Mapping[str, float], feature_dim: int | None
) -> tuple[str, ...]:
    words: list[str] = []
    unknown = [each.source for each in downloads if not each.cached and not each.size_bytes]
    if unknown:
        words.append(f"the hub does not tell the size of {', '.join(unknown)}; download_bytes leaves it out")
    if after.spec.backbone.format == "torch":
        words.append("the weights are a pickle: they are read once, weights only, in a limited child process")
    if cost.get("memory_bytes", 0.0) > _WARN_MEMORY_BYTES:
        words.append(f"the memory takes {cost['memory_bytes'] / 2**20:,.0f} MiB")
    words += dp.warnings(after.spec, feature_dim)
    words += _of_recipe(after)
    exact_samples = 2 ** (53 - (2 * after.spec.memory.bits - 2))
    if exact_samples < 10**8 and after.spec.memory.kind in ("statistics", "per_class_statistics"):
        words.append(f"with {after.spec.memory.bits} bits the sums are exact up to {exact_samples:,} samples")
    return tuple(words)


def _of_recipe(after: Model) -> list[str]:
    """What is known of the declared recipe and would be met too late."""
    spec = after.spec
    words: list[str] = []
    if spec.by_gradient and spec.memory.kind == "none":
        words.append(presets.WARNING_WEAK if spec.regularize else presets.WARNING_NOTHING_HELD)
    if spec.memory.kind == "latents":
        words.append(
            f"up to {spec.memory.capacity:,} feature vectors of single samples are kept; they are personal data where "
            "the samples are"
        )
    if spec.privacy.client_sums:
        words.append(
            "privacy.client_sums keeps each client's own sums, which are personal data, and each commit writes those "
            "of every client that has learned since the last: with more clients at once acknowledgements take longer"
        )
    if spec.late_labels is not None:
        words.append(
            f"features of up to {spec.late_labels.capacity:,} predicted samples wait in RAM for their labels, "
            f"{spec.late_labels.ttl_s:,} s at most; they are personal data where the samples are"
        )
    if spec.memory.kind == "statistics" and spec.memory.decay is not None and spec.memory.decay < 1:
        words.append("with decay below 1 the sums are no longer exact, and nothing can be taken out of them")
    if spec.distill_to is not None:
        words.append(
            "the student sees a sample once, as the stream brings it: one that came untrained agreed with its model on "
            "84 % of scikit-learn's digits after 1,400 of them with distill_to.steps 12, on 60 % with 4, which is what "
            "12 become while it is slower than the stream. It learns where clients send images, not features"
        )
    if spec.int8_export is not None:
        words.append(
            "int8_export runs the backbone on images once more, beside the stream: two to three times its time for the "
            f"first {int8_export.OBSERVED} and until {spec.int8_export.min_tested:,} were tested, then for one in "
            f"{int8_export.SHARE}, a tenth more work in all. It learns where clients send images, not features; and "
            "while it is declared, no client can be erased"
        )
    if spec.int8_trunk is not None:
        words.append(
            f"the trunk in 8 bits is made from the first {spec.int8_trunk.samples:,} images (not features): until they "
            "have come nothing is durable and nothing is answered, and clients keep them and send them again. What "
            "they did to its ranges stays, so that no client can be erased from this model: replace it"
        )
    if spec.rollout is not None:
        words.append(rollout.WARNING)
    if (spec.privacy.min_samples or 0) > _MANY_HELD:
        words.append(
            f"privacy.min_samples is {spec.privacy.min_samples:,}: each client keeps up to as many samples until they "
            f"are durable; one that keeps fewer (64 messages of 16 are {_MANY_HELD:,}) waits until others have sent"
        )
    if (spec.privacy.min_clients or 0) > 1:
        words.append(
            f"privacy.min_clients is {spec.privacy.min_clients}: a client alone is never durable; it is told so some "
            "seconds after its last batch, keeps what it has, and sends it again"
        )
    if spec.adapt.kind == "first_session":
        words.append(
            f"the first {spec.adapt.samples:,} samples are held in RAM until the backbone is fitted; they are durable "
            "only then, and clients keep them that long"
        )
    return words
