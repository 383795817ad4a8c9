"""One file from image to label."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from PIL import Image
from sklearn.datasets import load_sample_images
from tests.unit.export_trunks import DIM, FRONT, Server, conv_graph, conv_trunk, random_head

from everlearn.errors import BackboneError, InputError
from everlearn.export.compose import Composer, head_graph
from everlearn.export.front import front_graph
from everlearn.export.graphs import join, opset, raised
from everlearn.export.parity import FRONT_TOLERANCE, check_export
from everlearn.values import FrontConfig, ImageHWC, LinearHead

METADATA = {"model": "flowers", "version": "7"}


def _run(file: bytes, images: ImageHWC) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(file)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"image": images}), strict=True))


def _decoded_jpeg(size: tuple[int, int], seed: int = 0) -> ImageHWC:
    photograph = Image.fromarray(load_sample_images().images[seed]).resize(size)
    encoded = io.BytesIO()
    photograph.save(encoded, "JPEG")
    return np.asarray(Image.open(io.BytesIO(encoded.getvalue())).convert("RGB"))


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("classes", [1, 3, 2000])
def test_file_predicts_what_the_server_predicts_from_jpeg_bytes(classes: int, normalise: bool) -> None:
    trunk, head = conv_trunk(), random_head(classes, normalise=normalise)
    file = Composer(trunk).compose(head, METADATA)
    images = [_decoded_jpeg((640, 427)), _decoded_jpeg((33, 47), 1), _decoded_jpeg((32, 32), 1)]
    report = check_export(file, images, Server(trunk, head), tolerance=FRONT_TOLERANCE, labels=head.labels)
    assert report.probes == 3
    assert report.max_rel_diff < 0.01


def test_outputs_are_scores_index_label_and_table() -> None:
    head = random_head(5)
    outputs = _run(Composer(conv_trunk()).compose(head, METADATA), np.zeros((3, 50, 40, 3), np.uint8))
    assert set(outputs) == {"scores", "label_index", "label", "labels"}
    assert outputs["scores"].shape == (3, 5)
    assert outputs["scores"].dtype == np.float32
    assert outputs["label_index"].dtype == np.int64
    assert outputs["label_index"].tolist() == outputs["scores"].argmax(1).tolist()
    assert outputs["labels"].tolist() == list(head.labels)
    assert outputs["label"].tolist() == [head.labels[index] for index in outputs["label_index"]]


def test_the_first_of_equal_scores_wins_as_in_numpy() -> None:
    head = LinearHead(
        weight_dC=np.zeros((DIM, 3), np.float32),
        bias_C=np.array([0, 1, 1], np.float32),
        normalise=False,
        labels=("a", "b", "c"),
        regularization=0,
    )
    assert _run(Composer(conv_trunk()).compose(head, METADATA), np.zeros((1, 9, 9, 3), np.uint8))["label"] == ["b"]


def test_a_batch_gives_what_single_images_give() -> None:
    file = Composer(conv_trunk()).compose(random_head(4), METADATA)
    images = np.random.default_rng(0).integers(0, 256, (5, 40, 60, 3), np.uint8)
    together = _run(file, images)["scores"]
    alone = np.concatenate([_run(file, image[None])["scores"] for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_labels_of_any_script_survive() -> None:
    labels = ("Löwenzahn", "向日葵", "🌻", 'a "quoted" | label', "new\nline")
    file = Composer(conv_trunk()).compose(random_head(5, labels=labels), METADATA)
    assert _run(file, np.zeros((1, 8, 8, 3), np.uint8))["labels"].tolist() == list(labels)
    properties = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
    assert json.loads(properties["everlearn.labels"]) == list(labels)


def test_a_zero_feature_vector_has_no_direction_and_no_nan() -> None:
    head = random_head(3, normalise=True)
    session = onnxruntime.InferenceSession(head_graph(head, DIM))
    features = np.stack([np.zeros(DIM, np.float32), np.full(DIM, 1e-20, np.float32)])
    np.testing.assert_allclose(session.run(None, {"features": features})[0], head.scores(features), atol=1e-6)


def test_equal_inputs_give_equal_bytes() -> None:
    def digest() -> str:
        return hashlib.sha256(Composer(conv_trunk()).compose(random_head(10), METADATA)).hexdigest()

    assert digest() == digest()
    composer = Composer(conv_trunk())
    first = composer.compose(random_head(10), METADATA)
    composer.compose(random_head(3, normalise=True), METADATA)
    assert composer.compose(random_head(10), METADATA) == first
    assert composer.compose(random_head(10, seed=2), METADATA) != first


def test_metadata_says_where_the_file_comes_from() -> None:
    trunk = conv_trunk(source="folder:/srv/acme/secret/net.onnx")
    file = Composer(trunk).compose(random_head(2), METADATA)
    properties = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
    assert properties["everlearn.model"] == "flowers"
    assert properties["everlearn.version"] == "7"
    assert properties["everlearn.trunk_digest"] == trunk.digest
    assert properties["everlearn.feature_digest"] == trunk.feature_digest
    assert properties["everlearn.regularization"] == "0.125"
    assert properties["everlearn.licence"] == "apache-2.0"
    assert properties["everlearn.source"] == "folder:net.onnx"
    assert b"secret" not in file


def test_metadata_that_the_composer_knows_better_is_refused() -> None:
    with pytest.raises(InputError, match="trunk_digest"):
        Composer(conv_trunk()).compose(random_head(2), {"trunk_digest": "0" * 64})


@pytest.mark.parametrize("written_for", [13, 17, 20, 22])
def test_trunks_of_other_opsets_join(written_for: int) -> None:
    trunk, head = conv_trunk(conv_graph(opset=written_for)), random_head(3)
    file = Composer(trunk).compose(head, METADATA)
    assert opset(onnx.load_model_from_string(file)) == max(20, written_for)
    image = _decoded_jpeg((64, 48))
    assert check_export(file, [image], Server(trunk, head), tolerance=0.01, labels=head.labels).probes == 1


def test_an_operator_that_changed_is_converted_not_relabelled() -> None:
    graph = conv_graph(opset=13, mean_by_attribute=True)
    trunk, head = conv_trunk(graph), random_head(3)
    image = _decoded_jpeg((64, 48))
    file = Composer(trunk).compose(head, METADATA)
    check_export(file, [image], Server(trunk, head), tolerance=0.01, labels=head.labels)
    # Control: relabelled only, the same graph is invalid.
    relabelled = onnx.load_model_from_string(graph)
    relabelled.opset_import[0].version = 20
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(relabelled, full_check=True)


def test_an_operator_that_cannot_be_carried_is_refused_by_name() -> None:
    statistics = ["pixels", *["statistic"] * 4]
    node = helper.make_node("BatchNormalization", statistics, ["features"], spatial=0)
    shapes = {"pixels": [1, 3, 8, 8], "statistic": [3], "features": [1, 3, 8, 8]}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    graph = helper.make_graph([node], "old", [values["pixels"], values["statistic"]], [values["features"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 7)], ir_version=4)
    with pytest.raises(BackboneError, match="BatchNormalization cannot be carried to opset 20"):
        raised(model, 20)


def test_names_of_the_trunk_cannot_clash() -> None:
    front_name = front_graph(FRONT).graph.node[0].output[0]
    for name in (front_name.removesuffix("low"), "scores", "head/"):
        file = Composer(conv_trunk(conv_graph(names=name))).compose(random_head(2), METADATA)
        assert _run(file, np.zeros((1, 8, 8, 3), np.uint8))["scores"].shape == (1, 2)


def test_a_trunk_of_another_size_than_its_front_is_refused() -> None:
    with pytest.raises(BackboneError, match="must take one input"):
        join(front_graph(FrontConfig(height=48, width=48)), onnx.load_model_from_string(conv_graph()))
    doubles = onnx.load_model_from_string(conv_graph())
    doubles.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    with pytest.raises(BackboneError, match="DOUBLE"):
        join(front_graph(FRONT), doubles)


def test_weights_outside_the_file_are_refused() -> None:
    graph = onnx.load_model_from_string(conv_graph())
    graph.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(BackboneError, match="outside the file"):
        Composer(conv_trunk(graph.SerializeToString()))


def test_heads_that_do_not_fit_are_refused() -> None:
    composer = Composer(conv_trunk())
    with pytest.raises(InputError, match="no class"):
        composer.compose(random_head(0, labels=()), METADATA)
    with pytest.raises(InputError, match=r"\(16, 3\)"):
        composer.compose(random_head(3, dim=8), METADATA)
    broken = random_head(3)
    broken.bias_C[1] = np.nan
    with pytest.raises(InputError, match="finite"):
        composer.compose(broken, METADATA)
