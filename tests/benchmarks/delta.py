"""What a new version costs a device that has the last one: EfficientNet-Lite0 with a head of ten digits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import zstandard
from onnx import numpy_helper
from tests.benchmarks.scene import Scene
from tests.benchmarks.table import Row

from everlearn.export.compose import Composer
from everlearn.heads import head_for
from everlearn.learners import ClosedForm
from everlearn.memories import memory_for
from everlearn_protos.delta import apply
from everlearn_protos.delta.encoding import encode

SIZE = 96
STARTS = (512, 768, 1024, 1400)
"""Digits learned before the first of two versions."""
BATCH = 32
TARGET_KB, TARGET_ENCODE_S, TARGET_APPLY_S = 38.0, 1.0, 0.1
CHANGE = 0.005
"""Of every weight, in units of its tensor's root mean square, where all of them change."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """A delta, and what it took."""

    size_kb: float
    """1000 bytes."""
    file_kb: float
    encode_s: float
    encode_cpu_s: float
    apply_s: float
    apply_cpu_s: float


def measure(scene: Scene, *, quick: bool) -> list[Row]:
    """Two versions from real learning, at several ages; and made up ones for what no server makes yet."""
    times = 1 if quick else 9
    composer, pairs = Composer(scene.trunk(SIZE)), []
    for start in STARTS[-1:] if quick else STARTS:
        scene.tell(f"two versions after {start} digits")
        pairs.append(_versions(scene, composer, start))
    heads = [_update(*pair, times) for pair in pairs]
    base, target = pairs[-1]
    scene.tell("zstd --patch-from")
    patch_kb, patch_s = _patch_from(base, target)
    last = heads[-1]
    rows = _head_rows(heads, f"zstd -19 --patch-from in this run: {patch_kb:.1f} KB, {patch_s:.1f} s")
    scene.tell("int8 and full updates")
    eight = _update(_as_int8(base), _as_int8(target), times)
    rows.append(_made_up("head only, weights rounded to int8", eight, f"fp32: {last.size_kb:.1f} KB"))
    moved = _moved(target)
    for name, both in (("fp32", (base, moved)), ("int8", (_as_int8(base), _as_int8(moved)))):
        what = f"every weight changed by {CHANGE:.1%} of its tensor's root mean square, {name}"
        rows.append(_made_up(what, _update(*both, min(times, 3)), "made up: normal noise on every tensor"))
    return rows


def _versions(scene: Scene, composer: Composer, start: int) -> tuple[bytes, bytes]:
    features_Bd, labels_B = scene.digit_features_Bd, scene.digits[1]
    order = np.random.default_rng(0).permutation(len(labels_B))
    trunk = scene.trunk(SIZE)
    learner = ClosedForm(
        memory_for("statistics").create(trunk.feature_dim, ()), head_for("balanced_ridge"), trunk.scale
    )
    files = []
    for rows in (order[:start], order[start : start + BATCH]):
        learner.learn(features_Bd[rows], [str(label) for label in labels_B[rows]])
        samples = sum(learner.count_C.tolist())
        told = {"model": "digits", "samples": str(samples), "memory_digest": learner.sums.digest()}
        files.append(composer.compose(learner.head(), told))
    return files[0], files[1]


def _update(base: bytes, target: bytes, times: int) -> Update:
    delta = encode(base, target)
    if apply(base, delta, max_bytes=len(target)) != target:
        raise RuntimeError("the delta does not make the file it was made for")
    encode_s, encode_cpu_s = _median_s(lambda: encode(base, target), times)
    apply_s, apply_cpu_s = _median_s(lambda: apply(base, delta, max_bytes=len(target)), times)
    return Update(
        size_kb=len(delta) / 1e3,
        file_kb=len(target) / 1e3,
        encode_s=encode_s,
        encode_cpu_s=encode_cpu_s,
        apply_s=apply_s,
        apply_cpu_s=apply_cpu_s,
    )


def _median_s(call: Callable[[], object], times: int) -> tuple[float, float]:
    """By the clock, and of the processor: where others are working, only the second tells of the code."""
    taken_s = []
    for _ in range(times):
        begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
        call()
        taken_s.append((time.perf_counter() - begun_s, time.process_time() - begun_cpu_s))
    clock_s, cpu_s = np.median(taken_s, axis=0).tolist()
    return clock_s, cpu_s


def _head_rows(heads: list[Update], beside: str) -> list[Row]:
    sizes_kb = [each.size_kb for each in heads]
    encode_s, apply_s = max(each.encode_s for each in heads), max(each.apply_s for each in heads)
    encode_cpu_s, apply_cpu_s = max(each.encode_cpu_s for each in heads), max(each.apply_cpu_s for each in heads)
    ages = ", ".join(str(start) for start in STARTS[-len(heads) :])
    told = f"{BATCH} more digits after {ages}: {', '.join(f'{size:.1f}' for size in sizes_kb)} KB"
    file = f"of processor time; a file of {heads[-1].file_kb / 1e3:.2f} MB, the slowest of {len(heads)} medians"

    def row(what: str, target: str, measured: str, met: bool, detail: str) -> Row:
        what = f"update of a head of 10, fp32: {what}"
        return Row(group="delta", what=what, target=target, measured=measured, met=met, detail=detail)

    return [
        row(
            "largest delta",
            f"<= {TARGET_KB:g} KB",
            f"{max(sizes_kb):.1f} KB",
            max(sizes_kb) <= TARGET_KB,
            f"{told}; {beside}",
        ),
        row(
            "encode",
            f"<= {TARGET_ENCODE_S:g} s",
            f"{encode_s:.3f} s",
            encode_s <= TARGET_ENCODE_S,
            f"{encode_cpu_s:.3f} s {file}",
        ),
        row(
            "apply",
            f"<= {TARGET_APPLY_S:g} s",
            f"{apply_s:.3f} s",
            apply_s <= TARGET_APPLY_S,
            f"{apply_cpu_s:.3f} s {file}",
        ),
    ]


def _made_up(what: str, update: Update, detail: str) -> Row:
    times = f"encode {update.encode_s:.3f} s, apply {update.apply_s:.3f} s (of processor time "
    times += f"{update.encode_cpu_s:.3f}, {update.apply_cpu_s:.3f} s)"
    detail = f"of {update.file_kb / 1e3:.2f} MB, {times}; {detail}"
    return Row(group="delta", what=what, measured=f"{update.size_kb:.1f} KB", detail=detail)


def _patch_from(base: bytes, target: bytes) -> tuple[float, float]:
    """What zstd itself makes of the two files; its window has to reach back over all of the base."""
    begun_s = time.perf_counter()
    parameters = zstandard.ZstdCompressionParameters.from_level(
        19, source_size=len(target), dict_size=len(base), window_log=(len(base) + len(target)).bit_length()
    )
    dictionary = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    patch = zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters).compress(target)
    return len(patch) / 1e3, time.perf_counter() - begun_s


def _as_int8(file: bytes) -> bytes:
    """Every matrix rounded to int8, a scale for each output; it runs nowhere, and weighs what an int8 export would."""

    def rounded(name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.generic]:
        if values.ndim < 2:
            return values
        axes = tuple(range(values.ndim - 1)) if name == "head/weight" else tuple(range(1, values.ndim))
        scale = np.maximum(np.abs(values).max(axis=axes, keepdims=True) / 127, 1e-12)
        return np.rint(values / scale).astype(np.int8)

    return _with_weights(file, rounded)


def _moved(file: bytes) -> bytes:
    random = np.random.default_rng(1)

    def moved(name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        size = CHANGE * float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
        return (values + random.normal(0, 1, values.shape) * size).astype(np.float32)

    return _with_weights(file, moved)


def _with_weights(file: bytes, change: Callable[[str, npt.NDArray[np.float32]], npt.NDArray[np.generic]]) -> bytes:
    model = onnx.load_model_from_string(file)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = change(tensor.name, numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
    return bytes(model.SerializeToString(deterministic=True))
