"""Foreign ONNX files: what becomes a trunk, and what is refused before ONNX Runtime sees it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.unit.backbone_files import ONNX, ONNX_FRONT, onnx_files, small_onnx

from everlearn.backbones.onnx import OnnxLoader
from everlearn.errors import BackboneError, IntegrityError
from everlearn.runtime import session as sessions
from everlearn.runtime.session import TrunkSession
from everlearn.values import FrontConfig, Trunk


def built(folder: Path, model: onnx.ModelProto | bytes, *, output: str | None = None, side: int = 32) -> Trunk:
    backbone = ONNX.model_copy(update={"output": output})
    return OnnxLoader().build(backbone, onnx_files(folder, model), FrontConfig(height=side, width=side), bits=12)


@pytest.mark.parametrize("batch", ["N", 1])
@pytest.mark.parametrize("side", ["S", 32])
@pytest.mark.parametrize("pooled", ["keep", "flat"])
def test_a_graph_becomes_a_trunk_with_a_dynamic_batch(
    tmp_path: Path, batch: str | int, side: str | int, pooled: str
) -> None:
    model = small_onnx(batch=batch, side=side, pooled=pooled)
    trunk = built(tmp_path, model)
    pixels = np.random.default_rng(0).normal(size=(5, 3, 32, 32)).astype(np.float32)
    features_Bd = TrunkSession(trunk.onnx).run(pixels)
    assert features_Bd.shape == (5, 8)
    source = ort.InferenceSession(model.SerializeToString())
    expected = [source.run(None, {"image": pixels[i : i + 1]})[0].reshape(8) for i in range(5)]
    assert np.abs(features_Bd - expected).max() < 1e-6
    assert trunk.parity_max_rel_diff == 0
    graph = onnx.load_model_from_string(trunk.onnx).graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["pixels", "features"]


def test_an_inner_tensor_can_be_the_feature_vector(tmp_path: Path) -> None:
    model = small_onnx(pooled="none")
    trunk = built(tmp_path, model, output="pooled")
    assert trunk.feature_dim == 8
    assert "Flatten" in [node.op_type for node in onnx.load_model_from_string(trunk.onnx).graph.node]


def test_what_the_features_do_not_need_is_left_out(tmp_path: Path) -> None:
    model = small_onnx(pooled="flat")
    classifier = numpy_helper.from_array(np.ones((8, 1000), np.float32), "classifier")
    model.graph.initializer.append(classifier)
    model.graph.node.append(helper.make_node("MatMul", ["flat", "classifier"], ["logits"]))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1000]))
    assert built(tmp_path / "all", model).feature_dim == 1000
    trunk = built(tmp_path / "cut", model, output="flat")
    assert trunk.feature_dim == 8
    assert len(trunk.onnx) < 4000


def test_tensors_that_already_have_our_names_do_not_clash(tmp_path: Path) -> None:
    model = small_onnx(pooled="flat")
    for node in model.graph.node:
        node.input[:] = [{"conv": "features", "relu": "pixels"}.get(name, name) for name in node.input]
        node.output[:] = [{"conv": "features", "relu": "pixels"}.get(name, name) for name in node.output]
    plain = built(tmp_path / "plain", small_onnx(pooled="flat"))
    assert built(tmp_path / "clash", model).scale.digest == plain.scale.digest


def test_the_same_file_gives_the_same_trunk(tmp_path: Path) -> None:
    first, second = (built(tmp_path / str(i), small_onnx()) for i in range(2))
    assert first.feature_digest == second.feature_digest


def external(tensor: TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def in_initializer(model: onnx.ModelProto) -> None:
    external(model.graph.initializer[0])


def in_constant_node(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.ones(3, np.float32), "k"))
    external(node.attribute[0].t)
    model.graph.node.insert(0, node)


def in_attribute_tensors(model: onnx.ModelProto) -> None:
    attribute = model.graph.node[0].attribute.add(name="many", type=onnx.AttributeProto.TENSORS)
    external(attribute.tensors.add(name="x", data_type=1, dims=[1]))


def in_sparse_initializer(model: onnx.ModelProto) -> None:
    external(model.graph.sparse_initializer.add(dims=[3]).indices)


def in_subgraph(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [], [numpy_helper.from_array(np.ones(1, np.float32), "x")])
    external(inner.initializer[0])
    model.graph.node[0].attribute.append(helper.make_attribute("body", inner))


def in_function(model: onnx.ModelProto) -> None:
    function = model.functions.add(name="F", domain="")
    node = function.node.add(op_type="Constant")
    attribute = node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
    external(attribute.t)


def in_training_info(model: onnx.ModelProto) -> None:
    external(model.training_info.add().initialization.initializer.add(name="x", data_type=1, dims=[1]))


def only_the_keys(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].external_data.add(key="location", value="weights.bin")


@pytest.mark.parametrize(
    "hide",
    [
        in_initializer,
        in_constant_node,
        in_attribute_tensors,
        in_sparse_initializer,
        in_subgraph,
        in_function,
        in_training_info,
        only_the_keys,
    ],
)
def test_external_data_is_refused_wherever_it_hides(
    tmp_path: Path, hide: Callable[[onnx.ModelProto], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("ONNX Runtime saw the file")

    monkeypatch.setattr(sessions.ort, "InferenceSession", never)
    model = small_onnx()
    hide(model)
    with pytest.raises(BackboneError, match="lies in another file"):
        built(tmp_path, model)


def test_without_external_data_the_same_file_reaches_the_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("ONNX Runtime saw the file")

    monkeypatch.setattr(sessions.ort, "InferenceSession", never)
    with pytest.raises(BackboneError, match="ONNX Runtime saw the file"):
        built(tmp_path, small_onnx())


def custom_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    model.graph.node.append(helper.make_node("Steal", ["image"], ["loot"], domain="my.ops"))


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Steal", ["image"], ["loot"]))


def endless_name(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Steal" * 1000, ["image"], ["loot"]))


def functions(model: onnx.ModelProto) -> None:
    node = helper.make_node("Identity", ["a"], ["b"])
    model.functions.append(helper.make_function("", "Copy", ["a"], ["b"], [node], [helper.make_opsetid("", 17)]))


def second_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["N"]))


def second_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("relu", TensorProto.FLOAT, ["N", 8, None, None]))


def half_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def random_features(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = "calm"
    model.graph.node.extend(
        [
            helper.make_node("RandomNormalLike", ["calm"], ["noise"]),
            helper.make_node("Add", ["calm", "noise"], ["flat"]),
        ]
    )


def mixed_rows(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = "own"
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "rows"))
    model.graph.node.extend(
        [
            helper.make_node("ReduceMean", ["own"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["own", "mean"], ["centred"]),
            helper.make_node("Add", ["centred", "own"], ["flat"]),
        ]
    )
    del model.graph.initializer[-1]


def batch_of_one_inside(model: onnx.ModelProto) -> None:
    del model.graph.node[-1]
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 8]), "shape"))
    model.graph.node.append(helper.make_node("Reshape", ["pooled", "shape"], ["flat"]))


def not_finite(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((8, 3, 3, 3), np.inf, np.float32), "w"))


def constant_features(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((8, 3, 3, 3), np.float32), "w"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (custom_domain, r"operators of \['my.ops'\] are not known"),
        (unknown_operator, "no operator 'Steal' in opset 17"),
        (endless_name, "^.{0,50}no operator 'StealSteal.{0,100}$"),
        (functions, "functions of its own"),
        (second_input, r"2 inputs \['image', 'mask'\]; one is needed"),
        (second_output, r"outputs \['flat', 'relu'\]; declare which"),
        (half_input, r"FLOAT16 \['\?', 3, '\?', '\?'\]; float32"),
        (random_features, "must not be random"),
        (mixed_rows, "must not mix rows"),
        (batch_of_one_inside, "dynamic batch axis"),
        (not_finite, "not finite"),
        (constant_features, "every sample gives the same features"),
    ],
)
def test_a_graph_that_is_no_trunk_is_refused_with_the_reason(
    tmp_path: Path, spoil: Callable[[onnx.ModelProto], None], message: str
) -> None:
    model = small_onnx(pooled="flat", side="S")
    built(tmp_path / "control", model)
    spoil(model)
    with pytest.raises(BackboneError, match=message):
        built(tmp_path / "spoilt", model)


@pytest.mark.parametrize(
    ("model", "output", "side", "message"),
    [
        (small_onnx(pooled="none"), None, 32, "declare the tensor after the pooling"),
        (small_onnx(), "nowhere", 32, "no tensor 'nowhere'"),
        (small_onnx(side=32), None, 64, "32 x 32 pixels only, not 64 x 64"),
        (small_onnx(channels=1), None, 32, r"float32 \[N, 3, H, W\] is needed"),
        (small_onnx(batch=8), None, 32, "N dynamic or 1"),
        (b"\x08\x01garbage", None, 32, "not an ONNX file|not a valid|imported"),
        (b"", None, 32, "not an ONNX file|not a valid"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, model: onnx.ModelProto | bytes, output: str | None, side: int, message: str
) -> None:
    with pytest.raises(BackboneError, match=message):
        built(tmp_path, model, output=output, side=side)


def test_mutated_files_are_refused_or_built_and_never_crash(tmp_path: Path) -> None:
    data = small_onnx(dim=2).SerializeToString()
    rng = np.random.default_rng(5)
    for index in range(60):
        broken = bytearray(data)
        for position in rng.integers(0, len(data), 2):
            broken[position] = rng.integers(0, 256)
        try:
            assert built(tmp_path / str(index), bytes(broken)).feature_dim > 0
        except BackboneError as error:
            assert str(error)  # noqa: PT017  # both ends are right


def test_a_file_that_changed_since_it_was_verified_is_refused(tmp_path: Path) -> None:
    files = onnx_files(tmp_path, small_onnx())
    OnnxLoader().build(ONNX, files, ONNX_FRONT, bits=12)
    files.paths["model.onnx"].write_bytes(small_onnx(dim=9).SerializeToString())
    with pytest.raises(IntegrityError, match="fetch it again"):
        OnnxLoader().build(ONNX, files, ONNX_FRONT, bits=12)


def test_description_reads_the_size_from_the_graph(tmp_path: Path) -> None:
    fixed = OnnxLoader().describe(ONNX, onnx_files(tmp_path / "a", small_onnx(side=32)))
    free = OnnxLoader().describe(ONNX, onnx_files(tmp_path / "b", small_onnx(side="S")))
    assert (fixed.height, fixed.width, fixed.fixed_size) == (32, 32, True)
    assert (free.height, free.width, free.fixed_size) == (224, 224, False)
