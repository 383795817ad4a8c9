"""What a good engineer checks before blaming a model: from figures to findings, each with what to do.

Pure functions, so that every threshold can be read and tested here. `cli/doctor.py` measures the figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from everlearn_client.choosing.comparison import Correct, difference, noise_errors, points
from everlearn_client.choosing.findings import Finding, Level, bad, ok, warn

GRADIENT_HEADS = ("linear", "cosine")
"""They learn by steps; every other head is solved from sums, and has no step that could diverge."""


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


def check_labels(count_of: Mapping[str, int]) -> Finding:
    """How many samples each class has; `count_of` must not be empty."""
    most, least = max(count_of.values()), min(count_of.values())
    figures = {"classes": len(count_of), "most": most, "least": least}
    shown = f"{len(count_of)} classes with {least} to {most} samples"
    rarest = min(count_of, key=lambda label: (count_of[label], label))
    if len(count_of) < 2:
        return bad("labels", f"only one class, {rarest!r}", "stream at least two classes, or check the labels", figures)
    if least < 5:
        return warn(
            "labels",
            f"{shown}; {rarest!r} has fewer than 5",
            "stream more of the rare classes, or a larger --samples, before judging them",
            figures,
        )
    if most > 10 * least:
        return warn(
            "labels",
            f"{shown}, {most / least:.0f} to 1",
            "keep the head balanced_ridge and judge by class-balanced accuracy",
            figures,
        )
    return ok("labels", shown, figures)


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
        return warn(
            "duplicates",
            f"{duplicates} of {samples} samples have come before, byte for byte",
            "remove them: they flatter test-then-train accuracy",
            figures,
        )
    return ok("duplicates", f"{duplicates} of {samples} samples repeat earlier ones, none with another label", figures)


def check_baseline(last: CurvePoint, majority_share: float) -> Finding:
    """Whether looking at the input helps: against always answering the most frequent class."""
    ahead = last.accuracy - majority_share
    figures = {"accuracy": last.accuracy, "baseline": majority_share, "error": last.error, "tested": last.tested}
    shown = (
        f"{last.accuracy:.1%} (±{2 * last.error:.1%}) on {last.tested} samples before learning them, against "
        f"{majority_share:.1%} for always the most frequent class"
    )
    if ahead <= 2 * last.error:
        return bad(
            "baseline",
            f"{shown}: it does not beat it",
            "check that labels belong to their samples, then the inputs above, then try another backbone",
            figures,
        )
    if ahead < 0.3 * (1 - majority_share):
        return warn("baseline", shown, "rank other backbones, or stream more samples a class", figures)
    return ok("baseline", shown, figures)


def check_loss(*, log_loss: float, classes: int, samples: int) -> Finding:
    """Log-loss of probabilities as they were announced before learning, against guessing: ln C, where any model starts.

    `samples`: behind it.
    """
    start = math.log(classes)
    figures = {"log_loss": log_loss, "ln_classes": start, "samples": samples}
    shown = (
        f"log-loss {log_loss:.2f} on {samples} samples before learning them, against ln {classes} = {start:.2f} for "
        "guessing, where it starts"
    )
    advice = "compare with the accuracy below: probabilities that are far too sure come from labels that are wrong"
    if log_loss >= start:
        return bad("loss", f"{shown}: worse than that", advice, figures)
    if log_loss > 0.9 * start:
        return warn("loss", f"{shown}: hardly better", "stream more samples, or rank other backbones", figures)
    return ok("loss", shown, figures)


def check_range(
    option: str, *, chosen: float, is_declared: bool, correct_N: Correct, others: Mapping[float, Correct]
) -> Finding:
    """The range test: what a head is right about with the value of an option that it has, and with others.

    `option`: path below `spec`. All learned the same samples and were tested on the same. `others` must not be empty.
    """
    check = option.rpartition(".")[2].replace("_", " ")
    best = max(others, key=lambda value: (others[value].mean(), value))
    ahead, error = difference(others[best], correct_N)
    figures = {"chosen": chosen, "accuracy": float(correct_N.mean())}
    figures |= {f"accuracy at {value:g}": float(right_N.mean()) for value, right_N in sorted(others.items())}
    whose = "declared" if is_declared else "by default"
    tried = ", ".join(f"{right_N.mean():.1%} at {value:g}" for value, right_N in sorted(others.items()))
    shown = f"{correct_N.mean():.1%} at {chosen:.3g}, {whose}; {tried}"
    if ahead <= noise_errors(len(others)) * error:
        return ok(check, f"{shown}: none is better beyond the noise", figures)
    right = f"leave {option} out, or write" if is_declared else f"write {option}:"
    return warn(check, f"{shown}: {points(ahead)} more at {best:g}", f"{right} {best:g}", figures)


def check_one_batch(correct: int, samples: int, *, times: int = 1) -> Finding:
    """Whether a head that is left to overfit can tell a handful of different samples apart that it has just learned.

    `times`: that it was taught them, which is once where it is solved.
    """
    figures = {"correct": correct, "samples": samples, "times": times}
    shown = f"{correct} of {samples} samples right that were just learned{f' {times} times over' if times > 1 else ''}"
    if correct == samples:
        return ok("one batch", shown, figures)
    if times > 1:
        advice = "raise train.steps or the learning rate (see its range test), or take a head that is solved"
        return warn("one batch", f"{shown}: it learns slowly", advice, figures)
    advice = "look for samples that differ only in what the backbone cannot see (size, crop), and for wrong labels"
    if correct >= 0.9 * samples:
        return warn("one batch", shown, advice, figures)
    return bad("one batch", f"{shown}: their features are alike", advice, figures)


def check_fit(*, gcv_residual: float, log_me: float, h_score: float, h_shrinkage: float, per_class: float) -> Finding:
    """Whether the backbone's features hold the labels, from the sums alone. `per_class`: samples learned a class."""
    figures = {"gcv_residual": gcv_residual, "log_me": log_me, "h_score": h_score, "h_shrinkage": h_shrinkage}
    shown = (
        f"a linear head explains {1 - gcv_residual:.0%} of the labels' variance on unseen samples "
        f"(LogME {log_me:.3f}, H-score {h_score:.2f})"
    )
    if gcv_residual <= 0.5:
        return ok("backbone", shown, figures)
    if per_class < 10:
        return warn(
            "backbone", f"{shown}, at {per_class:.0f} samples a class", "give more --samples before judging it", figures
        )
    advice = "compare others with `everlearn backbones rank`, or let this one adapt (recipe first_session_analytic)"
    if gcv_residual > 0.9:
        return bad("backbone", f"{shown}: next to nothing", advice, figures)
    return warn("backbone", shown, advice, figures)


def check_curve(points: Sequence[CurvePoint], classes: int) -> Finding:
    """Where more samples stop helping. `points` by rising `known`, not empty."""
    last = points[-1]
    figures = {f"accuracy at {point.known / classes:.1f} a class": point.accuracy for point in points}
    shown = ", ".join(f"{point.accuracy:.0%} at {point.known / classes:.3g}" for point in points) + " samples a class"
    if len(points) < 2:
        return warn("learning curve", shown, "give more --samples to see where it flattens", figures)
    before = points[-2]
    gain, error = last.accuracy - before.accuracy, math.hypot(last.error, before.error)
    if gain > max(0.01, error):
        return warn(
            "learning curve",
            f"{shown}: still rising by {100 * gain:.1f} points as samples double",
            "stream more samples a class; it has not seen enough",
            figures,
        )
    flat = next(
        point for point in points if last.accuracy - point.accuracy <= max(0.01, math.hypot(point.error, last.error))
    )
    return ok("learning curve", f"{shown}: flat from about {flat.known / classes:.3g} a class", figures)


def check_steps(training: Mapping[str, float]) -> Finding:
    """The first batch of a head that learns by steps: its loss at initialisation against ln C, and how far it moves.

    `training`: of the version that it made (models.proto, Version.training).
    """
    start, expected = training["first_loss"], training["log_classes"]
    norm = training.get("gradient_norm", 0.0)
    figures = dict(training)
    shown = (
        f"loss at initialisation {start:.2f}, against ln C = {expected:.2f} for one who knows nothing; gradient norm "
        f"{norm:.3g}, learning rate {training.get('learning_rate', 0.0):.3g}"
    )
    if start > 1.5 * expected + 0.5:
        advice = "lower train.optimizer.learning_rate; a head should begin knowing nothing, not sure of what is wrong"
        return warn("first steps", f"{shown}: it begins confidently wrong", advice, figures)
    return ok("first steps", shown, figures)
