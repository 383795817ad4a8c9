"""What tier dp composes with: everything that is persisted, served or told must come out of the noise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from everlearn.privacy.accountant import epsilon_of, noise_within, rho_of, rho_within

if TYPE_CHECKING:
    from everlearn.spec.model import ModelSpec

NOISED_HEADS = ("balanced_ridge", "ridge")
"""Heads that are solved from sums with noise."""
_TIER = "privacy.tier dp"
_PRIVATE_ADAPTS = ("frozen", "last_blocks", "full")
_NOT_IN_NOISE = ("mixup", "dropout", "stochastic_depth", "freeze_until", "soup", "early_stop", "augment", "compile")


def contradiction(spec: ModelSpec) -> str | None:
    """The first thing in a declaration that the noise would not cover, or that could never be within the budget."""
    privacy = spec.privacy
    if privacy.tier != "dp":
        return None
    return _of_what_is_told(spec) or _of_what_learns(spec) or _of_budget(spec)


def _of_what_is_told(spec: ModelSpec) -> str | None:
    if spec.task != "classification":
        return f"{_TIER} hides samples with one label each, and the task is {spec.task}; write tier: aggregate"
    if not spec.labels:
        return f"{_TIER} needs declared labels: that a new one appears would tell of a sample; write labels: [...]"
    if spec.gate.min_accuracy or spec.gate.max_drop is not None:
        name = "min_accuracy" if spec.gate.min_accuracy else "max_drop"
        return (
            f"gate.{name} goes by what samples showed, and with {_TIER} no such count is kept, for each would spend "
            "budget; leave it out, and judge versions on samples of your own"
        )
    if spec.distill_to is not None:
        return f"distill_to learns from pixels without noise, and with {_TIER} nothing may; leave it out"
    for name in ("norm", "client_gate"):
        if getattr(spec.limits, name) is not None:
            why = "every feature vector is brought to one length" if name == "norm" else "no accuracy is counted"
            return f"limits.{name} has no meaning with {_TIER}: {why}; leave it out"
    return None


def _of_what_learns(spec: ModelSpec) -> str | None:
    if spec.by_gradient:
        return _of_steps(spec)
    if spec.adapt.kind != "frozen":
        return f"adapt {spec.adapt.kind} fits weights to samples without noise; with {_TIER} write adapt.kind: frozen"
    if spec.memory.kind != "statistics" or spec.retention.features != "sums":
        return f"memory {spec.memory.kind} keeps more than sums with noise; with {_TIER} write memory.kind: statistics"
    if spec.memory.decay != 1:
        return f"memory.decay is not for sums with noise, which would outlive them; with {_TIER} leave it out"
    if spec.head.kind not in NOISED_HEADS:
        kinds = " or ".join(NOISED_HEADS)
        return f"head {spec.head.kind} knows nothing of the noise on its sums; with {_TIER} write head.kind: {kinds}"
    return None


def _of_steps(spec: ModelSpec) -> str | None:
    """Where each row's gradient is bounded by itself: what mixes rows, keeps them, or goes by what they showed."""
    train = spec.train
    if spec.head.kind != "linear":
        return f"head {spec.head.kind} has no gradient a row that is known; with {_TIER} write head.kind: linear"
    if spec.memory.kind != "none":
        return (
            f"memory {spec.memory.kind} would bring samples into steps again and again, and each time spends budget; "
            f"with {_TIER} write memory.kind: none"
        )
    if spec.adapt.kind not in _PRIVATE_ADAPTS:
        return f"adapt {spec.adapt.kind} is not known to bound a row's gradient; with {_TIER} write adapt.kind: frozen"
    if spec.regularize:
        return f"regularize goes by what samples do to weights, without noise; with {_TIER} leave it out"
    if spec.loss is not None and (spec.loss.kind != "cross_entropy" or spec.loss.logit_adjustment):
        return f"loss looks at other rows of a step; with {_TIER} write loss.kind: cross_entropy, and no more"
    if train is None:
        return None
    for name in _NOT_IN_NOISE:
        if getattr(train, name):
            return f"train.{name} mixes rows, or goes by what they showed; with {_TIER} leave it out"
    if train.optimizer.l1:
        return f"train.optimizer.l1 is not part of a row's gradient; with {_TIER} leave it out"
    if not train.optimizer.clip_norm:
        return f"train.optimizer.clip_norm 0 bounds nothing; with {_TIER} write what a row's gradient may be at most"
    return None


def _of_budget(spec: ModelSpec) -> str | None:
    privacy = spec.privacy
    assert privacy.epsilon is not None, "a tier fills in all of its options"
    assert privacy.delta is not None, "likewise"
    assert privacy.noise is not None, "likewise"
    if (privacy.min_clients or 0) > (privacy.min_samples or 0):
        return (
            f"privacy.min_clients is {privacy.min_clients} and privacy.min_samples {privacy.min_samples}, and each "
            f"client brings a sample at least; write min_samples: {privacy.min_clients} or more"
        )
    once = epsilon_of(rho_of(privacy.noise), privacy.delta)
    if once <= privacy.epsilon:
        return None
    least = math.ceil(noise_within(privacy.epsilon, privacy.delta) * 1000) / 1000
    return (
        f"privacy.noise {privacy.noise:g} spends epsilon {once:.3g} at once, and privacy.epsilon is "
        f"{privacy.epsilon:g}; write noise: {least:g} or more"
    )


def promised(spec: ModelSpec) -> tuple[str, ...]:
    """What a budget means, for people: what one release spends, how many there can be, what is not promised."""
    privacy = spec.privacy
    assert privacy.epsilon is not None, "a tier fills in all of its options"
    assert privacy.delta is not None, "likewise"
    assert privacy.noise is not None, "likewise"
    once = epsilon_of(rho_of(privacy.noise), privacy.delta)
    if privacy.unit == "sample":
        whom, spends = "one sample", f"each is released once and spends {once:.3g}"
    else:
        most = math.floor(rho_within(privacy.epsilon, privacy.delta) / rho_of(privacy.noise) * (1 + 1e-9))
        whom = "all that one client ever sends"
        spends = f"{privacy.client_samples} samples of it in a step spend {once:.3g}; it has {most:,} such steps"
    return (
        f"promised: epsilon {privacy.epsilon:g} at delta {privacy.delta:g} (differential privacy): what is at rest, "
        f"served or told says next to nothing of what was in {whom}; {spends}; past the budget nothing more is learned",
        f"promised: noise before anything is persisted or told, anew every {privacy.min_samples:,} samples or more of "
        f"{privacy.min_clients:,} clients or more; no accuracy is counted, no label appears that was not declared",
        "not promised: that nobody sees who sends samples, how many and when, or that some were refused; that a sample "
        "sent twice is one; anything against who copies the disk between a crash and the restart",
    )


def samples_wanted(spec: ModelSpec, feature_dim: int) -> int:
    """Samples from which on the noise on a class's mean is a fifth of its length: below, heads are poor.

    With n samples in steps of k the noise of n / k releases adds up: sqrt(n / k) z sqrt(d / s) against n / C.
    """
    from everlearn.privacy.mechanism import SHARES

    privacy = spec.privacy
    one = 5 * max(len(spec.labels), 2) * privacy.sample_noise * math.sqrt(feature_dim / SHARES[1])
    step = privacy.min_samples or 1
    return math.ceil(one if one <= step else one**2 / step)


def warnings(spec: ModelSpec, feature_dim: int | None) -> list[str]:
    """What would be met too late."""
    if feature_dim is None and spec.backbone.loader == "identity" and spec.projection is None:
        feature_dim = math.prod(spec.input.shape or ())
    if spec.privacy.tier != "dp" or feature_dim is None or spec.by_gradient:
        return []
    wanted, step = samples_wanted(spec, feature_dim), spec.privacy.min_samples or 1
    if wanted <= step:
        return []
    one = samples_wanted(spec.model_copy(update={"privacy": _in_steps_of(spec, wanted)}), feature_dim)
    return [
        f"not enough data for privacy.noise {spec.privacy.noise:g} below some {wanted:,} samples: {feature_dim} "
        f"features, {len(spec.labels)} labels and noise anew every {step:,} samples; with privacy.min_samples {one:,} "
        f"clients keep theirs for longer, and {one:,} are enough"
    ]


def _in_steps_of(spec: ModelSpec, samples: int) -> object:
    return spec.privacy.model_copy(update={"min_samples": samples})
