"""Shows that an export predicts what the server predicts, in plain ONNX Runtime and from the file's own bytes.

The head is compared on features, where only the order of float32 additions differs. The whole file is compared on
images, where also the two fronts differ: the server resizes with Pillow, the file with ONNX Runtime's Resize, by at
most 3 grey levels a pixel, which a trunk turns into small differences of the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime

from everlearn.errors import InputError, ParityError
from everlearn.export.compose import head_graph
from everlearn.values import FeaturesBd, FrontConfig, ImageHWC, LinearHead

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """How close the file and the server are."""

    max_abs_diff: float
    """Largest difference of a score."""
    max_rel_diff: float
    """The same, each image's relative to max(1, its largest score's magnitude): what the tolerance is about."""
    probes: int
    """Images compared."""
    label_agreement: float
    """Share of images with the same label, in [0, 1]; below 1 only where two labels' scores are nearly equal."""


def head_parity(head: LinearHead, features_Bd: FeaturesBd) -> float:
    """Largest difference between the exported head and this one, relative to max(1, largest score's magnitude).

    Raises InputError for features that do not fit the head.
    """
    if features_Bd.ndim != 2 or not len(features_Bd) or features_Bd.shape[1] != head.weight_dC.shape[0]:
        raise InputError(
            f"features have shape {features_Bd.shape}; this head takes [samples, {head.weight_dC.shape[0]}]",
            field="features",
        )
    session = _session(head_graph(head, features_Bd.shape[1]))
    (exported_BC,) = session.run(["scores"], {"features": np.ascontiguousarray(features_Bd, np.float32)})
    served_BC = head.scores(features_Bd)
    return float(np.abs(exported_BC - served_BC).max() / max(1.0, float(np.abs(served_BC).max())))


def check_export(
    onnx: bytes,
    images: Sequence[ImageHWC],
    server_scores: Callable[[ImageHWC], Scores] | Sequence[Scores],
    *,
    tolerance: float,
    labels: Sequence[str],
    threads: int = 1,
) -> ParityReport:
    """Runs the file on `images` and compares with `server_scores`: a row [C] for each image, or what computes it.

    `tolerance`: of a score, relative to max(1, largest magnitude among the image's scores). `threads`: ONNX
    Runtime's.

    Raises ParityError where a score differs by more, the file's label is not the one of its highest score, the labels
    differ although the server's two best scores are more than twice the tolerance apart, or the label table differs.
    """
    if not images:
        raise InputError("no images to compare on; give at least one", field="images")
    session = _session(onnx, threads)
    compared = [
        _compare(session, image, served_C, tolerance, labels, f"images[{index}]")
        for index, (image, served_C) in enumerate(zip(images, _rows(images, server_scores), strict=True))
    ]
    return ParityReport(
        max_abs_diff=max(difference for difference, _, _ in compared),
        max_rel_diff=max(relative for _, relative, _ in compared),
        probes=len(compared),
        label_agreement=sum(same for _, _, same in compared) / len(compared),
    )


def probe_images(front: FrontConfig, *, seed: int = 0) -> list[ImageHWC]:
    """Images to compare on where there are no real ones, as on a server that keeps none; the same every time.

    Smooth like photographs rather than white noise, in the shapes that lead through different parts of the front: as
    large as the trunk takes, larger, smaller, wide, tall; and one of noise, which differs the most when resized.
    """
    random = np.random.default_rng(seed)
    height, width = front.height, front.width
    sizes = [(height, width), (2 * height + 1, 2 * width), (height // 3 + 1, width // 3 + 2), (height, 2 * width + 3)]
    smooth = [_smooth(random, *size) for size in [*sizes, (2 * height - 1, width)]]
    noise = random.integers(0, 256, (height + 7, width + 5, 3), np.uint8)
    return [*smooth, noise]


def _smooth(random: np.random.Generator, height: int, width: int) -> ImageHWC:
    coarse = random.uniform(0, 255, (6, 6, 3))
    rows, columns = np.linspace(0, 5, height), np.linspace(0, 5, width)
    # Bilinear from the coarse grid: first down each column, then along each row.
    tall = np.stack([np.stack([np.interp(rows, range(6), coarse[:, x, c]) for x in range(6)], 1) for c in range(3)], 2)
    left = np.minimum(columns.astype(int), 4)
    share = (columns - left)[None, :, None]
    image: ImageHWC = np.rint(tall[:, left] * (1 - share) + tall[:, left + 1] * share).astype(np.uint8)
    return image


def _rows(images: Sequence[ImageHWC], server_scores: Callable[[ImageHWC], Scores] | Sequence[Scores]) -> list[Scores]:
    rows = [server_scores(image) for image in images] if callable(server_scores) else list(server_scores)
    if len(rows) != len(images):
        raise InputError(f"{len(rows)} rows of scores for {len(images)} images; give one each", field="server_scores")
    return [np.asarray(row, np.float32).reshape(-1) for row in rows]


def _compare(
    session: onnxruntime.InferenceSession,
    image: ImageHWC,
    served_C: Scores,
    tolerance: float,
    labels: Sequence[str],
    place: str,
) -> tuple[float, float, bool]:
    wanted = ["scores", "label_index", "label", "labels"]
    scores_1C, index_1, label_1, table_C = session.run(wanted, {"image": image[None]})
    if list(table_C) != list(labels):
        raise ParityError(f"the file's label table has {len(table_C)} labels that are not the server's {len(labels)}")
    if scores_1C.shape != (1, served_C.size):
        raise ParityError(
            f"the file gives scores of shape {scores_1C.shape}; the server gives {served_C.size} for {place}"
        )
    difference = float(np.abs(scores_1C[0] - served_C).max())
    relative = difference / max(1.0, float(np.abs(served_C).max()))
    # Not `>`: a score that is not a number differs from everything.
    if not relative <= tolerance:
        raise ParityError(f"scores of {place} differ by {relative:.3g} of their size; at most {tolerance:g} is allowed")
    if index_1[0] != scores_1C[0].argmax() or label_1[0] != labels[int(index_1[0])]:
        raise ParityError(f"the file labels {place} with {label_1[0]!r}, which does not have its highest score")
    same = bool(index_1[0] == served_C.argmax())
    if not same and _margin(served_C) > 2 * tolerance * max(1.0, float(np.abs(served_C).max())):
        raise ParityError(
            f"the file labels {place} with {label_1[0]!r}; the server, with {labels[int(served_C.argmax())]!r}"
        )
    return difference, relative, same


def _margin(scores_C: Scores) -> float:
    if scores_C.size < 2:
        return float("inf")
    second, first = np.partition(scores_C, -2)[-2:]
    return float(first - second)


def _session(onnx: bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base but this
        raise ParityError(f"ONNX Runtime does not load the file: {error}") from error
