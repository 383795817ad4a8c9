"""Shows that an export predicts what the server predicts, in plain ONNX Runtime and from the file's own bytes.

Two things differ between the file and the server, by very different amounts, so each has a tolerance of its own:

- the order of float32 additions in trunk and head: the last digits of a score. `tolerance`, the model's declared one.
- the resize (Pillow in the server, ONNX Runtime in the file): a grey level here and there. A network can turn that into
  percents of a score, most of all where tiny images are enlarged. One tolerance wide enough for it would wave a wrong
  trunk through. So the file is held strictly to the
  server's trunk and head on the pixels of its own front, the two fronts to each other in grey levels, and the labels
  and scores from image to end to `FRONT_TOLERANCE`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from everlearn.errors import InputError, ParityError
from everlearn.export.compose import head_graph, score_output
from everlearn.export.novelty import NOVELTY
from everlearn.export.probes import Probes, plain_session
from everlearn.metrics.label_sets import THRESHOLD
from everlearn.values import UNKNOWN, FeaturesBd, ImageHWC, LinearHead, Task

Scores = npt.NDArray[np.float32]

FRONT_TOLERANCE = 0.1
"""Most that a score may differ by because of the two fronts, relative to max(1, largest score's magnitude)."""


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """How close the file and the server are."""

    max_abs_diff: float
    """Largest difference of a score."""
    max_rel_diff: float
    """The same, each sample's relative to max(1, its largest score's magnitude): what the tolerance is about."""
    probes: int
    """Samples compared."""
    label_agreement: float
    """Share of samples with the same label, in [0, 1]; below 1 only where two labels' scores are nearly equal."""


@dataclass(frozen=True, kw_only=True)
class ReleaseReport:
    """Why a file was released."""

    composed: ParityReport
    """Against the server's trunk and head on the pixels of the file's own front: the model's declared tolerance."""
    served: ParityReport
    """Against all that the server does from the image on, its own front included."""
    front_grey_levels: float
    """Largest difference of a pixel between the two fronts, of 255."""


def check_release(
    onnx: bytes,
    scores_of: Callable[[FeaturesBd], Scores],
    labels: Sequence[str],
    probes: Probes,
    *,
    task: Task = "classification",
    tolerance: float,
    novelty_of: Callable[[FeaturesBd], Scores | None] = lambda features_Bd: None,
    threads: int = 1,
) -> ReleaseReport:
    """Raises ParityError unless the file predicts what the server predicts; see the module's text.

    `scores_of`: the server's own, of the trunk's features. `tolerance`: the declared one (`gate.parity`), relative to
    max(1, largest magnitude among an image's scores). `novelty_of`: as `scores_of`; None of what knows no
    unknown samples.
    """
    tells_novelty = novelty_of(probes.features_Bd) is not None
    outputs = _run(onnx, probes.name, probes.samples, threads, task, tells_novelty=tells_novelty)
    composed, served = (
        _compare(outputs, scores_of(features_Bd), limit, labels, task, served_novelty_B=novelty_of(features_Bd))
        for features_Bd, limit in ((probes.features_Bd, tolerance), (probes.served_Bd, FRONT_TOLERANCE))
    )
    return ReleaseReport(composed=composed, served=served, front_grey_levels=probes.front_grey_levels)


def distance(scores_BC: Scores, served_BC: Scores, task: Task = "classification") -> ParityReport:
    """How far scores are from the server's, which nothing is refused for. Both [B, C], in the same order."""
    apart_BC = np.abs(scores_BC - served_BC)
    same = [
        _chosen(ours_C, task) == _chosen(served_C, task) for ours_C, served_C in zip(scores_BC, served_BC, strict=True)
    ]
    return ParityReport(
        max_abs_diff=float(apart_BC.max()),
        max_rel_diff=float((apart_BC / _sizes(served_BC, task)).max()),
        probes=len(scores_BC),
        label_agreement=float(np.mean(same)),
    )


def head_parity(head: LinearHead, features_Bd: FeaturesBd) -> float:
    """Largest difference between the exported head and this one, relative to max(1, largest score's magnitude); of the
    novelty, relative to max(1, novelty).

    Raises InputError for features that do not fit the head.
    """
    if features_Bd.ndim != 2 or not len(features_Bd) or features_Bd.shape[1] != head.weight_dC.shape[0]:
        raise InputError(
            f"features have shape {features_Bd.shape}; this head takes [samples, {head.weight_dC.shape[0]}]",
            field="features",
        )
    session = plain_session(head_graph(head, features_Bd.shape[1]))
    given = {"features": np.ascontiguousarray(features_Bd, np.float32)}
    if head.novelty is not None:
        exported_BC, exported_B = session.run(["scores", NOVELTY], given)
        apart = _novelty_apart(exported_B, head.novelty.of(features_Bd))
    else:
        (exported_BC,) = session.run([score_output(head.task)], given)
        apart = 0.0
    served_BC = head.scores(features_Bd)
    if head.task == "regression":  # each output has a unit of its own
        return float((np.abs(exported_BC - served_BC) / _sizes(served_BC, head.task)).max())
    return max(apart, float(np.abs(exported_BC - served_BC).max() / max(1.0, float(np.abs(served_BC).max()))))


def check_export(
    onnx: bytes,
    images: Sequence[ImageHWC],
    server_scores: Callable[[ImageHWC], Scores] | Sequence[Scores],
    *,
    tolerance: float,
    labels: Sequence[str],
    task: Task = "classification",
    threads: int = 1,
) -> ParityReport:
    """Runs the file on `images` and compares with `server_scores`: a row [C] for each image, or what computes it.

    `tolerance`: of a score, relative to max(1, largest magnitude among the image's scores); not below
    `FRONT_TOLERANCE` where `server_scores` come through the server's own front (`check_release` is then the stricter
    test). `threads`: ONNX Runtime's.

    Raises ParityError where a score differs by more, the file's label is not the one of its highest score, the labels
    differ although the server's two best scores are more than twice the tolerance apart, or the label table differs.
    """
    served = [server_scores(image) for image in images] if callable(server_scores) else list(server_scores)
    if not images or len(served) != len(images):
        raise InputError(
            f"{len(served)} rows of scores for {len(images)} images; give at least one image, and a row for each",
            field="server_scores",
        )
    served_BC = np.stack([np.asarray(row, np.float32).reshape(-1) for row in served])
    samples = [np.ascontiguousarray(image)[None] for image in images]
    return _compare(_run(onnx, "image", samples, threads, task), served_BC, tolerance, labels, task)


@dataclass(frozen=True, kw_only=True)
class _Outputs:
    """What the file gives for one sample."""

    scores_C: Scores
    chosen: tuple[int, ...]
    """Columns of the label, or of the labels that are present; of values, none."""
    label: str | None
    table: Sequence[str] | None
    novelty: float | None = None
    """Where samples may be unknown."""


_ANSWERS: Mapping[Task, tuple[str, ...]] = {
    "classification": ("label_index", "label", "labels"),
    "multilabel": ("present", "labels"),
    "regression": (),
}
"""Outputs besides the numbers."""


def _run(
    onnx: bytes,
    name: str,
    samples: Sequence[npt.NDArray[np.generic]],
    threads: int,
    task: Task,
    *,
    tells_novelty: bool = False,
) -> list[_Outputs]:
    session = plain_session(onnx, threads)
    wanted = [score_output(task), *_ANSWERS[task], *([NOVELTY] if tells_novelty else [])]
    return [_outputs(dict(zip(wanted, session.run(wanted, {name: each}), strict=True)), task) for each in samples]


def _outputs(given: Mapping[str, npt.NDArray[Any]], task: Task) -> _Outputs:
    scores_C = given[score_output(task)][0]
    if task == "regression":
        return _Outputs(scores_C=scores_C, chosen=(), label=None, table=None)
    table = [str(label) for label in given["labels"]]
    if task == "multilabel":
        chosen = tuple(int(column) for column in np.flatnonzero(given["present"][0]))
        return _Outputs(scores_C=scores_C, chosen=chosen, label=None, table=table)
    chosen = (int(given["label_index"][0]),)
    novelty = float(given[NOVELTY][0]) if NOVELTY in given else None
    return _Outputs(scores_C=scores_C, chosen=chosen, label=str(given["label"][0]), table=table, novelty=novelty)


def _compare(
    outputs: Sequence[_Outputs],
    served_BC: Scores,
    tolerance: float,
    labels: Sequence[str],
    task: Task,
    *,
    served_novelty_B: Scores | None = None,
) -> ParityReport:
    absolute, relative, same = [], [], 0
    size_BC = _sizes(served_BC, task)
    novelty_B = [None] * len(outputs) if served_novelty_B is None else served_novelty_B.tolist()
    rows = zip(outputs, served_BC, size_BC, novelty_B, strict=True)
    for number, (ours, served_C, size_C, novelty) in enumerate(rows):
        _check_labels(ours, labels, number, task)
        apart_C = np.abs(ours.scores_C - served_C)
        absolute.append(float(apart_C.max()))
        relative.append(float((apart_C / size_C).max()))
        # Not `>`: a score that is not a number differs from everything.
        if not relative[-1] <= tolerance:
            raise ParityError(
                f"scores of probe {number} differ by {relative[-1]:.3g} of their size; at most {tolerance:g} is allowed"
            )
        is_edge = _check_novelty(ours.novelty, novelty, tolerance, number)
        served = _chosen(served_C, task, novelty)
        same += ours.chosen == served
        is_near = is_edge or _is_near(ours, served_C, task, 2 * tolerance * float(size_C[0]))
        if ours.chosen != served and not is_near:
            raise ParityError(f"the file labels probe {number} {ours.chosen}, the server {served}")
    return ParityReport(
        max_abs_diff=max(absolute), max_rel_diff=max(relative), probes=len(outputs), label_agreement=same / len(outputs)
    )


def _sizes(served_BC: Scores, task: Task) -> npt.NDArray[np.float64]:
    """What a difference is relative to: a sample's largest score, or an output's largest value, for units differ."""
    if task == "regression":
        largest_C = np.maximum(np.abs(served_BC).max(axis=0).astype(np.float64), 1e-30)
        return np.broadcast_to(largest_C, served_BC.shape)
    largest_B1 = np.maximum(np.abs(served_BC).max(axis=1, keepdims=True).astype(np.float64), 1.0)
    return np.broadcast_to(largest_B1, served_BC.shape)


def _check_novelty(ours: float | None, served: float | None, tolerance: float, number: int) -> bool:
    """Whether a sample is so near to where it becomes unknown that rounding decides. Raises ParityError."""
    if ours is None or served is None:
        return False
    # Twice: it is a squared length, and so are its differences.
    apart = _novelty_apart(np.array([ours]), np.array([served]))
    if not apart <= 2 * tolerance:
        raise ParityError(
            f"the novelty of probe {number} differs by {apart:.3g} of its size; at most {2 * tolerance:g} is allowed"
        )
    return abs(served - 1) <= 2 * tolerance


def _novelty_apart(ours_B: npt.NDArray[np.floating], served_B: npt.NDArray[np.floating]) -> float:
    return float((np.abs(ours_B - served_B) / np.maximum(1.0, served_B)).max())


def _chosen(scores_C: Scores, task: Task, novelty: float | None = None) -> tuple[int, ...]:
    if task == "regression":
        return ()
    if task == "multilabel":
        return tuple(int(column) for column in np.flatnonzero(scores_C >= THRESHOLD))
    if novelty is not None and not novelty <= 1:
        return (UNKNOWN,)
    return (int(scores_C.argmax()),)


def _is_near(ours: _Outputs, served_C: Scores, task: Task, slack: float) -> bool:
    """Whether another choice than the server's is a matter of rounding."""
    if task == "classification":
        return _margin(served_C) <= slack
    differ = list(set(ours.chosen) ^ set(_chosen(served_C, task)))
    return bool((np.abs(served_C[differ] - THRESHOLD) <= slack).all())


def _check_labels(ours: _Outputs, labels: Sequence[str], number: int, task: Task) -> None:
    if (ours.table is not None and ours.table != list(labels)) or ours.scores_C.shape != (len(labels),):
        raise ParityError(
            f"the file has {len(ours.table or ())} labels and {ours.scores_C.size} scores that are not "
            f"the server's {len(labels)} labels in their order"
        )
    if ours.chosen != _chosen(ours.scores_C, task, ours.novelty):
        raise ParityError(f"the file labels probe {number} {ours.label!r}, which its own scores do not say")
    if ours.label is not None and ours.label != (labels[ours.chosen[0]] if ours.chosen[0] != UNKNOWN else ""):
        raise ParityError(f"the file labels probe {number} {ours.label!r}, which does not have its highest score")


def _margin(scores_C: Scores) -> float:
    if scores_C.size < 2:
        return float("inf")
    second, first = np.partition(scores_C, -2)[-2:]
    return float(first - second)
