"""A trunk in 8 bits from the ranges of its activations: U8S8, a scale for each channel, close to what it was."""

from __future__ import annotations

import dataclasses
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.unit.export_trunks import DIM, FRONT, conv_graph, conv_trunk, random_head

from everlearn.errors import BackboneError
from everlearn.export.compose import Composer
from everlearn.export.int8 import observer, plan, quantised, rounded
from everlearn.export.parity import check_release, distance
from everlearn.export.precision import Precision
from everlearn.export.probes import Probes, plain_session
from everlearn.export.ranges import RangeSketch
from everlearn.runtime.session import TrunkSession
from everlearn.values import Trunk
from everlearn_protos.delta.encoding import encode


def pixels(count: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1, (count, 3, FRONT.height, FRONT.width)).astype(np.float32)


def in_8_bits(trunk: Trunk, seen: npt.NDArray[np.float32]) -> Trunk:
    planned = plan(trunk.onnx)
    sketch = RangeSketch(planned.tensors)
    sketch.add(plain_session(observer(planned)).run(["extremes"], {"pixels": seen})[0])
    return dataclasses.replace(trunk, onnx=quantised(planned, sketch.ranges()))


def test_the_observer_tells_the_extremes_of_each_image_by_itself() -> None:
    planned = plan(conv_graph())
    session = plain_session(observer(planned))
    together = session.run(["extremes"], {"pixels": pixels(5)})[0]
    assert together.shape == (5, len(planned.tensors), 2)
    alone = np.concatenate([session.run(["extremes"], {"pixels": pixels(5)[row : row + 1]})[0] for row in range(5)])
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    model = onnx.load_model_from_string(conv_graph())
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("high", TensorProto.FLOAT, None))
    high = plain_session(model.SerializeToString()).run(["high"], {"pixels": pixels(5)})[0]
    place = planned.tensors.index("high")
    np.testing.assert_allclose(together[:, place, 0], high.min(axis=(1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(together[:, place, 1], high.max(axis=(1, 2, 3)), rtol=1e-5)


def test_weights_are_int8_by_channel_and_activations_uint8() -> None:
    graph = onnx.load_model_from_string(in_8_bits(conv_trunk(), pixels(64)).onnx).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    weights = [tensor for tensor in graph.initializer if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 4]
    assert sorted(tuple(tensor.dims) for tensor in weights) == [(8, 3, 3, 3), (16, 8, 3, 3)]
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in {tensor.name for tensor in weights}:
            assert list(constants[node.input[1]].dims) == [constants[node.input[0]].dims[0]]
    points = [constants[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert points
    assert {tensor.data_type for tensor in points} == {TensorProto.UINT8}


def test_features_are_close_and_the_same_ranges_give_the_same_bytes() -> None:
    trunk = conv_trunk()
    small = in_8_bits(trunk, pixels(64))
    assert in_8_bits(trunk, pixels(64)).onnx == small.onnx
    assert small.feature_digest != trunk.feature_digest
    asked = pixels(20, seed=9)
    ours, theirs = (TrunkSession(each.onnx).run(asked) for each in (small, trunk))
    assert ours.shape == theirs.shape == (20, DIM)
    assert np.abs(ours - theirs).max() < 0.05 * np.abs(theirs).max()
    assert np.abs(ours - theirs).max() > 0


def test_a_file_in_8_bits_is_held_to_the_graph_in_8_bits_and_its_distance_to_fp32_is_told() -> None:
    trunk, head = conv_trunk(), random_head(10)
    small = in_8_bits(trunk, pixels(64))
    file = Composer(small).compose(head, {"model": "flowers", "version": "7"}, precision="int8")
    probes, fp32 = (Probes.of(each, TrunkSession(each.onnx).run) for each in (small, trunk))
    report = check_release(file, rounded(head).scores, head.labels, probes, tolerance=1e-3)
    apart = distance(head.scores(probes.features_Bd), head.scores(fp32.features_Bd))
    assert report.composed.max_rel_diff < 1e-3 < apart.max_rel_diff
    told = plain_session(file).get_modelmeta().custom_metadata_map
    assert told["everlearn.precision"] == "int8"
    assert told["everlearn.trunk_digest"] == small.digest


def test_the_head_is_rounded_to_8_bits_by_label_and_a_new_one_is_a_smaller_difference() -> None:
    head = random_head(10, dim=512)
    near = rounded(head)
    assert np.abs(near.weight_dC - head.weight_dC).max() <= np.abs(head.weight_dC).max() / 250
    np.testing.assert_array_equal(rounded(near).weight_dC, near.weight_dC)
    trunk = in_8_bits(conv_trunk(), pixels(64))
    moved = [dataclasses.replace(random_head(40), bias_C=np.full(40, bias, np.float32)) for bias in (0, 1)]
    moved[1] = dataclasses.replace(moved[1], weight_dC=moved[1].weight_dC * np.float32(1.001))
    sizes = {}
    for name, of, precision in (("int8", trunk, "int8"), ("fp32", conv_trunk(), "fp32")):
        composer = Composer(of)
        base, target = (composer.compose(each, {}, precision=cast(Precision, precision)) for each in moved)
        sizes[name] = len(encode(base, target))
    assert sizes["int8"] < 0.5 * sizes["fp32"]


def test_what_has_no_weights_cannot_be_quantised() -> None:
    nodes = [helper.make_node("GlobalAveragePool", ["pixels"], ["pooled"])]
    nodes.append(helper.make_node("Flatten", ["pooled"], ["features"]))
    graph = helper.make_graph(
        nodes,
        "none",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.zeros(1, np.float32), "unused")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    with pytest.raises(BackboneError, match="weights"):
        plan(model.SerializeToString())
