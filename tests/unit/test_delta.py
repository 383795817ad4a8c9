"""An exported file from its predecessor: what it costs, and what a receiver refuses."""

from __future__ import annotations

import hashlib
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import zstandard
from onnx import TensorProto, helper, numpy_helper
from tests import tiny

from everlearn.export.compose import Composer
from everlearn.heads import head_for
from everlearn.learners import ClosedForm
from everlearn.memories import memory_for
from everlearn.values import LinearHead, Trunk
from everlearn_protos import delta as deltas
from everlearn_protos.delta import DeltaError, WrongBaseError, apply, base_sha256
from everlearn_protos.delta._onnx_ranges import tensor_ranges
from everlearn_protos.delta._plan import Kind, Plan, Segment
from everlearn_protos.delta._wire import Envelope
from everlearn_protos.delta.encoding import encode

DIM = 512


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Trunk:
    return tiny.trunk_of(tiny.write_backbone(tmp_path_factory.mktemp("delta"), DIM))


@pytest.fixture(scope="module")
def versions(trunk: Trunk) -> tuple[bytes, bytes]:
    """Two exports of one model, between which it learned 20 samples."""
    learner = ClosedForm(memory_for("statistics").create(DIM, ()), head_for("balanced_ridge"), trunk.scale)
    composer, files = Composer(trunk), []
    for version, count in ((1, 100), (2, 2)):
        for label in range(10):
            learner.learn(tiny.features(count, label, DIM, seed=version) / 8, [f"class {label}"] * count)
        files.append(composer.compose(learner.head(), {"model": "tiny", "version": str(version)}))
    return files[0], files[1]


def test_a_new_head_travels_in_less_than_its_own_size_and_arrives_byte_for_byte(versions: tuple[bytes, bytes]) -> None:
    base, target = versions
    delta = encode(base, target)
    assert apply(base, delta, max_bytes=len(target)) == target
    assert base_sha256(delta) == hashlib.sha256(base).hexdigest()
    head_bytes = 4 * DIM * 10
    assert len(delta) < 0.8 * head_bytes
    assert len(delta) < 0.8 * len(zstandard.compress(target, 19)) < len(target)


def test_the_same_file_again_is_almost_nothing(versions: tuple[bytes, bytes]) -> None:
    delta = encode(versions[0], versions[0])
    assert len(delta) < 200
    assert apply(versions[0], delta, max_bytes=len(versions[0])) == versions[0]


def test_equal_files_give_equal_deltas(versions: tuple[bytes, bytes]) -> None:
    assert encode(*versions) == encode(*versions)


def test_a_head_with_another_class_and_back(trunk: Trunk, versions: tuple[bytes, bytes]) -> None:
    head = _head(trunk, 11)
    target = Composer(trunk).compose(head, {"model": "tiny", "version": "3"})
    for old, new in ((versions[1], target), (target, versions[0])):
        assert apply(old, encode(old, new), max_bytes=len(new)) == new


def test_a_class_whose_weights_follow_from_the_others_costs_almost_nothing() -> None:
    random = np.random.default_rng(0)
    olds, news = (random.normal(0, 1, (1000, 4)).astype(np.float32) for _ in range(2))
    free = len(encode(_with_weight(olds), _with_weight(news)))
    news[:, 3] = -news[:, :3].sum(axis=1)
    base, target = _with_weight(olds), _with_weight(news)
    bound = encode(base, target)
    assert apply(base, bound, max_bytes=len(target)) == target
    assert len(bound) < 0.85 * free


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.float16, np.int16, np.float32, np.float64, np.int64])
def test_numbers_of_any_size_are_told_by_their_differences(dtype: npt.DTypeLike) -> None:
    random = np.random.default_rng(1)
    olds = random.normal(0, 20, (300, 30))
    news = olds + random.normal(0, 0.4, olds.shape)
    base, target = (_with_weight(values.clip(0, 120).astype(dtype)) for values in (olds, news))
    delta = encode(base, target)
    assert apply(base, delta, max_bytes=len(target)) == target
    alone = len(zstandard.compress(target, 19))
    assert len(delta) < 0.9 * alone


def test_what_cannot_be_found_by_its_name_is_told_anew() -> None:
    weight = np.random.default_rng(2).normal(0, 1, (50, 8)).astype(np.float32)
    base, target = _with_weight(weight), _with_weight(weight + 1, name="another")
    assert apply(base, encode(base, target), max_bytes=len(target)) == target


def test_tensors_are_found_wherever_onnx_allows_them() -> None:
    values = np.arange(40, dtype=np.float32)
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["deep"], value=numpy_helper.from_array(values + 1, "d"))],
        "inner",
        [],
        [helper.make_tensor_value_info("deep", TensorProto.FLOAT, [40])],
    )
    typed = TensorProto(name="typed", data_type=TensorProto.FLOAT, dims=[40])
    typed.float_data.extend(values.tolist())
    small = numpy_helper.from_array(np.zeros(2, np.float32), "small")
    external = TensorProto(name="external", data_type=TensorProto.FLOAT, dims=[40], data_location=TensorProto.EXTERNAL)
    nodes = [
        helper.make_node("Constant", [], ["shallow"], value=numpy_helper.from_array(values + 2)),
        helper.make_node("If", ["yes"], ["out"], then_branch=inner, else_branch=inner),
    ]
    initializers = [numpy_helper.from_array(values, "raw"), typed, small, external]
    function = helper.make_function(
        "own", "F", [], ["y"], [helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(values + 3))], []
    )
    model = helper.make_model(helper.make_graph(nodes, "g", [], [], initializers), functions=[function])
    file = model.SerializeToString()
    found = [np.frombuffer(file[each.begin : each.end], "<f4")[0] for each in tensor_ranges(file)]
    assert sorted(found) == [0, 0, 1, 1, 2, 3]
    assert all(each.item == 4 and each.exponent_bits == 8 for each in tensor_ranges(file))


def test_a_file_that_is_cut_off_has_no_tensors_or_some_but_never_fails(versions: tuple[bytes, bytes]) -> None:
    base, target = versions
    for end in range(0, len(target), 997):
        assert apply(base, encode(base, target[:end], level=1), max_bytes=end) == target[:end]


def test_another_base_is_refused_and_both_are_named(versions: tuple[bytes, bytes]) -> None:
    base, target = versions
    delta = encode(base, target)
    for other in (target, base[:-1], b"", base[:-1] + bytes([base[-1] ^ 1])):
        with pytest.raises(WrongBaseError, match=hashlib.sha256(base).hexdigest()):
            apply(other, delta, max_bytes=len(target))


def test_any_byte_changed_lost_or_added_is_refused(versions: tuple[bytes, bytes]) -> None:
    base, target = versions
    delta = encode(base, target)
    damaged = [delta[:at] + bytes([delta[at] ^ 1]) + delta[at + 1 :] for at in range(0, len(delta), 37)]
    cut = [delta[:at] for at in (*range(0, 200, 3), len(delta) - 1)]
    for bad in [*damaged, *cut, delta + b"\0", b"", target]:
        with pytest.raises(DeltaError):
            apply(base, bad, max_bytes=len(target))
    for bad in (delta[:-1] + bytes([delta[-1] ^ 1]), delta[:-1], delta + b"\0"):
        with pytest.raises(DeltaError, match="arrived damaged or is cut off"):
            apply(base, bad, max_bytes=len(target))


def test_a_later_format_says_so(versions: tuple[bytes, bytes]) -> None:
    delta = bytearray(encode(*versions))
    delta[8] = 2
    with pytest.raises(DeltaError, match="format 2; this release reads format 1"):
        apply(versions[0], bytes(delta), max_bytes=2**20)


def test_a_result_larger_than_allowed_is_refused(versions: tuple[bytes, bytes]) -> None:
    base, target = versions
    with pytest.raises(DeltaError, match=f"at most {len(target) - 1} are allowed"):
        apply(base, encode(base, target), max_bytes=len(target) - 1)


def test_levels_that_receivers_need_not_open_are_not_written(versions: tuple[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match="none of 1 to 19"):
        encode(*versions, level=20)


BASE = bytes(range(256)) * 4
_COPY = Segment(kind=Kind.COPY, length=1024)
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "copy behind the base's end": (lambda: _forged(replace(_COPY, base=1)), "reaches to byte 1025"),
    "copy around the end of 64 bits": (lambda: _forged(replace(_COPY, base=2**64 - 1)), "reaches to byte"),
    "segments shorter than the result": (lambda: _forged(_COPY, size=1025), "1024 bytes together"),
    "segments whose lengths wrap": (
        lambda: _forged(_COPY, *[Segment(kind=Kind.LITERAL, length=2**63)] * 2),
        "18446744073709552640 bytes together",
    ),
    "empty segment": (lambda: _forged(_COPY, replace(_COPY, length=0)), "empty"),
    "half a number": (lambda: _forged(Segment(kind=Kind.PLANES, length=6, item=4)), "no whole number"),
    "rows that do not come out even": (
        lambda: _forged(Segment(kind=Kind.DIFFERENCE, length=32, item=4, columns=3), frames=(b"",) * 4),
        "no float32 rows of 3",
    ),
    "rows of other numbers": (
        lambda: _forged(Segment(kind=Kind.DIFFERENCE, length=32, item=2, columns=2), frames=(b"",) * 2),
        "no float32 rows of 2",
    ),
    "ordered by more bits than there are": (
        lambda: _forged(Segment(kind=Kind.DIFFERENCE, length=32, item=1, order=8), frames=(b"",)),
        "cannot be ordered by 8",
    ),
    "ordered copy": (lambda: _forged(replace(_COPY, order=1)), "only differences have"),
    "literal with a base": (lambda: _forged(Segment(kind=Kind.LITERAL, length=8, base=1), frames=(b"",)), "only other"),
    "no stream for a literal": (lambda: _forged(Segment(kind=Kind.LITERAL, length=8)), "0 streams; the plan needs 1"),
    "stream of more than the literal": (
        lambda: _forged(Segment(kind=Kind.LITERAL, length=8), frames=(zstandard.compress(b"123456789"),)),
        "does not hold the 8 bytes",
    ),
    "stream that does not say what it holds": (
        lambda: _forged(
            Segment(kind=Kind.LITERAL, length=8),
            frames=(zstandard.ZstdCompressor(write_content_size=False).compress(b"12345678"),),
        ),
        "does not hold the 8 bytes",
    ),
    "stream that is none": (
        lambda: _forged(Segment(kind=Kind.LITERAL, length=8), frames=(b"12345678" * 3,)),
        "a stream is damaged",
    ),
    "bytes behind a stream": (
        lambda: _forged(Segment(kind=Kind.LITERAL, length=8), frames=(zstandard.compress(b"12345678") + b"0",)),
        "a stream is damaged",
    ),
    "bytes behind the last stream": (lambda: _forged(_COPY, more=b"0"), "1 bytes follow the plan, which speaks of 0"),
    "dictionary behind the base's end": (lambda: _forged(_COPY, dictionary=((1000, 25),)), "reaches to byte 1025"),
    "dictionary larger than a device's memory": (
        lambda: _forged(_COPY, dictionary=((0, 1024),) * 8193),
        "larger than 8388608",
    ),
    "plan that a stranger packed": (lambda: _sealed(_envelope(b"\xff" * 100, 1024)), "does not hold what it says"),
    "plan of nothing": (lambda: _sealed(_envelope(b"\0", 0)), "does not hold what it says"),
    "unknown kind": (lambda: _forged(replace(_COPY, kind=9)), "kind 9"),  # type: ignore[arg-type]  # the point
    "numbers of three bytes": (lambda: _forged(replace(_COPY, item=3)), r"not \[3\]"),
    "another result than promised": (lambda: _forged(_COPY), "does not have the sha256"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_delta_is_refused_with_what_is_wrong(case: str) -> None:
    make, message = HOSTILE[case]
    with pytest.raises(DeltaError, match=message) as refused:
        apply(BASE, make(), max_bytes=2**66)
    assert not isinstance(refused.value, WrongBaseError)


def test_a_bomb_is_refused_before_it_takes_memory() -> None:
    bomb = zstandard.compress(bytes(2**28), 1)
    small = _forged(Segment(kind=Kind.LITERAL, length=8), frames=(bomb,))
    plan = _sealed(_envelope(b"", 1024), plan_size=2**20, plan=bomb)
    large_plan = _sealed(_envelope(b"", 1024), plan_size=2**28, plan=bomb)
    # A window of 2 GiB, in a frame that says it holds what it should.
    window = b"\x28\xb5\x2f\xfd" + bytes([0b10000000, 0xA8]) + struct.pack("<I", 8) + b"\x41\x00\x00" + b"12345678"
    wide = _forged(Segment(kind=Kind.LITERAL, length=8), frames=(window,))
    for hostile in (small, plan, large_plan, wide):
        tracemalloc.start()
        with pytest.raises(DeltaError):
            apply(BASE, hostile, max_bytes=2**30)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**20


def test_a_device_needs_neither_the_encoder_nor_onnx_to_apply() -> None:
    code = "import sys, everlearn_protos.delta; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "everlearn_protos.delta" in loaded
    assert not {"onnx", "everlearn", "google.protobuf", "everlearn_protos.delta.encoding"} & set(loaded)
    assert {path.stem for path in Path(deltas.__file__).parent.glob("*.py")} >= {"encoding", "_items"}


def _head(trunk: Trunk, classes: int) -> LinearHead:
    random = np.random.default_rng(classes)
    return LinearHead(
        weight_dC=random.normal(size=(trunk.feature_dim, classes)).astype(np.float32),
        bias_C=random.normal(size=classes).astype(np.float32),
        normalise=False,
        labels=tuple(f"class {index}" for index in range(classes)),
        regularization=0.125,
    )


def _with_weight(values: npt.NDArray[np.generic], name: str = "weight") -> bytes:
    graph = helper.make_graph([], "g", [], [], [numpy_helper.from_array(np.ascontiguousarray(values), name)])
    model = helper.make_model(graph)
    assert isinstance(model, onnx.ModelProto)
    return bytes(model.SerializeToString())


def _forged(
    *segments: Segment,
    size: int | None = None,
    frames: tuple[bytes, ...] = (),
    dictionary: tuple[tuple[int, int], ...] = (),
    more: bytes = b"",
) -> bytes:
    """A delta on BASE with sound checksums, whatever it says."""
    plan = Plan(segments=segments, dictionary=dictionary, frame_lengths=tuple(len(frame) for frame in frames))
    # What wraps in 64 bits is what a forger would write.
    size = plan.target_size if size is None else size
    return _sealed(replace(_envelope(plan.packed(), size), streams=memoryview(b"".join(frames) + more)))


def _envelope(plan: bytes, size: int) -> Envelope:
    return Envelope(
        base_sha256=hashlib.sha256(BASE).digest(),
        base_size=len(BASE),
        target_sha256=bytes(32),
        target_size=size % 2**64,
        plan=plan,
        streams=memoryview(b""),
    )


def _sealed(envelope: Envelope, *, plan: bytes | None = None, plan_size: int = 0) -> bytes:
    delta = envelope.packed()
    if plan is None:
        return delta
    rest = delta[16 : 16 + 80] + struct.pack("<II", plan_size, len(plan)) + plan
    return struct.pack("<8sII", b"EL-delta", 1, zlib.crc32(rest)) + rest
