"""Exports in half precision: half the bytes, the same contract, and as close as half precision can be."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.unit.export_trunks import DIM, FRONT, Server, conv_graph, conv_trunk, random_head
from tests.unit.test_export_card import REPORT, _facts

from everlearn.errors import InputError, ParityError
from everlearn.export.card import model_card
from everlearn.export.card_precision import Evidence, PrecisionFacts
from everlearn.export.compose import Composer
from everlearn.export.parity import check_release
from everlearn.export.precision import TOLERANCE, Precision, halve, precision_of
from everlearn.export.probes import Probes, plain_session
from everlearn.values import FeatureScale, Trunk
from everlearn_protos.delta import apply
from everlearn_protos.delta.encoding import encode

METADATA = {"model": "flowers", "version": "7"}
WIDE = 512
FLOATS: tuple[Precision, ...] = ("fp32", "fp16")


def wide_trunk(largest: float = 1.0) -> Trunk:
    """One convolution of a megabyte; `largest`: of its weights."""
    weight = np.random.default_rng(0).normal(0, 0.02, (WIDE, 3, 16, 16)).astype(np.float32)
    weight[0, 0, 0, 0] = largest
    nodes = [
        helper.make_node("Constant", [], ["weight"], value=numpy_helper.from_array(weight)),
        helper.make_node("Conv", ["pixels", "weight"], ["high"], strides=[16, 16]),
        helper.make_node("Relu", ["high"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
    ]
    inputs = [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, FRONT.height, FRONT.width])]
    outputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", WIDE])]
    graph = helper.make_graph(nodes, "wide", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8)
    scale = FeatureScale(step_d=np.full(WIDE, 0.01, np.float32))
    return dataclasses.replace(conv_trunk(), onnx=bytes(model.SerializeToString()), scale=scale)


def tensors(onnx_file: bytes) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load_model_from_string(onnx_file).graph.initializer}


def test_half_the_bytes_and_the_same_inputs_and_outputs() -> None:
    composer, head = Composer(wide_trunk()), random_head(4, dim=WIDE)
    files = {precision: composer.compose(head, METADATA, precision=precision) for precision in FLOATS}
    assert len(files["fp16"]) < 0.55 * len(files["fp32"])
    assert composer.compose(head, METADATA, precision="fp16") == files["fp16"]
    sessions = {precision: plain_session(file) for precision, file in files.items()}
    for side in ("get_inputs", "get_outputs"):
        fp32, fp16 = ([(it.name, it.type, it.shape) for it in getattr(each, side)()] for each in sessions.values())
        assert fp32 == fp16
    told = {precision: session.get_modelmeta().custom_metadata_map for precision, session in sessions.items()}
    assert told["fp16"]["everlearn.precision"] == "fp16"
    assert "everlearn.precision" not in told["fp32"]
    # Features of one are refused where those of the other are learned.
    assert told["fp16"]["everlearn.feature_digest"] != told["fp32"]["everlearn.feature_digest"]


def test_weights_are_halves_and_front_and_head_are_as_they_were() -> None:
    composer, head = Composer(conv_trunk()), random_head(100)
    fp32, fp16 = (tensors(composer.compose(head, METADATA, precision=precision)) for precision in FLOATS)
    assert [tensor.data_type for name, tensor in fp16.items() if name.endswith("/fp16")] == [TensorProto.FLOAT16]
    ours = [name for name in fp32 if name.startswith(("front.", "head/"))]
    assert "head/weight" in ours
    assert all(fp16[name] == fp32[name] for name in ours)


def test_the_tolerance_of_the_precision_holds_and_that_of_the_server_does_not() -> None:
    trunk, head = conv_trunk(), random_head(10)
    probes = Probes.of(trunk, Server(trunk, head).session.run)
    file = Composer(trunk).compose(head, METADATA, precision="fp16")
    report = check_release(file, head.scores, head.labels, probes, tolerance=TOLERANCE["fp16"])
    assert 0 < report.composed.max_rel_diff < TOLERANCE["fp16"]
    with pytest.raises(ParityError):
        check_release(file, head.scores, head.labels, probes, tolerance=1e-6)


def test_another_trunk_in_half_precision_is_still_caught() -> None:
    trunk, head = conv_trunk(), random_head(10)
    probes = Probes.of(trunk, Server(trunk, head).session.run)
    model = onnx.load_model_from_string(conv_graph())
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.1), tensor.name))
    other = Composer(conv_trunk(model.SerializeToString())).compose(head, METADATA, precision="fp16")
    with pytest.raises(ParityError, match="probe"):
        check_release(other, head.scores, head.labels, probes, tolerance=TOLERANCE["fp16"])


@pytest.mark.parametrize("largest", [1e5, float("inf")])
def test_what_half_precision_cannot_hold_stays_as_it_is(largest: float) -> None:
    with pytest.raises(InputError, match="half precision"):
        Composer(wide_trunk(largest)).compose(random_head(2, dim=WIDE), METADATA, precision="fp16")


def test_a_model_without_weights_has_no_other_precision() -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["features"])],
        "none",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", DIM])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", DIM])],
    )
    with pytest.raises(InputError) as refused:
        halve(helper.make_model(graph))
    assert refused.value.field == "precision"


def test_a_new_head_on_halves_is_a_small_difference() -> None:
    composer = Composer(wide_trunk())
    base, target = (
        composer.compose(random_head(4, dim=WIDE, seed=seed), METADATA, precision="fp16") for seed in (1, 2)
    )
    delta = encode(base, target)
    assert len(delta) < 4 * 4 * WIDE
    assert apply(base, delta, max_bytes=len(target)) == target


def test_precisions_are_known_by_name_and_others_are_refused_with_those_that_are() -> None:
    assert [precision_of(name) for name in ("", "fp32", "fp16", "int8")] == ["fp32", "fp32", "fp16", "int8"]
    with pytest.raises(InputError, match="fp16") as refused:
        precision_of("fp8")
    assert refused.value.field == "precision"


def test_the_card_says_what_precision_the_file_has_and_how_far_it_is_from_the_server() -> None:
    plain = _facts((3, 4))
    told = dataclasses.replace(
        plain, precision=PrecisionFacts(precision="fp16", tolerance=0.02, distance=REPORT.composed)
    )
    trunk, head = conv_trunk(), random_head(2)
    assert "Precision" not in model_card(plain, trunk, head, REPORT)
    card = model_card(told, trunk, head, REPORT)
    for words in ("## Precision: fp16", "1.0e-06", "0.02 is allowed", "100.0 %"):
        assert words in card


def test_the_card_says_what_eight_bits_have_shown() -> None:
    evidence = Evidence(tested=400, accuracy=0.97, fp32_accuracy=0.98, max_drop=0.02, observed=128)
    facts = PrecisionFacts(precision="int8", distance=REPORT.composed, evidence=evidence)
    card = model_card(dataclasses.replace(_facts((3, 4)), precision=facts), conv_trunk(), random_head(2), REPORT)
    for words in ("## Precision: int8", "400 labelled samples", "97.0 %", "98.0 %", "2.0 points", "128 images"):
        assert words in card
    assert facts.told()["accuracy"]["fp32_accuracy"] == 0.98
