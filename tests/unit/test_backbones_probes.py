"""Probe images and the feature scale that rests on them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from tests.unit.backbone_files import ONNX_FRONT, small_onnx

from everlearn.backbones.onnx_graph import trunk_graph
from everlearn.backbones.probes import PROBE_COUNT, feature_scale, finish, probe_images, relative_difference
from everlearn.errors import BackboneError
from everlearn.values import FrontConfig


def test_probes_are_the_same_images_every_time() -> None:
    first, second = (probe_images(FrontConfig(height=32, width=48)) for _ in range(2))
    assert len(first) == PROBE_COUNT
    assert all(image.shape == (32, 48, 3) and image.dtype == np.uint8 for image in first)
    assert all(map(np.array_equal, first, second))
    digests = {hashlib.sha256(image.tobytes()).digest() for image in first}
    assert len(digests) == PROBE_COUNT


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2), (224, 224)])
def test_probes_exist_for_any_size(size: tuple[int, int]) -> None:
    assert len(probe_images(FrontConfig(height=size[0], width=size[1]))) == PROBE_COUNT


def test_steps_leave_headroom_and_are_powers_of_two() -> None:
    features_Bd = np.array([[0.0, 1.0, -8.0, 0.0], [0.5, 0.0, 3.0, 0.0]], np.float32)
    scale = feature_scale(features_Bd, 12)
    assert np.array_equal(np.log2(scale.step_d), np.rint(np.log2(scale.step_d)))
    reach_d = scale.step_d * scale.limit
    # Typical peak is 1: the first and the last feature, rarely or never seen, get its step.
    for reach, wanted in zip(reach_d, [16, 16, 128, 16], strict=True):
        assert wanted / 2**0.5 * 0.99 < reach < wanted * 2**0.5 * 1.01


def test_the_scale_does_not_follow_the_last_bits_of_features() -> None:
    rng = np.random.default_rng(0)
    features_Bd = rng.gamma(2.0, size=(24, 1280)).astype(np.float32)
    noisy = features_Bd * (1 + rng.normal(size=features_Bd.shape) * 1e-7).astype(np.float32)
    assert not np.array_equal(features_Bd, noisy)
    assert feature_scale(features_Bd, 12).digest == feature_scale(noisy, 12).digest


def test_a_graph_that_differs_from_its_source_is_refused() -> None:
    onnx = trunk_graph(small_onnx(), "image", "flat", 32, 32, flatten=False).SerializeToString()
    right = finish(onnx, ONNX_FRONT, 12, {})
    from everlearn.runtime.session import TrunkSession

    session = TrunkSession(onnx)
    same = finish(onnx, ONNX_FRONT, 12, {}, lambda pixels: session.run(pixels) * np.float32(1 + 5e-5))
    assert 4e-5 < same.parity_max_rel_diff < 6e-5
    assert same.feature_digest == right.feature_digest
    with pytest.raises(BackboneError, match="differs from the source model"):
        finish(onnx, ONNX_FRONT, 12, {}, lambda pixels: session.run(pixels) * np.float32(1.001))


def test_other_shapes_and_nan_never_pass_as_close() -> None:
    ones = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert relative_difference(ones, ones) == 0
    assert relative_difference(ones[:, :1], ones) == np.inf
    assert not relative_difference(ones * np.nan, ones) <= 1
