"""Whether moved sums may go live: figures of the held-out part of a calibration stream, and the gate they must pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from everlearn.errors import PreconditionError
from everlearn.export.parity import head_parity
from everlearn.heads import head_for
from everlearn.metrics.agreement import Agreement, agreement
from everlearn.spec.model import Gate, ModelSpec
from everlearn.sums import Sums
from everlearn.upgrade import FeatureMap, Pairs, fit_map, move
from everlearn.values import FeatureScale, QuantisedBd
from everlearn_server.engine.publisher import probe_features
from everlearn_server.engine.versions import check_gate

HELD_OUT_EVERY: Final = 5
"""Each fifth sample is held out of the fit and judges it."""
LEAST_HELD_OUT: Final = 30
"""Fewer say nothing of a mean."""
MOST_HELD_OUT: Final = 4096
"""They wait in RAM as features until the end of the call: 20 MiB at twice 1280; what comes later is fitted."""
_NAMED: Final = 5


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the caller asks of an upgrade, beside the declared gate."""

    max_drop: float = 0.1
    """Largest bound of the expected loss of accuracy. It errs on the safe side: 6.6 and 10.3 points
    where digits lost 3.4 and 1.7 (`python -m tests.benchmarks upgrade`)."""
    min_agreement: float = 0.8
    """Least share of held-out samples on which old and new head decide alike."""
    max_unseen_classes: int = 0
    """Learned classes that the old head may meet nowhere in the stream."""
    dry_run: bool = False
    """Only the figures."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What is known of the model as it serves."""

    windowed_accuracy: float
    stable_accuracy: float | None
    temperature: float | None
    class_samples: int = 1
    """Classes of fewer are not named."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One upgrade's figures."""

    to: FeatureMap
    samples: int
    """Behind the fit."""
    agreed: Agreement
    unexplained: float
    """Share of the new features' variance on held-out samples that the map leaves."""
    classes: int
    unseen: tuple[str, ...]
    windowed_accuracy: float
    accuracy_bound: float
    """Windowed accuracy less the bound of the loss."""
    passed: bool
    reason: str


@dataclass(kw_only=True)
class HeldOut:
    """Pairs that judge."""

    old_Bd: QuantisedBd
    new_Be: QuantisedBd


def judge(
    sums: Sums,
    pairs: Pairs,
    held: HeldOut,
    scales: tuple[FeatureScale, FeatureScale],
    spec: ModelSpec,
    standing: Standing,
    terms: Terms,
) -> Judged:
    """Fits, moves and holds old against new head. Raises PreconditionError (TOO_FEW_SAMPLES, EMPTY_MEMORY)."""
    if len(held.old_Bd) < LEAST_HELD_OUT:
        raise PreconditionError(
            f"{pairs.samples + len(held.old_Bd)} calibration samples are too few to judge by; stream at least "
            f"{LEAST_HELD_OUT * HELD_OUT_EVERY}, better 1,000 that show every class",
            reason="TOO_FEW_SAMPLES",
        )
    old, new = scales
    to = fit_map(pairs, old, new)
    kind = head_for(spec.head.kind, spec.head.regularization)
    old_head, new_head = kind.solve(sums, old), kind.solve(move(sums, to, old, new), new)
    old_Bd, new_Be = old.restore(held.old_Bd), new.restore(held.new_Be)
    old_BC = old_head.scores(old_Bd)
    agreed = agreement(old_BC, new_head.scores(new_Be), standing.temperature)
    met = {*pairs.counts, *(old_head.labels[index] for index in set(old_BC.argmax(axis=1).tolist()))}
    shown = max(standing.class_samples, 1)
    learned = [label for label, count in zip(sums.labels, sums.count_C, strict=True) if count >= shown]
    left_Be, spread_Be = new_Be - to.apply(old_Bd), new_Be - new_Be.mean(axis=0)
    unseen = tuple(label for label in learned if label not in met)
    bound = max(0.0, standing.windowed_accuracy - agreed.drop_bound)
    parity = head_parity(new_head, probe_features(new.step_d.size))
    reason = _refusal(agreed, unseen, len(learned), terms) or _of_gate(spec.gate, sums.samples, bound, standing, parity)
    return Judged(
        to=to,
        samples=pairs.samples,
        agreed=agreed,
        unexplained=float(np.sum(left_Be**2) / max(float(np.sum(spread_Be**2)), 1e-30)),
        classes=len(learned),
        unseen=unseen,
        windowed_accuracy=standing.windowed_accuracy,
        accuracy_bound=bound,
        passed=not reason,
        reason=reason or "passed",
    )


def _refusal(agreed: Agreement, unseen: tuple[str, ...], classes: int, terms: Terms) -> str:
    if len(unseen) > terms.max_unseen_classes:
        named = ", ".join(unseen[:_NAMED]) + (", ..." if len(unseen) > _NAMED else "")
        return (
            f"the stream shows none of {len(unseen)} of {classes} classes ({named}), and {terms.max_unseen_classes} "
            "may be missing; stream samples of them"
        )
    if agreed.share < terms.min_agreement:
        return (
            f"old and new head decide alike on {agreed.share:.1%} of {agreed.samples} held-out samples; "
            f"{terms.min_agreement:.1%} are needed"
        )
    if agreed.drop_bound > terms.max_drop:
        return (
            f"accuracy may fall by up to {agreed.drop_bound:.1%} ({agreed.drop:.1%} expected, {agreed.samples} "
            f"held-out samples); {terms.max_drop:.1%} are allowed"
        )
    return ""


def _of_gate(gate: Gate, samples: int, accuracy: float, standing: Standing, parity: float) -> str:
    """The declared gate, as if accuracy had fallen as far as it may."""
    found = check_gate(
        gate,
        sample_count=samples,
        windowed_accuracy=accuracy,
        stable_accuracy=standing.stable_accuracy,
        parity=parity,
    )
    return "" if found.passed else f"spec.gate, with the accuracy that may be left: {found.reason}"


def story(judged: Judged, samples: int, before: Mapping[str, str]) -> str:
    """Why the moved sums are not exact, in words that stay with them. `before`: the old trunk's provenance."""
    return (
        f"{samples:,} samples were learned on {before.get('source', 'another backbone')} and their sums moved here by "
        f"{judged.samples:,} unlabelled samples, which left {judged.unexplained:.0%} of the features' variance "
        f"unexplained; both heads decided alike on {judged.agreed.share:.1%} of {judged.agreed.samples:,} others"
    )
