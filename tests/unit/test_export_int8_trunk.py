"""A trunk in 8 bits: what observes in its place, and the graph that is made of what was seen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from tests import tiny

from everlearn.backbones.manifest import dump_manifest, load_trunk
from everlearn.errors import BackboneError, DataLossError, InputError, PreconditionError
from everlearn.export.compose import Composer
from everlearn.export.int8 import observer, plan, rounded
from everlearn.export.int8_trunk import RANGES, calibrated, calibrated_on, made_again, observes, observing
from everlearn.export.parity import check_release
from everlearn.export.probes import Probes, plain_session
from everlearn.export.ranges import RangeSketch
from everlearn.heads import head_for
from everlearn.inputs.front import to_pixels
from everlearn.learners import ClosedForm
from everlearn.learners.calibration import Calibration
from everlearn.learners.rounded import Rounded
from everlearn.memories import memory_for
from everlearn.runtime.session import TrunkSession
from everlearn.spec.load import parse
from everlearn.values import FeaturesBd, LinearHead, Trunk


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Trunk:
    return tiny.trunk_of(tiny.write_backbone(tmp_path_factory.mktemp("backbone")))


def pixels(count: int, label: int, seed: int = 0) -> list[npt.NDArray[np.float32]]:
    return [to_pixels(image, tiny.FRONT)[None] for image in tiny.images(count, label, seed=seed)]


def seen(trunk: Trunk, each: Sequence[npt.NDArray[np.float32]]) -> RangeSketch:
    """As a server counts them: from what the observing trunk gives, through its fixed-point scale."""
    watching = observing(trunk)
    session = TrunkSession(watching.onnx)
    bins_Bd = watching.scale.quantise(np.concatenate([session.run(one) for one in each]))
    sketch = RangeSketch([str(place) for place in range(watching.feature_dim // 2)])
    sketch.add_bins(bins_Bd.reshape(len(bins_Bd), -1, 2).astype(np.int64))
    return sketch


def features(trunk: Trunk, each: Sequence[npt.NDArray[np.float32]]) -> FeaturesBd:
    session = TrunkSession(trunk.onnx, arena=False)
    return np.concatenate([session.run(one) for one in each])


def head_on(trunk: Trunk) -> LinearHead:
    memory = memory_for("statistics").create(trunk.feature_dim, ())
    learner = ClosedForm(memory, head_for("balanced_ridge"), trunk.scale)
    for label in range(3):
        learner.learn(features(trunk, pixels(20, label)), [f"class-{label}"] * 20)
    return Rounded(learner.learned()).solve().head


def test_what_observes_counts_as_the_sketch_does(trunk: Trunk) -> None:
    each = [*pixels(9, 0), *pixels(9, 1)]
    planned = plan(trunk.onnx)
    by_hand, session = RangeSketch(planned.tensors), plain_session(observer(planned))
    for one in each:
        by_hand.add(session.run(["extremes"], {"pixels": one})[0])
    assert list(seen(trunk, each).ranges().values()) == list(by_hand.ranges().values())
    assert observes(observing(trunk).provenance)
    assert not observes(trunk.provenance)


def test_it_is_a_trunk_of_its_own_that_the_same_ranges_make_again(trunk: Trunk) -> None:
    sketch = seen(trunk, pixels(40, 0))
    made = calibrated(trunk, sketch)
    assert calibrated(trunk, sketch).feature_digest == made.feature_digest != trunk.feature_digest
    assert calibrated_on(made.provenance) == 40
    assert calibrated_on(trunk.provenance) == 0
    again = load_trunk(made.onnx, dump_manifest(made))
    assert (again.feature_digest, again.provenance) == (made.feature_digest, made.provenance)
    assert made_again(trunk, made.provenance, made.digest).onnx == made.onnx
    with pytest.raises(DataLossError, match="cannot be made again"):
        made_again(trunk, made.provenance, trunk.digest)
    wider = {
        **made.provenance,
        RANGES: json.dumps([(2 * low, 2 * high) for low, high in json.loads(made.provenance[RANGES])]),
    }
    with pytest.raises(DataLossError, match="cannot be made again"):
        made_again(trunk, wider, made.digest)


def test_its_features_are_near_those_in_fp32_and_not_them(trunk: Trunk) -> None:
    each = [one for label in range(3) for one in pixels(20, label)]
    made = calibrated(trunk, seen(trunk, each))
    ours_Bd, fp32_Bd = features(made, each), features(trunk, each)
    apart = np.abs(ours_Bd - fp32_Bd).max() / np.abs(fp32_Bd).max()
    assert 0 < apart < 0.05
    assert made.parity_max_rel_diff > 0


def test_no_two_products_of_it_leave_16_bits(trunk: Trunk) -> None:
    model = onnx.load_model_from_string(calibrated(trunk, seen(trunk, pixels(40, 0))).onnx)
    kernels = [numpy_helper.to_array(each) for each in model.graph.initializer if len(each.dims) == 4]
    assert [kernel.dtype for kernel in kernels] == [np.int8]
    most = max(int(np.abs(kernel.astype(np.int64)).max()) for kernel in kernels)
    assert 2 * 255 * most < 2**15


def test_a_batch_has_the_rows_that_its_images_have_alone(trunk: Trunk) -> None:
    each = pixels(12, 1)
    made = calibrated(trunk, seen(trunk, each))
    np.testing.assert_array_equal(TrunkSession(made.onnx).run(np.concatenate(each)), features(made, each))


def test_the_head_is_of_these_features_and_the_file_answers_as_they_do(trunk: Trunk) -> None:
    each = [one for label in range(3) for one in pixels(20, label)]
    made = calibrated(trunk, seen(trunk, each))
    ours, fp32 = head_on(made), head_on(trunk)
    # The control: solved on features in fp32 and put on the trunk in 8 bits, it is another head with other answers.
    assert np.abs(ours.weight_dC - fp32.weight_dC).max() > 0
    new_Bd = features(made, pixels(10, 1, seed=8))
    assert np.abs(ours.scores(new_Bd) - fp32.scores(new_Bd)).max() > 1e-4
    file = Composer(made).compose(ours, {"model": "m", "version": "1"}, precision="int8")
    probes = Probes.of(made, TrunkSession(made.onnx, arena=False).run)
    report = check_release(file, ours.scores, ours.labels, probes, tolerance=1e-4)
    assert report.composed.label_agreement == 1
    told = {each.key: each.value for each in onnx.load_model_from_string(file).metadata_props}
    assert told["everlearn.feature_digest"] == made.feature_digest
    assert (told["everlearn.precision"], told["everlearn.server_precision"]) == ("int8", "int8")
    assert not any("ranges" in name for name in told)


def test_a_head_that_8_bits_hold_is_what_its_own_rounding_gives(trunk: Trunk) -> None:
    head = head_on(trunk)
    np.testing.assert_allclose(rounded(head).weight_dC, head.weight_dC, rtol=1e-6, atol=0)


def test_ranges_that_leave_nothing_are_refused(trunk: Trunk) -> None:
    planned = plan(trunk.onnx)
    sketch = RangeSketch(planned.tensors)
    sketch.add(np.full((4, len(planned.tensors), 2), 2.0**20, np.float32))
    with pytest.raises(BackboneError, match="leave int8_trunk out"):
        calibrated(trunk, sketch)


def test_a_calibration_learns_nothing_keeps_nothing_and_is_never_durable() -> None:
    spec = parse(tiny_declaration(samples=32)).spec
    learner = Calibration(spec, tensors=2)
    bins_B4 = np.full((20, 4), 7, np.int16)
    learner.integrate(bins_B4, ["a"] * 20)
    assert learner.waits_for == "20 of 32 images have come that the trunk in 8 bits is made from"
    assert (learner.samples, learner.holds_samples, learner.to_bytes(), learner.held_bytes) == (0, True, b"", 0)
    with pytest.raises(PreconditionError, match="not made yet"):
        learner.learned().solve()
    before = learner.learned().digest()
    learner.integrate(bins_B4, ["b"] * 20)
    assert (learner.waits_for, learner.sketch.samples) == ("", 40)
    assert learner.learned().digest() != before
    learner.integrate(bins_B4, ["b"] * 20)  # what comes while the trunk is made
    assert learner.sketch.samples == 40
    learner.settle()
    assert learner.holds_samples


@pytest.mark.parametrize("bins", [-1, 321, 30_000])
def test_what_is_no_bin_is_not_counted(bins: int) -> None:
    sketch = RangeSketch(["a"])
    with pytest.raises(InputError, match="not the bins"):
        sketch.add_bins(np.full((1, 1, 2), bins))
    assert sketch.samples == 0


def test_a_graph_that_has_nothing_to_quantise_is_refused(trunk: Trunk) -> None:
    model = onnx.load_model_from_string(trunk.onnx)
    pooled = next(node.input[0] for node in model.graph.node if node.op_type == "GlobalAveragePool")
    kept = [node for node in model.graph.node if node.op_type not in ("Conv", "Relu")]
    for node in kept:
        node.input[:] = [model.graph.input[0].name if name == pooled else name for name in node.input]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    with pytest.raises(BackboneError, match="no convolution"):
        observing(replace(trunk, onnx=model.SerializeToString()))


def tiny_declaration(*, samples: int) -> str:
    return tiny.declaration(Path(__file__), int8_trunk={"samples": samples})
