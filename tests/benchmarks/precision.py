"""What a file in another precision costs and gives: EfficientNet-Lite0 with a head of ten digits, learned as a stream.

Accuracy is that of whole files, from uint8 images on, on digits that were not learned; the head is the server's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import numpy_helper
from tests.benchmarks.scene import Scene, front
from tests.benchmarks.table import Row

from everlearn.export.compose import Composer
from everlearn.export.int8 import observer, plan, quantised, rounded
from everlearn.export.int8_trunk import calibrated
from everlearn.export.parity import check_release, distance
from everlearn.export.precision import PRECISIONS, TOLERANCE
from everlearn.export.probes import Probes, plain_session
from everlearn.export.ranges import RangeSketch
from everlearn.heads import head_for
from everlearn.inputs.front import to_pixels
from everlearn.learners import ClosedForm
from everlearn.learners.rounded import Rounded
from everlearn.memories import memory_for
from everlearn.runtime.session import TrunkSession
from everlearn.values import ImageHWC, LinearHead, Trunk
from everlearn_protos.delta.encoding import encode

GROUP = "precision"
SIZE = 96
TEST = 397
"""Of the 1797 digits are not learned."""
SEEN = 128
LARGE = 224
CHANGES = (0.0005, 0.005)
TARGET_KB = 600.0
METADATA = {"model": "digits", "version": "1"}


@dataclass(frozen=True, kw_only=True)
class _Learned:
    trunk: Trunk
    heads: tuple[LinearHead, LinearHead]
    """After all digits but the test's, and before the last 32 of them."""
    images: list[ImageHWC]
    taught: list[ImageHWC]
    taught_labels: list[str]
    seen: list[ImageHWC]
    """Learned, and looked at for ranges."""
    labels_B: npt.NDArray[np.int64]


def measure(scene: Scene, *, quick: bool) -> list[Row]:
    """Each precision in turn."""
    learned = _learn(scene, 50 if quick else TEST)
    session = scene.session(SIZE)
    server = Probes.of(learned.trunk, session.run)
    rows = []
    for precision in PRECISIONS:
        scene.tell(f"{precision}: a file, its parity and its accuracy")
        small, large = learned.trunk, scene.trunk(LARGE)
        if precision == "int8":
            small = _in_8_bits(scene, small, learned.seen, SIZE)
            large = _in_8_bits(scene, large, learned.seen[:64], LARGE)
        composer, head = Composer(small), learned.heads[0]
        before, file = (composer.compose(each, METADATA, precision=precision) for each in reversed(learned.heads))
        probes = Probes.of(small, TrunkSession(small.onnx).run)
        ours = rounded(head) if precision == "int8" else head
        report = check_release(file, ours.scores, head.labels, probes, tolerance=max(1e-3, TOLERANCE[precision]))
        apart = distance(ours.scores(probes.features_Bd), head.scores(server.features_Bd))
        if precision == "fp16":
            apart = report.composed
        made = plain_session(file)
        small_ms = _cpu_ms(made, np.stack(learned.images[:1]), 5 if quick else 60)
        large_file = Composer(large).compose(head, METADATA, precision=precision)
        large_ms = _cpu_ms(plain_session(large_file), scene.large_digits(LARGE, 1), 3 if quick else 40)
        detail = (
            f"accuracy on {len(learned.labels_B)} unseen digits, from the image on, labels equal to fp32 on "
            f"{100 * _agreement(made, learned, session):.1f} %; processor time of an image of one thread, median: "
            f"{small_ms:.2f} ms at {SIZE} px, {large_ms:.2f} ms at {LARGE} px; scores of {apart.probes} synthetic "
            f"probes within {apart.max_rel_diff:.1e} of fp32; 32 more digits are a difference of "
            f"{len(encode(before, file)) / 1e3:.1f} KB"
        )
        measured = f"{100 * _accuracy(made, learned):.1f} %, {len(file) / 1e6:.2f} MB"
        what = f"EfficientNet-Lite0, ten digits, {precision}"
        rows.append(Row(group=GROUP, what=what, measured=measured, detail=detail))
    scene.tell("learned on the trunk in 8 bits")
    rows.append(_on_int8_trunk(scene, learned, 5 if quick else 60))
    scene.tell("updates of every weight in 8 bits")
    return [*rows, *_full_updates(scene, learned)]


def _on_int8_trunk(scene: Scene, learned: _Learned, times: int) -> Row:
    """As a server with `int8_trunk` learns: all features are of the graph in 8 bits, and its own is what ships."""
    planned, told = plan(learned.trunk.onnx), front(SIZE)
    sketch, session = RangeSketch(planned.tensors), plain_session(observer(planned))
    for image in learned.seen:
        sketch.add(session.run(["extremes"], {"pixels": to_pixels(image, told)[None]})[0])
    seven = calibrated(learned.trunk, sketch)
    eight = replace(seven, onnx=quantised(planned, sketch.ranges()))
    heads, accuracies = [], []
    for trunk in (seven, eight):
        head = _head_on(trunk, learned)
        made = plain_session(Composer(trunk).compose(head, METADATA, precision="int8"))
        heads.append(head)
        accuracies.append(_accuracy(made, learned))
    file = Composer(seven).compose(heads[0], METADATA, precision="int8")
    probes = Probes.of(seven, TrunkSession(seven.onnx, arena=False).run)
    report = check_release(file, heads[0].scores, heads[0].labels, probes, tolerance=1e-3)
    borrowed = plain_session(Composer(seven).compose(rounded(learned.heads[0]), METADATA, precision="int8"))
    small_ms = _cpu_ms(plain_session(file), np.stack(learned.images[:1]), times)
    detail = (
        f"head solved on features of the graph in 8 bits (weights of 7), ranges of {len(learned.seen)} images; "
        f"accuracy as above. With weights of 8 bits, learned likewise: {100 * accuracies[1]:.1f} %. Control, fp32's "
        f"head on this trunk: {100 * _accuracy(borrowed, learned):.1f} %. {small_ms:.2f} ms at {SIZE} px; the file's "
        f"scores are the server's within {report.composed.max_rel_diff:.1e}"
    )
    measured = f"{100 * accuracies[0]:.1f} %, {len(file) / 1e6:.2f} MB"
    what = "EfficientNet-Lite0, ten digits, learned on the int8 trunk"
    return Row(group=GROUP, what=what, measured=measured, detail=detail)


def _head_on(trunk: Trunk, learned: _Learned) -> LinearHead:
    session, told = TrunkSession(trunk.onnx, arena=False), front(SIZE)
    features_Bd = np.concatenate([session.run(to_pixels(image, told)[None]) for image in learned.taught])
    memory = memory_for("statistics").create(trunk.feature_dim, ())
    learner = ClosedForm(memory, head_for("balanced_ridge"), trunk.scale)
    learner.learn(features_Bd, learned.taught_labels)
    return Rounded(learner.learned()).solve().head


def _in_8_bits(scene: Scene, trunk: Trunk, seen: list[ImageHWC], size: int) -> Trunk:
    """From the ranges over `seen`, as a server learns them."""
    planned = plan(trunk.onnx)
    sketch, session, told = RangeSketch(planned.tensors), plain_session(observer(planned)), front(size)
    for image in seen:
        sketch.add(session.run(["extremes"], {"pixels": to_pixels(image, told)[None]})[0])
    return replace(trunk, onnx=quantised(planned, sketch.ranges()))


def _full_updates(scene: Scene, learned: _Learned) -> list[Row]:
    """Normal noise on every weight, in the place of a fine-tune: int8 files before and after, in the same ranges."""
    planned = plan(learned.trunk.onnx)
    session, told = plain_session(observer(planned)), front(SIZE)
    sketch = RangeSketch(planned.tensors)
    for image in learned.seen:
        sketch.add(session.run(["extremes"], {"pixels": to_pixels(image, told)[None]})[0])
    head, rows = learned.heads[0], []
    files = []
    for change in (0.0, *CHANGES):
        moved = replace(planned, model=_moved(planned.model, change))
        trunk = replace(learned.trunk, onnx=quantised(moved, sketch.ranges()))
        files.append(Composer(trunk).compose(head, METADATA, precision="int8"))
    for change, file in zip(CHANGES, files[1:], strict=True):
        begun_s = time.process_time()
        size_kb, taken_s = len(encode(files[0], file)) / 1e3, time.process_time() - begun_s
        rows.append(
            Row(
                group=GROUP,
                what=f"full update in int8, every weight moved by {change:.2%} of its tensor's root mean square",
                target=f"<= {TARGET_KB:g} KB",
                measured=f"{size_kb:.0f} KB",
                met=size_kb <= TARGET_KB,
                detail=f"made up: normal noise on every weight, the same ranges; encoded in {taken_s:.2f} s",
            )
        )
    return rows


def _moved(model: onnx.ModelProto, change: float) -> onnx.ModelProto:
    moved, random = onnx.ModelProto(), np.random.default_rng(1)
    moved.CopyFrom(model)
    for tensor in moved.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if change and values.dtype == np.float32 and values.ndim == 4:
            size = change * float(np.sqrt(np.mean(np.square(values))))
            noise = random.normal(0, size, values.shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values + noise, tensor.name))
    return moved


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
        taught=[images[row] for row in order[test:]],
        taught_labels=[str(label) for label in labels_B[order[test:]]],
        seen=[images[row] for row in order[test : test + SEEN]],
        labels_B=labels_B[order[:test]],
    )


def _accuracy(session: onnxruntime.InferenceSession, learned: _Learned) -> float:
    given = [session.run(["label"], {"image": image[None]})[0][0] for image in learned.images]
    return float(np.mean([label == str(right) for label, right in zip(given, learned.labels_B, strict=True)]))


def _agreement(made: onnxruntime.InferenceSession, learned: _Learned, session: TrunkSession) -> float:
    told, head = front(SIZE), learned.heads[0]
    theirs = [head.scores(session.run(to_pixels(image, told)[None]))[0].argmax() for image in learned.images]
    ours = [made.run(["label_index"], {"image": image[None]})[0][0] for image in learned.images]
    return float(np.mean([a == b for a, b in zip(ours, theirs, strict=True)]))


def _cpu_ms(session: onnxruntime.InferenceSession, image_NHWC: npt.NDArray[np.uint8], times: int) -> float:
    taken_ms = []
    for _ in range(times + 3):
        begun_s = time.process_time()
        session.run(["scores"], {"image": image_NHWC})
        taken_ms.append((time.process_time() - begun_s) * 1e3)
    return float(np.median(taken_ms[3:]))
