"""What was learned, in figures: from counts alone, JSON-able, bounded in size. Field names are those of the wire.

A figure that is not known yet (no scores, too few samples) is left out; 0 always means zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from everlearn.metrics.confusion import Confusion, worst_first
from everlearn.metrics.curve import LearningCurve
from everlearn.metrics.drift import FeatureMoments, label_distance
from everlearn.metrics.scores import ScoreCounts
from everlearn.metrics.window import Window

MAX_CLASSES: Final = 1000
"""Classes in a report, worst first."""
MAX_CONFUSIONS: Final = 1000
"""Confusions in a report, most frequent first."""
MAX_CLIENTS: Final = 100
"""Clients in a report, those that differ most first."""


def figures(confusion: Confusion, scores: ScoreCounts) -> dict[str, Any]:
    """The figures of some set of samples: all so far, or a window."""
    macro = confusion.macro()
    found: dict[str, Any] = {
        "samples": confusion.samples,
        "accuracy": confusion.hits / confusion.samples if confusion.samples else 0.0,
        "balanced_accuracy": macro.recall,
        "macro_precision": macro.precision,
        "macro_f1": macro.f1,
        "worst_class": macro.worst.label if macro.worst else "",
        "worst_recall": macro.worst.recall if macro.worst else 0.0,
        "auc_macro": scores.histograms.macro(),
        "auc_pooled": scores.histograms.pooled(),
        "temperature": scores.losses.fit(),
        "log_loss": scores.log_loss,
        "announced": scores.reliability.samples,
    }
    if scores.reliability.samples:
        found |= {"ece": scores.reliability.ece, "overconfidence": scores.reliability.overconfidence}
    return {name: figure for name, figure in found.items() if figure is not None}


def report(
    *, confusion: Confusion, scores: ScoreCounts, moments: FeatureMoments, curve: LearningCurve, window: Window
) -> dict[str, Any]:
    """Everything: figures so far and over the window, classes, confusions, reliability, learning curve, drift."""
    recent = window.confusion()
    return {
        "total": figures(confusion, scores),
        "window": figures(recent, window.scores()),
        **_classes(confusion, recent, scores.histograms.by_class()),
        **_confusions(confusion),
        "unattributed": confusion.unattributed,
        "classes_with_auc": scores.histograms.classes_apart,
        "reliability": [
            {"samples": samples, "confidence": confidence, "accuracy": accuracy}
            for samples, confidence, accuracy in scores.reliability.bins()
            if samples
        ],
        "curve": [
            {"samples": samples, "accuracy": accuracy, "accuracy_since": since}
            for samples, accuracy, since in curve.rows(confusion.samples, confusion.hits)
        ],
        "drift": _drift(confusion, moments, window),
        **_clients(window),
    }


def _classes(confusion: Confusion, recent: Confusion, auc: Mapping[str, float]) -> dict[str, Any]:
    recall_now = recent.recall()
    every = sorted(confusion.classes(), key=worst_first)
    rows = []
    for each in every[:MAX_CLASSES]:
        row: dict[str, Any] = {
            "label": each.label,
            "samples": each.samples,
            "predicted": each.predicted,
            "hits": each.hits,
            "precision": each.precision,
            "recall": each.recall,
            "f1": each.f1,
        }
        row |= {"windowed_recall": recall_now[each.label]} if each.label in recall_now else {}
        rows.append(row | ({"auc": auc[each.label]} if each.label in auc else {}))
    return {"classes": rows, "classes_left_out": len(every) - len(rows)}


def _confusions(confusion: Confusion) -> dict[str, Any]:
    largest = confusion.largest(MAX_CONFUSIONS)
    cells = [{"label": true, "predicted": guess, "samples": samples} for true, guess, samples in largest]
    return {"confusions": cells, "confusions_other": confusion.misses - sum(cell[2] for cell in largest)}


def _drift(confusion: Confusion, moments: FeatureMoments, window: Window) -> dict[str, Any]:
    recent, now = window.confusion(), window.moments()
    mix_now = {each.label: each.samples for each in recent.classes() if each.samples}
    mix_all = {each.label: each.samples for each in confusion.classes() if each.samples}
    mix_before = {label: count - mix_now.get(label, 0) for label, count in mix_all.items()}
    found: dict[str, Any] = {"window_samples": recent.samples, "samples_before": confusion.samples - recent.samples}
    shift = now.shift_from(moments.without(now))
    if shift is not None:
        found |= {"norm_shift": shift[0], "projection_shift": shift[1]}
    distance = label_distance(mix_now, {label: count for label, count in mix_before.items() if count > 0})
    return found | ({"label_distance": distance} if distance is not None else {})


def _clients(window: Window) -> dict[str, Any]:
    found = window.clients()
    rows = []
    for client, (mix, hits) in found.items():
        row: dict[str, Any] = {"client": client, "samples": mix.total(), "accuracy": hits / mix.total()}
        others: dict[str, int] = {}
        for other, (other_mix, _) in found.items():
            if other != client:
                for label, count in other_mix.items():
                    others[label] = others.get(label, 0) + count
        distance = label_distance(mix, others)
        rows.append(row | ({"label_distance": distance} if distance is not None else {}))
    rows.sort(key=lambda row: (-row.get("label_distance", -1.0), -row["samples"], row["client"]))
    return {"clients": rows[:MAX_CLIENTS], "clients_left_out": len(rows[MAX_CLIENTS:])}
