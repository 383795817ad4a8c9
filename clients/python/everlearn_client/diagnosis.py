"""What a good engineer checks before blaming a model: from figures to findings, each with what to do.

Pure functions, so that every threshold can be read and tested here. `cli/doctor.py` measures the figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

CLOSED_FORM_HEADS = ("balanced_lda", "balanced_ridge", "ridge", "lda", "ncm")
"""Solved from sums: they take no step that could diverge."""


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """May be right; look at it."""
    BAD = "bad"
    """Mend this first."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check: what was found and what to do about it."""

    check: str
    level: Level
    found: str
    """A sentence with figures."""
    advice: str = ""
    """What to do; empty where nothing is to be done."""
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ImageFigures:
    """One image before it is resized; values in [0, 1]."""

    height: int
    width: int
    mean: float
    std: float
    greatest: float
    colour: float
    """Mean over the pixels of the largest channel less the smallest."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the backbone was trained on."""

    mean: float
    """Of values in [0, 1], over the channels."""
    std: float
    side: int
    """Shorter side the trunk takes, in pixels."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Accuracy on samples that came next, by a head that knew `known` samples."""

    known: int
    tested: int
    correct: int

    @property
    def accuracy(self) -> float:
        """Share of the tested ones."""
        return self.correct / self.tested

    @property
    def error(self) -> float:
        """Standard error of the accuracy (Agresti & Coull 1998, which is not 0 at 0 % and 100 %)."""
        share = (self.correct + 2) / (self.tested + 4)
        return math.sqrt(share * (1 - share) / (self.tested + 4))


def check_inputs(images: Sequence[ImageFigures], expected: Expected) -> list[Finding]:
    """Range, flat images, brightness and contrast, size, colour. `images` must not be empty."""
    return [
        _range(images),
        _flat(images),
        _brightness(images, expected),
        _size(images, expected),
        _colour(images),
    ]


def check_labels(count_of: Mapping[str, int]) -> Finding:
    """How many samples each class has; `count_of` must not be empty."""
    most, least = max(count_of.values()), min(count_of.values())
    figures = {"classes": len(count_of), "most": most, "least": least}
    shown = f"{len(count_of)} classes with {least} to {most} samples"
    rarest = min(count_of, key=lambda label: (count_of[label], label))
    if len(count_of) < 2:
        return _bad(
            "labels", f"only one class, {rarest!r}", "stream at least two classes, or check the labels", figures
        )
    if least < 5:
        return _warn(
            "labels",
            f"{shown}; {rarest!r} has fewer than 5",
            "stream more of the rare classes, or a larger --samples, before judging them",
            figures,
        )
    if most > 10 * least:
        return _warn(
            "labels",
            f"{shown}, {most / least:.0f} to 1",
            "keep the head balanced_ridge and judge by class-balanced accuracy",
            figures,
        )
    return _ok("labels", shown, figures)


def check_duplicates(samples: int, duplicates: int, conflicts: int) -> Finding:
    """`duplicates`: samples whose bytes came before; `conflicts`: samples whose bytes carry more than one label."""
    figures = {"samples": samples, "duplicates": duplicates, "conflicts": conflicts}
    if conflicts:
        level = Level.BAD if conflicts > 0.01 * samples else Level.WARN
        return Finding(
            check="duplicates",
            level=level,
            found=f"{conflicts} of {samples} samples carry two labels for the same bytes",
            advice="correct the labels: no model can be right about both",
            figures=figures,
        )
    if duplicates > 0.01 * samples:
        return _warn(
            "duplicates",
            f"{duplicates} of {samples} samples have come before, byte for byte",
            "remove them: they flatter test-then-train accuracy",
            figures,
        )
    return _ok("duplicates", f"{duplicates} of {samples} samples repeat earlier ones, none with another label", figures)


def check_baseline(last: CurvePoint, majority_share: float) -> Finding:
    """Whether looking at the input helps: against always answering the most frequent class."""
    ahead = last.accuracy - majority_share
    figures = {"accuracy": last.accuracy, "baseline": majority_share, "error": last.error, "tested": last.tested}
    shown = (
        f"{last.accuracy:.1%} (±{2 * last.error:.1%}) on {last.tested} samples before learning them, against "
        f"{majority_share:.1%} for always the most frequent class"
    )
    if ahead <= 2 * last.error:
        return _bad(
            "baseline",
            f"{shown}: it does not beat it",
            "check that labels belong to their images, then the inputs above, then try another backbone",
            figures,
        )
    if ahead < 0.3 * (1 - majority_share):
        return _warn("baseline", shown, "rank other backbones, or stream more samples a class", figures)
    return _ok("baseline", shown, figures)


def check_one_batch(correct: int, samples: int) -> Finding:
    """Whether a nearly unpenalised head can tell a handful of different samples apart that it has just learned."""
    figures = {"correct": correct, "samples": samples}
    shown = f"{correct} of {samples} samples right that were just learned"
    if correct == samples:
        return _ok("one batch", shown, figures)
    advice = "look for images that differ only in what the backbone cannot see (size, crop), and for wrong labels"
    if correct >= 0.9 * samples:
        return _warn("one batch", shown, advice, figures)
    return _bad("one batch", f"{shown}: their features are alike", advice, figures)


def check_fit(*, gcv_residual: float, log_me: float, h_score: float, h_shrinkage: float, per_class: float) -> Finding:
    """Whether the backbone's features hold the labels, from the sums alone. `per_class`: samples learned a class."""
    figures = {"gcv_residual": gcv_residual, "log_me": log_me, "h_score": h_score, "h_shrinkage": h_shrinkage}
    shown = (
        f"a linear head explains {1 - gcv_residual:.0%} of the labels' variance on unseen samples "
        f"(LogME {log_me:.3f}, H-score {h_score:.2f})"
    )
    if gcv_residual <= 0.5:
        return _ok("backbone", shown, figures)
    if per_class < 10:
        return _warn(
            "backbone", f"{shown}, at {per_class:.0f} samples a class", "give more --samples before judging it", figures
        )
    advice = "compare others with `everlearn backbones rank`, or let this one adapt (recipe first_session_analytic)"
    if gcv_residual > 0.9:
        return _bad("backbone", f"{shown}: next to nothing", advice, figures)
    return _warn("backbone", shown, advice, figures)


def check_curve(points: Sequence[CurvePoint], classes: int) -> Finding:
    """Where more samples stop helping. `points` by rising `known`, not empty."""
    last = points[-1]
    figures = {f"accuracy at {point.known / classes:.1f} a class": point.accuracy for point in points}
    shown = ", ".join(f"{point.accuracy:.0%} at {point.known / classes:.3g}" for point in points) + " samples a class"
    if len(points) < 2:
        return _warn("learning curve", shown, "give more --samples to see where it flattens", figures)
    before = points[-2]
    gain, error = last.accuracy - before.accuracy, math.hypot(last.error, before.error)
    if gain > max(0.01, error):
        return _warn(
            "learning curve",
            f"{shown}: still rising by {100 * gain:.1f} points as samples double",
            "stream more samples a class; it has not seen enough",
            figures,
        )
    flat = next(
        point for point in points if last.accuracy - point.accuracy <= max(0.01, math.hypot(point.error, last.error))
    )
    return _ok("learning curve", f"{shown}: flat from about {flat.known / classes:.3g} a class", figures)


def check_gradient(head: str) -> Finding:
    """Loss at initialisation against ln C, and the learning-rate range test.

    Closed-form heads have neither. For the others both come from the version's record, which does not hold them yet:
    this is the place that will judge them.
    """
    if head in CLOSED_FORM_HEADS:
        return _ok("gradient steps", f"head {head} is solved, not trained: no learning rate that could be wrong", {})
    return _warn(
        "gradient steps",
        f"head {head} is trained by gradient steps; its loss at initialisation and learning rate are not recorded yet",
        "compare the loss of the first steps with ln(classes) in the server's record of the version",
        {},
    )


def _range(images: Sequence[ImageFigures]) -> Finding:
    greatest = max(image.greatest for image in images)
    figures = {"greatest": 255 * greatest}
    if greatest <= 1.5 / 255:
        return _bad(
            "range",
            f"no value above {255 * greatest:.0f} of 255: floats from 0 to 1 were cast to uint8, or all is black",
            "multiply by 255 before the cast",
            figures,
        )
    if greatest < 0.25:
        return _bad(
            "range",
            f"no value above {255 * greatest:.0f} of 255",
            f"scale the images to 0..255: multiply by {1 / greatest:.3g}",
            figures,
        )
    return _ok("range", f"values reach {255 * greatest:.0f} of 255", figures)


def _flat(images: Sequence[ImageFigures]) -> Finding:
    flat = sum(image.std < 0.01 for image in images)
    figures = {"flat": flat, "images": len(images)}
    shown = f"{flat} of {len(images)} images are of one tone"
    advice = "look at them: a covered lens, a failed decoder or an empty crop"
    if flat > 0.05 * len(images):
        return _bad("flat images", shown, advice, figures)
    return _warn("flat images", shown, advice, figures) if flat else _ok("flat images", shown, figures)


def _brightness(images: Sequence[ImageFigures], expected: Expected) -> Finding:
    mean = float(np.mean([image.mean for image in images]))
    contrast = float(np.median([image.std for image in images]))
    offset = (mean - expected.mean) / expected.std
    figures = {"mean": mean, "offset": offset, "contrast": contrast}
    shown = f"mean {mean:.2f}, contrast {contrast:.2f}; the backbone expects {expected.mean:.2f} and {expected.std:.2f}"
    if abs(offset) > 1.2:
        tone = "light" if offset > 0 else "dark"
        return _warn(
            "brightness",
            f"{shown}: much too {tone}",
            "mend inverted or badly exposed images; where they are right, declare input.mean and input.std and compare",
            figures,
        )
    if contrast < 0.3 * expected.std:
        return _warn("brightness", f"{shown}: faint", "stretch the contrast, or declare input.std", figures)
    return _ok("brightness", shown, figures)


def _size(images: Sequence[ImageFigures], expected: Expected) -> Finding:
    side = float(np.median([min(image.height, image.width) for image in images]))
    figures = {"side": side, "expected": expected.side}
    shown = f"shorter side {side:.0f} px, the trunk takes {expected.side}"
    if side * 2 < expected.side:
        return _warn(
            "size",
            f"{shown}: enlarged {expected.side / side:.1f} times",
            "send larger images, or declare a smaller input.size, which is also quicker",
            figures,
        )
    return _ok("size", shown, figures)


def _colour(images: Sequence[ImageFigures]) -> Finding:
    grey = sum(image.colour < 0.01 for image in images)
    figures = {"grey": grey, "images": len(images)}
    shown = f"{grey} of {len(images)} images have no colour"
    if 0 < grey < len(images) and grey > 0.05 * len(images):
        return _warn(
            "colour", shown, "check whether two kinds of cameras are mixed: colour may stand for a label", figures
        )
    return _ok("colour", f"{shown}{': right for scans, wrong for photographs' if grey == len(images) else ''}", figures)


def _ok(check: str, found: str, figures: Mapping[str, float]) -> Finding:
    return Finding(check=check, level=Level.OK, found=found, figures=figures)


def _warn(check: str, found: str, advice: str, figures: Mapping[str, float]) -> Finding:
    return Finding(check=check, level=Level.WARN, found=found, advice=advice, figures=figures)


def _bad(check: str, found: str, advice: str, figures: Mapping[str, float]) -> Finding:
    return Finding(check=check, level=Level.BAD, found=found, advice=advice, figures=figures)
