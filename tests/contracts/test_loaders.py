"""What every backbone loader must do. A new file in everlearn/backbones is picked up by its name and needs a case."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.encoders import TINY, tiny_files, tiny_tokenizer
from tests.unit.backbone_files import ONNX, ONNX_FRONT, VIT, VIT_FRONT, onnx_files, small_onnx, vit_files

from everlearn import backbones
from everlearn.backbones.base import Loader
from everlearn.errors import BackboneError, IntegrityError
from everlearn.plugins import kinds, load
from everlearn.runtime.session import TrunkSession
from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles, Front, FrontConfig, TensorFront, TextFront, Trunk, TrunkInput

Case = tuple[Backbone, Front, Callable[[Path], BackboneFiles], str]
"""A declaration, the front it is built for, its files, and the name of the one with weights (empty: there is none)."""

INPUTS = {FrontConfig: ("image", "pixels"), TensorFront: ("tensor", "tensor"), TextFront: ("text", "input_ids")}
"""Of each front its modality, and the graph's input."""
CASES: dict[str, Case] = {
    "timm": (VIT, VIT_FRONT, vit_files, "model.safetensors"),
    "transformers": (
        TINY,
        TextFront(tokenizer=hashlib.sha256(tiny_tokenizer()).hexdigest(), max_tokens=12),
        tiny_files,
        "model.safetensors",
    ),
    "onnx": (ONNX, ONNX_FRONT, lambda folder: onnx_files(folder, small_onnx()), "model.onnx"),
    "identity": (
        Backbone(source="identity"),
        TensorFront(shape=(5, 2), low=(0.0, -40.0), high=(1e-3, 85.0)),
        lambda folder: BackboneFiles(source="identity", revision="", paths={}, sha256={}),
        "",
    ),
    "mlp": (
        Backbone(source="mlp:16x8", seed=3),
        TensorFront(shape=(5, 2), low=(0.0, -40.0), high=(1e-3, 85.0)),
        lambda folder: BackboneFiles(source="mlp:16x8", revision="", paths={}, sha256={}),
        "",
    ),
}


class Built:
    def __init__(self, kind: str, folder: Path) -> None:
        self.backbone, self.front, make, self.weights = CASES[kind]
        self.files = make(folder)
        self.loader = load(backbones, kind, Loader, field="spec.backbone.loader")()  # type: ignore[type-abstract]  # the kind found is concrete
        self.trunk: Trunk = self.loader.build(self.backbone, self.files, self.front, bits=11)

    def samples(self, count: int) -> TrunkInput:
        rng = np.random.default_rng(0)
        if isinstance(self.front, TextFront):
            return rng.integers(4, 40, (count, 7))
        return rng.normal(size=(count, *self.front.sample_shape)).astype(np.float32)


@pytest.fixture(scope="module", params=kinds(backbones))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(request.param, tmp_path_factory.mktemp(request.param))


def test_every_loader_has_a_case() -> None:
    assert set(kinds(backbones)) == set(CASES)


def test_the_graph_maps_pixels_to_features(built: Built) -> None:
    graph = onnx.load_model_from_string(built.trunk.onnx).graph

    def shape(value: onnx.ValueInfoProto) -> list[int | str]:
        return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]

    assert [value.name for value in graph.input] == [INPUTS[type(built.front)][1]]
    assert [value.name for value in graph.output] == ["features"]
    axes = ["L"] if isinstance(built.front, TextFront) else built.front.sample_shape
    assert shape(graph.input[0]) == ["N", *axes]
    assert shape(graph.output[0])[0] == "N"


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_any_number_of_images_gives_as_many_rows(built: Built, count: int) -> None:
    pixels = built.samples(count)
    if count == 0 and built.backbone.loader in ("timm", "transformers"):
        return  # an empty batch never reaches a trunk; attention kernels may refuse it
    assert TrunkSession(built.trunk.onnx).run(pixels).shape == (count, built.trunk.feature_dim)


def test_a_rows_features_do_not_depend_on_its_neighbours(built: Built) -> None:
    pixels = built.samples(3)
    session = TrunkSession(built.trunk.onnx)
    together = session.run(pixels)
    alone = np.concatenate([session.run(pixels[i : i + 1]) for i in range(3)])
    assert np.abs(together - alone).max() <= 1e-4 * np.abs(alone).max()


def test_building_twice_gives_the_same_trunk(built: Built) -> None:
    again = built.loader.build(built.backbone, built.files, built.front, bits=11)
    assert again.feature_digest == built.trunk.feature_digest


def test_the_trunk_says_where_it_comes_from(built: Built) -> None:
    told = built.trunk.provenance
    assert told["source"] == built.files.source
    if built.weights:
        assert told[f"sha256:{built.weights}"] == built.files.sha256[built.weights]
    assert told["loader"] == built.backbone.loader
    assert built.trunk.front == built.front
    assert built.trunk.scale.bits == 11
    assert built.trunk.parity_max_rel_diff <= 1e-4


def test_the_description_agrees_with_what_is_built(built: Built) -> None:
    told = built.loader.describe(built.backbone, built.files)
    assert told.feature_dim in (None, built.trunk.feature_dim)
    assert told.modality == INPUTS[type(built.front)][0]
    if isinstance(built.front, FrontConfig):
        assert (told.height, told.width) == (built.front.height, built.front.width)


def test_a_front_of_another_modality_is_refused(built: Built) -> None:
    image, tensor = FrontConfig(height=32, width=32), TensorFront(shape=(3,), low=(0.0,), high=(1.0,))
    other = tensor if isinstance(built.front, FrontConfig) else image
    with pytest.raises(BackboneError) as error:
        built.loader.build(built.backbone, built.files, other, bits=11)
    assert error.value.field == "spec.input.modality"


def test_a_file_that_is_not_the_verified_one_is_refused(built: Built, tmp_path: Path) -> None:
    if not built.weights:
        pytest.skip("it has no files")
    path = tmp_path / "other"
    path.write_bytes(built.files.paths[built.weights].read_bytes() + b"\0")
    files = BackboneFiles(
        source=built.files.source,
        revision="",
        paths={**built.files.paths, built.weights: path},
        sha256=built.files.sha256,
    )
    with pytest.raises(IntegrityError):
        built.loader.build(built.backbone, files, built.front, bits=11)


def test_a_source_without_weights_is_refused(built: Built) -> None:
    files = BackboneFiles(source="folder:/nothing", revision="", paths={}, sha256={})
    with pytest.raises(BackboneError):
        built.loader.build(built.backbone, files, built.front, bits=11)
