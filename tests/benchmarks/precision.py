"""What a file in another precision costs and gives: EfficientNet-Lite0 with a head of ten digits, learned as a stream.

Accuracy is that of whole files, from uint8 images on, on digits that were not learned; the head is the server's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime
from tests.benchmarks.scene import Scene
from tests.benchmarks.table import Row

from everlearn.export.compose import Composer
from everlearn.export.parity import check_release
from everlearn.export.precision import PRECISIONS, TOLERANCE
from everlearn.export.probes import Probes, plain_session
from everlearn.heads import head_for
from everlearn.learners import ClosedForm
from everlearn.memories import memory_for
from everlearn.values import ImageHWC, LinearHead, Trunk
from everlearn_protos.delta.encoding import encode

GROUP = "precision"
SIZE = 96
TEST = 397
"""Of the 1797 digits are not learned."""
LARGE = 224
METADATA = {"model": "digits", "version": "1"}


@dataclass(frozen=True, kw_only=True)
class _Learned:
    trunk: Trunk
    heads: tuple[LinearHead, LinearHead]
    """After all digits but the test's, and before the last 32 of them."""
    images: list[ImageHWC]
    labels_B: npt.NDArray[np.int64]


def measure(scene: Scene, *, quick: bool) -> list[Row]:
    """Each precision in turn."""
    learned = _learn(scene, 50 if quick else TEST)
    probes = Probes.of(learned.trunk, scene.session(SIZE).run)
    rows = []
    for precision in PRECISIONS:
        scene.tell(f"{precision}: a file, its parity and its accuracy")
        composer = Composer(learned.trunk)
        before, file = (composer.compose(head, METADATA, precision=precision) for head in reversed(learned.heads))
        head = learned.heads[0]
        tolerance = max(1e-3, TOLERANCE[precision])
        report = check_release(file, head.scores, head.labels, probes, tolerance=tolerance)
        session = plain_session(file)
        accuracy = _accuracy(session, learned)
        small_ms = _cpu_ms(session, np.stack(learned.images[:1]), 5 if quick else 60)
        large = Composer(scene.trunk(LARGE)).compose(head, METADATA, precision=precision)
        large_ms = _cpu_ms(plain_session(large), scene.large_digits(LARGE, 1), 3 if quick else 40)
        detail = (
            f"accuracy on {len(learned.labels_B)} unseen digits, from the image on; processor time of an image of one "
            f"thread, median: {small_ms:.2f} ms at {SIZE} px, {large_ms:.2f} ms at {LARGE} px; parity on "
            f"{report.composed.probes} probes {report.composed.max_rel_diff:.1e} of {tolerance:g} allowed; 32 more "
            f"digits are a difference of {len(encode(before, file)) / 1e3:.1f} KB"
        )
        measured = f"{100 * accuracy:.1f} %, {len(file) / 1e6:.2f} MB"
        rows.append(
            Row(group=GROUP, what=f"EfficientNet-Lite0, ten digits, {precision}", measured=measured, detail=detail)
        )
    return rows


def _learn(scene: Scene, test: int) -> _Learned:
    features_Bd, (images, labels_B) = scene.digit_features_Bd, scene.digits
    trunk, order = scene.trunk(SIZE), np.random.default_rng(0).permutation(len(labels_B))
    learner = ClosedForm(
        memory_for("statistics").create(trunk.feature_dim, ()), head_for("balanced_ridge"), trunk.scale
    )
    heads = []
    for rows in (order[test + 32 :], order[test : test + 32]):
        learner.learn(features_Bd[rows], [str(label) for label in labels_B[rows]])
        heads.append(learner.head())
    return _Learned(
        trunk=trunk,
        heads=(heads[1], heads[0]),
        images=[images[row] for row in order[:test]],
        labels_B=labels_B[order[:test]],
    )


def _accuracy(session: onnxruntime.InferenceSession, learned: _Learned) -> float:
    given = [session.run(["label"], {"image": image[None]})[0][0] for image in learned.images]
    return float(np.mean([label == str(right) for label, right in zip(given, learned.labels_B, strict=True)]))


def _cpu_ms(session: onnxruntime.InferenceSession, image_NHWC: npt.NDArray[np.uint8], times: int) -> float:
    taken_ms = []
    for _ in range(times + 3):
        begun_s = time.process_time()
        session.run(["scores"], {"image": image_NHWC})
        taken_ms.append((time.process_time() - begun_s) * 1e3)
    return float(np.median(taken_ms[3:]))
