"""Random features: two nodes behind the trunk, the same for the same seed, on a grid that fits what images give."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tests.unit.export_trunks import DIM, conv_trunk

from everlearn.backbones.probes import probe_images
from everlearn.backbones.projection import project, weights
from everlearn.errors import BackboneError
from everlearn.inputs.front import to_pixels
from everlearn.runtime.session import TrunkSession
from everlearn.spec.recipe import Projection
from everlearn.values import FeaturesBd, Trunk

MANY = Projection(dim=200, seed=3)


def features_of(trunk: Trunk) -> FeaturesBd:
    session = TrunkSession(trunk.onnx)
    return np.concatenate([session.run(to_pixels(image, trunk.front)[None]) for image in probe_images(trunk.front)])


def test_a_projected_trunk_gives_the_rectified_products_of_its_trunk_s_features() -> None:
    trunk = conv_trunk()
    projected = project(trunk, MANY)
    wanted = np.maximum(features_of(trunk) @ weights(DIM, MANY), 0)
    np.testing.assert_allclose(features_of(projected), wanted, rtol=1e-4, atol=1e-6)
    assert projected.feature_dim == 200
    onnx.checker.check_model(onnx.load_model_from_string(projected.onnx), full_check=True)


def test_the_seed_and_the_number_decide_what_a_feature_means() -> None:
    trunk = conv_trunk()
    assert project(trunk, MANY).feature_digest == project(trunk, MANY).feature_digest
    others = [project(trunk, Projection(dim=200, seed=4)), project(trunk, Projection(dim=100, seed=3)), trunk]
    assert project(trunk, MANY).feature_digest not in {other.feature_digest for other in others}


def test_probe_images_use_the_grid_without_saturating_it() -> None:
    projected = project(conv_trunk(), MANY)
    # The scale of `conv_trunk` is not fitted, so fit it here: the grid of the projection follows it.
    levels = np.abs(projected.scale.quantise(features_of(projected)))
    assert (levels == projected.scale.limit).mean() < 0.01


def test_what_is_no_trunk_is_refused() -> None:
    projected = project(conv_trunk(), MANY)
    model = onnx.load_model_from_string(projected.onnx)
    model.graph.output[0].name = "scores"
    broken = Trunk(onnx=model.SerializeToString(), scale=projected.scale, front=projected.front, parity_max_rel_diff=0)
    with pytest.raises(BackboneError, match="no trunk"):
        project(broken, MANY)
