"""The identity: values from their declared range to [-1, 1], on a grid that fits every unit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everlearn.backbones.identity import IdentityLoader
from everlearn.backbones.manifest import dump_manifest, load_trunk
from everlearn.errors import BackboneError, SpecError
from everlearn.runtime.session import TrunkSession
from everlearn.spec.defaults import front_config
from everlearn.spec.load import parse
from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles, TensorFront, Trunk

IDENTITY = Backbone(source="identity")
NO_FILES = BackboneFiles(source="identity", revision="", paths={}, sha256={})


def trunk_of(front: TensorFront, bits: int = 12) -> Trunk:
    return IdentityLoader().build(IDENTITY, NO_FILES, front, bits=bits)


def declared(input: str, backbone: str = "{source: identity}") -> str:
    return f"metadata: {{name: m}}\nspec:\n  backbone: {backbone}\n  input: {input}\n"


@settings(max_examples=25, deadline=None)
@given(
    low=st.floats(-1e6, 1e6),
    width=st.floats(1e-3, 1e6),
    shape=st.sampled_from([(1,), (7,), (3, 2), (2, 2, 2)]),
)
def test_the_ends_of_the_range_become_minus_one_and_one(low: float, width: float, shape: tuple[int, ...]) -> None:
    # float32 holds seven digits: an offset far beyond the width leaves fewer for what varies.
    tolerance = 1e-5 + 4 * 2.0**-23 * max(abs(low), abs(low + width)) / width
    front = TensorFront(shape=shape, low=(low,), high=(low + width,))
    try:
        trunk = trunk_of(front)
    except BackboneError:
        assert tolerance > 0.1  # the two ends are one number in float32, or nearly
        return
    ends = np.stack([np.full(shape, low), np.full(shape, low + width / 2), np.full(shape, low + width)])
    features = TrunkSession(trunk.onnx).run(ends.astype(np.float32))
    assert features.shape == (3, int(np.prod(shape)))
    assert np.abs(features - [[-1], [0], [1]]).max() <= tolerance


def test_each_place_of_the_last_axis_has_a_range_and_a_fine_grid() -> None:
    front = TensorFront(shape=(4, 3), low=(0.0, -1e-6, 1000.0), high=(1.0, 1e-6, 9000.0))
    trunk = trunk_of(front)
    values = np.broadcast_to(np.array([0.25, 5e-7, 7000.0], np.float32), (1, 4, 3))
    features = TrunkSession(trunk.onnx).run(np.ascontiguousarray(values)).reshape(4, 3)
    assert np.allclose(features, [-0.5, 0.5, 0.5], atol=1e-5)
    assert np.all(trunk.scale.step_d == 2.0**-9)  # 512 steps to the end of the range, four times that before it clips


def test_other_ranges_are_other_features_and_the_manifest_keeps_them() -> None:
    front = TensorFront(shape=(4,), low=(0.0,), high=(1.0,))
    trunk, other = trunk_of(front), trunk_of(TensorFront(shape=(4,), low=(0.0,), high=(2.0,)))
    assert trunk.feature_digest != other.feature_digest
    again = load_trunk(trunk.onnx, dump_manifest(trunk))
    assert again.front == front
    assert again.feature_digest == trunk.feature_digest


def test_it_has_no_files() -> None:
    files = BackboneFiles(source="folder:/x.onnx", revision="", paths={}, sha256={})
    backbone = Backbone.model_construct(source="folder:/x.onnx", loader="identity")
    with pytest.raises(BackboneError, match="no files"):
        IdentityLoader().build(backbone, files, TensorFront(shape=(1,), low=(0.0,), high=(1.0,)), bits=12)


def test_a_declaration_becomes_the_front() -> None:
    model = parse(declared("{modality: tensor, shape: [5, 2], range: [[0, 1], [-40, 85]]}"))
    assert model.spec.backbone.loader == "identity"
    assert front_config(model) == TensorFront(shape=(5, 2), low=(0.0, -40.0), high=(1.0, 85.0))
    one = parse(declared("{modality: tensor, shape: [5, 2], range: [-1.5, 2]}"))
    assert front_config(one) == TensorFront(shape=(5, 2), low=(-1.5,), high=(2.0,))


@pytest.mark.parametrize(
    ("input", "field", "message"),
    [
        ("{modality: tensor, range: [0, 1]}", "spec.input.shape", "is missing"),
        ("{modality: tensor, shape: [3]}", "spec.input.range", "is missing"),
        ("{modality: tensor, shape: [], range: [0, 1]}", "spec.input.shape", "1 to 4"),
        ("{modality: tensor, shape: [0], range: [0, 1]}", "spec.input.shape[0]", "at least 1|greater than"),
        ("{modality: tensor, shape: [300, 300], range: [0, 1]}", "spec.input.shape", "at most 65536"),
        ("{modality: tensor, shape: [3], range: [1, 0]}", "spec.input.range", "lower end first"),
        ("{modality: tensor, shape: [3], range: [0, 1.0e+38]}", "spec.input.range", "float32"),
        ("{modality: tensor, shape: [3], range: [[0, 1], [0, 2]]}", "spec.input.range", "2 pairs"),
        ("{modality: tensor, shape: [3], range: [0, 1], size: 96}", "spec.input", "size is not an option of tensor"),
        ("{shape: [3]}", "spec.input", "shape is not an option of image"),
    ],
)
def test_a_declaration_that_is_no_tensor_is_refused(input: str, field: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        parse(declared(input))
    assert caught.value.field == field


@pytest.mark.parametrize("backbone", ["{source: identity, loader: timm}", "{source: 'hf://a/b', loader: identity}"])
def test_source_and_loader_belong_together(backbone: str) -> None:
    with pytest.raises(SpecError, match="belong together"):
        parse(declared("{modality: tensor, shape: [3], range: [0, 1]}", backbone))
