"""Recipes by the names the literature knows them by: each is data, and expands to the axes of a declaration.

What a declaration says itself wins over its recipe; `plan` shows the whole.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from everlearn.spec.composition import GRADIENT_HEADS, HEADS_OF, LOSSES_OF, MOVING

DEFAULT: Final = "analytic"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One named recipe."""

    title: str
    """What it does and where it comes from, in a line."""
    axes: Mapping[str, Any] = field(default_factory=dict)
    """Parts of `spec` that it sets."""
    advice: str = ""
    """When to use it and when not, with what was measured."""
    is_weak: bool = False
    """Known to fail on an open label set: `plan` warns."""


_LATENTS = {"kind": "latents"}
_LINEAR = {"kind": "linear"}
_KEEP = {"features": "latents"}
_FORGETS = (
    "regularisers alone do not hold an open label set: 21 to 26 % on five steps of two classes of digits, where the "
    "sums keep 97 % (make bench-learning); add memory latents, or use analytic"
)


def _replayed(**axes: Any) -> dict[str, Any]:
    # Rows cost little where only a head learns; measured on MNIST: 91.6 % with 192, 91.1 % with the default's 64.
    return {"head": _LINEAR, "memory": _LATENTS, "retention": _KEEP, "train": {"replay": 192}, **axes}


def _regularised(kind: str) -> dict[str, Any]:
    return {"head": _LINEAR, "memory": {"kind": "none"}, "regularize": ({"kind": kind},)}


PRESETS: Final[Mapping[str, Preset]] = {
    "analytic": Preset(
        title="class-balanced ridge on exact sums: equals joint training on all that was streamed",
        advice="the default; use it wherever the backbone sees what matters",
    ),
    "ranpac": Preset(
        title="ridge on random features of the frozen backbone (RanPAC, McDonnell 2023, phase 2)",
        axes={"projection": {"dim": 2000}, "head": {"kind": "ridge"}},
        advice="where no plane separates classes (MNIST +0.2 points, digits -0.5); exports grow by 4 d * dim bytes",
    ),
    "slda": Preset(
        title="streaming linear discriminant analysis with a shrunk shared covariance (Hayes & Kanan 2020)",
        axes={"head": {"kind": "lda"}},
        advice="good scores as probabilities; on a par with analytic where classes have about one shape",
    ),
    "first_session_analytic": Preset(
        title="the last blocks fitted on the first samples, then analytic (First Session Adaptation, Panos 2023)",
        axes={"adapt": {"kind": "first_session"}},
        advice="data far from what the backbone was trained on, where the first samples are like those to come",
    ),
    "latent_replay": Preset(
        title="a linear head by gradient steps on new and replayed features (Pellegrini 2020)",
        axes=_replayed(),
        advice="where labels or domains drift and old samples should fade; analytic is better on a stable stream",
    ),
    "er_ace": Preset(
        title="latent replay whose new samples compete only within their batch (ER-ACE, Caccia 2022)",
        axes=_replayed(loss={"kind": "er_ace"}),
        advice="latent_replay with less forgetting right after new classes arrive",
    ),
    "der": Preset(
        title="latent replay that also keeps the scores a sample had (DER++, Buzzega 2020)",
        axes=_replayed(memory={"kind": "latents", "logits": True}, loss={"kind": "der"}),
        advice="small memories; costs C numbers more a latent",
    ),
    "icarl": Preset(
        title="nearest mean of herded exemplars of a frozen backbone (iCaRL, Rebuffi 2017, without its distillation)",
        axes={"head": {"kind": "ncm"}, "memory": {"kind": "latents", "selection": "herding"}, "retention": _KEEP},
        advice="for comparison: on a frozen trunk nearest means lose to ridge by 10 points and more",
    ),
    "lwf": Preset(
        title="learning without forgetting: distilled from the live version (Li & Hoiem 2016)",
        axes=_regularised("distill"),
        advice="domain shift over fixed labels",
        is_weak=True,
    ),
    "ewc": Preset(
        title="elastic weight consolidation, online (Kirkpatrick 2017, Schwarz 2018)",
        axes=_regularised("ewc"),
        advice="domain shift over fixed labels",
        is_weak=True,
    ),
    "si": Preset(
        title="synaptic intelligence (Zenke 2017)",
        axes=_regularised("si"),
        advice="domain shift over fixed labels",
        is_weak=True,
    ),
    "mas": Preset(
        title="memory aware synapses (Aljundi 2018)",
        axes=_regularised("mas"),
        advice="domain shift over fixed labels",
        is_weak=True,
    ),
    "l2sp": Preset(
        title="stay close to the starting weights (L2-SP, Xuhong Li 2018)",
        axes=_regularised("l2sp"),
        advice="short fine-tuning on few samples",
        is_weak=True,
    ),
}

RATES_OF: Final[Mapping[str, float]] = {"binary_cross_entropy": 0.01, "mse": 0.002, "huber": 0.002}
"""sgd's default for losses that want another than cross-entropy's. Measured in one pass over 300 patients (diabetes, R2
held out: ridge 0.371; 0.002: 0.358, 0.01: 0.304) and over 1,200 digits and five yes-or-no questions (held-out log loss:
logistic regression 0.163; 0.01: 0.187, 0.05: 0.230)."""

WARNING_WEAK: Final = _FORGETS
WARNING_NOTHING_HELD: Final = (
    "nothing guards what was learned: gradient steps without memory or regulariser forget every class that is not "
    "streamed any more; add memory latents, or use analytic"
)


def expand(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec with its recipe's axes filled in below what it says itself; an unknown recipe is left to its field.

    >>> expand({"recipe": "slda", "head": {"regularization": 0.1}})["head"]
    {'kind': 'lda', 'regularization': 0.1}
    """
    preset = PRESETS.get(str(spec.get("recipe", DEFAULT)))
    if preset is None:
        return dict(spec)
    merged = dict(spec)
    for axis, chosen in preset.axes.items():
        given = spec.get(axis)
        if given is None:
            merged[axis] = copy.deepcopy(chosen)
        elif isinstance(chosen, Mapping) and isinstance(given, Mapping):
            # Another kind has other options: then nothing of the recipe's choice is left.
            same = given.get("kind", chosen.get("kind")) == chosen.get("kind")
            merged[axis] = {**chosen, **given} if same else given
    task = merged.get("task")
    default = next((heads[0] for name, heads in HEADS_OF.items() if name == task), None)
    if default is not None and isinstance(merged.get("head", {}), Mapping):
        merged["head"] = {"kind": default, **merged.get("head", {})}
    head = merged.get("head")
    if isinstance(head, Mapping) and head.get("kind") in GRADIENT_HEADS:
        for axis in ("loss", "train"):
            merged[axis] = {} if merged.get(axis) is None else merged[axis]
        _choose_loss_and_rate(merged)
        _choose_optimizer(merged)
    else:
        # Of a recipe whose head was replaced by one that is solved: there are no steps.
        for axis in ("loss", "train"):
            if spec.get(axis) is None:
                merged.pop(axis, None)
    return merged


def _choose_optimizer(merged: dict[str, Any]) -> None:
    """Blocks want AdamW: on a shift from plain to noisy digits the new domain came out some 2 points higher than with
    the SGD that suits heads (tests/benchmarks/learning/shift.py)."""
    adapt, train = merged.get("adapt"), merged["train"]
    moves = isinstance(adapt, Mapping) and adapt.get("kind") in MOVING
    if moves and isinstance(train, Mapping) and train.get("optimizer") is None:
        merged["train"] = {**train, "optimizer": {"kind": "adamw"}}


def _choose_loss_and_rate(merged: dict[str, Any]) -> None:
    """The task's own loss where none is named, and the rate that such a loss wants; what is malformed is left to its
    field."""
    loss, train = merged["loss"], merged["train"]
    losses = next((kinds for name, kinds in LOSSES_OF.items() if name == merged.get("task")), None)
    if losses is not None and isinstance(loss, Mapping):
        loss = merged["loss"] = {"kind": losses[0], **loss}
    kind = loss.get("kind") if isinstance(loss, Mapping) else None
    rate = next((rate for name, rate in RATES_OF.items() if name == kind), None)
    if rate is None or not isinstance(train, Mapping):
        return
    optimizer = train.get("optimizer")
    optimizer = {} if optimizer is None else optimizer
    is_plain = isinstance(optimizer, Mapping) and optimizer.get("kind", "sgd") == "sgd"
    if is_plain and optimizer.get("learning_rate") is None:
        merged["train"] = {**train, "optimizer": {**optimizer, "learning_rate": rate}}
