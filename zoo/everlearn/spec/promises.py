"""What a declaration promises to the people behind the samples, in words: the same in plan, describe and model card."""

from __future__ import annotations

from typing import Final

from everlearn.spec import dp, int8_export, int8_trunk, late_labels
from everlearn.spec.model import ModelSpec

HELD_BY: Final = (
    "held by: this server's code, tested on every change of it; its operator is taken to be honest, nothing is attested"
)
_RAW: Final = (
    "no raw input at rest, in logs, temporary files or dumps, and none in memory a heartbeat after its batch is durable"
)

_CLIENT_SUMS: Final = (
    "personal data: each client's own sums are kept besides (client_sums), sealed (AES-256-GCM) under a key of its own "
    "that an erasure destroys; whoever opens those of a client that sent few samples can work out their features"
)


def promises(spec: ModelSpec) -> tuple[str, ...]:
    """Lines of a completed declaration: its tier, what is promised, what is not, and who holds it."""
    tier = spec.privacy.tier
    told = {"no_raw": _of_no_raw, "aggregate": _of_aggregate, "dp": _of_dp}.get(tier)
    if told is None:
        return ()
    return (f"tier: {_named(spec)}", *told(spec), HELD_BY)


def _named(spec: ModelSpec) -> str:
    privacy = spec.privacy
    if privacy.tier == "no_raw":
        return "no_raw"
    return (
        f"{privacy.tier} (min_samples {privacy.min_samples}, min_clients {privacy.min_clients}, min_class_samples "
        f"{privacy.min_class_samples})"
    )


def _of_no_raw(spec: ModelSpec) -> tuple[str, ...]:
    kept = {
        "latents": "features of single samples, from which inputs can be rebuilt by whoever opens them",
        "none": "weights, from which single samples can sometimes be rebuilt",
    }.get(spec.memory.kind, "sums, which are those of few samples at first, and then give their features away")
    if spec.by_gradient and spec.memory.kind != "none":
        kept += ", and weights"
    lines = [
        f"promised: {_RAW}",
        f"not promised: that nothing can be guessed from what is kept ({kept}), or whether a sample was learned",
    ]
    if spec.memory.kind == "latents":
        lines.insert(1, _latents(spec))
    if spec.privacy.client_sums:
        lines.insert(1, _CLIENT_SUMS)
    if spec.int8_export is not None:
        lines.append(f"kept besides (int8_export): {int8_export.told()}")
    if spec.int8_trunk is not None:
        lines.append(f"kept besides (int8_trunk): {int8_trunk.told(spec.int8_trunk)}")
    if spec.late_labels is not None:
        lines.insert(1, f"personal data: {late_labels.told(spec.late_labels)}")
    return tuple(lines)


def _latents(spec: ModelSpec) -> str:
    ttl_s = spec.memory.ttl_s
    end = f"dropped {ttl_s:,.0f} s after they were learned" if ttl_s is not None else "without an end (ttl_s)"
    return (
        f"personal data: up to {spec.memory.capacity:,} features of single samples are kept, {end}; at rest each "
        "client's are sealed (AES-256-GCM) under a key of its own, and without that key nobody reads them again"
    )


def _of_aggregate(spec: ModelSpec) -> tuple[str, ...]:
    privacy = spec.privacy
    clients = f"{privacy.min_clients:,} client{'s' if privacy.min_clients != 1 else ''}"
    return (
        f"promised: {_RAW}",
        f"promised: since this was declared, any two states at rest or served are the same, or at least "
        f"{privacy.min_samples:,} samples of at least {clients} apart; until those have come nothing is durable, and "
        "clients keep it",
        f"promised: no class of fewer than {privacy.min_class_samples:,} samples is predicted, listed, reported or "
        "exported, and no single client's figures where it could be told apart",
        "not promised: that nobody can tell whether a sample was learned (tier dp is for that); that a class's own sum "
        "at rest is always over many: in a step it may have grown by one sample, so keep the data folder to yourself; "
        "that two names of a client are two people",
    )


def _of_dp(spec: ModelSpec) -> tuple[str, ...]:
    return (f"promised: {_RAW}", *dp.promised(spec))
