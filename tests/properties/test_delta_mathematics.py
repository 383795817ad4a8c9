"""Any file from any other; and from a damaged delta never another one."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from everlearn_protos.delta import DeltaError, WrongBaseError, apply
from everlearn_protos.delta._items import Prediction, from_planes, to_planes, uint
from everlearn_protos.delta._onnx_ranges import tensor_ranges
from everlearn_protos.delta.encoding import encode

DTYPES = (np.int8, np.float16, np.float32, np.float64, np.int64)
blobs = st.binary(max_size=300) | st.builds(bytes.__mul__, st.binary(max_size=40), st.integers(0, 40))


@st.composite
def models(draw: st.DrawFn) -> bytes:
    """Files with the same few tensors, some of which are alike in two of them."""
    tensors = []
    for name in draw(st.permutations("abcd")):
        rows, dtype = draw(st.sampled_from((8, 20))), draw(st.sampled_from(DTYPES))
        random = np.random.default_rng(draw(st.integers(0, 3)))
        values = random.normal(0, 50, (rows, 10))
        if draw(st.booleans()):
            values[:, -1] = -values[:, :-1].sum(axis=1)
        values[draw(st.integers(0, rows - 1))] = draw(st.sampled_from((0.0, -0.0, 1.0)))
        array = np.ascontiguousarray(values.astype(dtype) if dtype != np.int8 else values.clip(-128, 127).astype(dtype))
        if np.issubdtype(dtype, np.floating) and draw(st.booleans()):
            array[0, 0] = draw(st.sampled_from((np.nan, np.inf, -np.inf)))
        tensors.append(numpy_helper.from_array(array, name))
    model = helper.make_model(helper.make_graph([], "g", [], [], tensors))
    model.producer_name = draw(st.text(max_size=50))
    return bytes(model.SerializeToString())


files = blobs | models()


@settings(max_examples=50, deadline=None)
@given(base=files, target=files, level=st.sampled_from((1, 19)))
def test_any_file_comes_from_any_other_byte_for_byte(base: bytes, target: bytes, level: int) -> None:
    delta = encode(base, target, level=level)
    assert apply(base, delta, max_bytes=len(target)) == target
    # No more than the whole, compressed or not, and the header.
    assert len(delta) < len(target) + 600


@settings(max_examples=40, deadline=None)
@given(base=files, target=files, data=st.data())
def test_a_flipped_byte_is_refused(base: bytes, target: bytes, data: st.DataObject) -> None:
    delta = encode(base, target, level=1)
    at, flip = data.draw(st.integers(0, len(delta) - 1)), data.draw(st.integers(1, 255))
    with pytest.raises(DeltaError):
        apply(base, delta[:at] + bytes([delta[at] ^ flip]) + delta[at + 1 :], max_bytes=2**20)


@settings(max_examples=60, deadline=None)
@given(base=models(), target=models(), data=st.data())
def test_whoever_mends_the_checksum_gets_the_true_result_or_none(
    base: bytes, target: bytes, data: st.DataObject
) -> None:
    delta = encode(base, target, level=1)
    # Behind the checksum, and mostly among sizes, plan and heads of streams.
    at = data.draw(st.integers(16, min(len(delta), 500) - 1) | st.integers(16, len(delta) - 1))
    rest = delta[16:at] + data.draw(st.binary(min_size=1, max_size=8)) + delta[at + 1 :]
    mended = delta[:12] + struct.pack("<I", zlib.crc32(rest)) + rest
    try:
        assert apply(base, mended, max_bytes=2**20) == target
    except DeltaError:
        return


@settings(max_examples=30, deadline=None)
@given(base=files, target=files, other=files)
def test_another_base_is_refused(base: bytes, target: bytes, other: bytes) -> None:
    if other == base:
        return
    with pytest.raises(WrongBaseError):
        apply(other, encode(base, target, level=1), max_bytes=2**20)


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=400) | st.builds(bytes.__add__, st.just(b"EL-delta\x01\0\0\0"), st.binary(max_size=400)))
def test_whatever_is_no_delta_is_refused(data: bytes) -> None:
    with pytest.raises(DeltaError):
        apply(b"", data, max_bytes=2**20)


@settings(max_examples=60, deadline=None)
@given(
    size=st.sampled_from((1, 2, 4, 8)),
    rows=st.integers(1, 40),
    columns=st.sampled_from((0, 2, 3, 10)),
    order=st.integers(0, 15),
    seed=st.integers(0, 2**32),
)
def test_numbers_come_back_from_their_planes_whatever_they_are_near_to(
    size: int, rows: int, columns: int, order: int, seed: int
) -> None:
    columns = columns if size == 4 else 0
    order = min(order, 8 * size - 1)
    raw = np.random.default_rng(seed).bytes(2 * rows * max(1, columns) * size)
    olds_N, news_N = np.frombuffer(raw, uint(size)).reshape(2, -1)
    planes_pN = to_planes(Prediction(olds_N, order=order, columns=columns).differences(news_N))
    assert planes_pN.shape == (size, olds_N.size)
    back_N = Prediction(olds_N, order=order, columns=columns).news(from_planes(planes_pN))
    np.testing.assert_array_equal(back_N, news_N)
    near_N = Prediction(olds_N).differences(olds_N + np.array([1], olds_N.dtype))
    assert (near_N == 2).all()


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=200) | st.builds(lambda file, at: file[:at], models(), st.integers(0, 3000)))
def test_tensors_of_whatever_bytes_lie_in_them_one_behind_the_other(data: bytes) -> None:
    ends = [0]
    for each in tensor_ranges(data):
        assert ends[-1] <= each.begin < each.end <= len(data)
        ends.append(each.end)
