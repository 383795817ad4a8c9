"""A first session: what waits is in RAM only, fitted blocks are kept where they are better, and then closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper

from everlearn.backbones.tail import Tail, emptied
from everlearn.errors import DataLossError, InputError, PreconditionError
from everlearn.learners.first_session import FirstSession
from everlearn.spec.model import ModelSpec
from everlearn.values import FeaturesBd, FeatureScale, QuantisedBd

DIM = 6
SCALE = FeatureScale(step_d=np.full(DIM, 2.0**-7, np.float32))


def spec_of(**adapt: Any) -> ModelSpec:
    declared = {"samples": 60, "patience_s": 1.0, **adapt}
    source = {"source": "hf://timm/x", "revision": "0" * 40}
    return ModelSpec.model_validate(
        {"backbone": source, "recipe": "first_session_analytic", "adapt": {"kind": "first_session", **declared}}
    )


def tail_of(weight_nd: npt.NDArray[np.float32]) -> Tail:
    """features = relu(values W)."""
    size, dim = weight_nd.shape
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["activations", "w"], ["product"]),
            helper.make_node("Relu", ["product"], ["features"]),
        ],
        "tail",
        [helper.make_tensor_value_info("activations", TensorProto.FLOAT, ["N", size])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", dim])],
        [numpy_helper.from_array(weight_nd, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return Tail(
        architecture="x",
        blocks=1,
        cut="b",
        shape=(size, 1, 1),
        channel_axis=0,
        height=8,
        width=8,
        feature_dim=dim,
        graph=emptied(onnx.load_model_from_string(model.SerializeToString()), frozenset({"w"})),
        weights=safetensors.numpy.save({"w": np.ascontiguousarray(weight_nd)}),
    )


BLIND = tail_of(np.concatenate([np.zeros((DIM - 1, 4)), np.ones((1, 4))]).astype(np.float32))
"""Sees the last value alone, which is noise."""
SEEING = tail_of(np.concatenate([np.eye(DIM), -np.eye(DIM)], axis=1).astype(np.float32)[:, :4])


def batch(number: int, rows: int = 12) -> tuple[QuantisedBd, list[str]]:
    random = np.random.default_rng(number)
    label_B = random.integers(0, 3, rows)
    values_Bn = np.eye(DIM, dtype=np.float32)[label_B] * 4 + random.normal(0, 0.3, (rows, DIM)).astype(np.float32)
    return SCALE.quantise(values_Bn), [f"c{label}" for label in label_B]


def session(fitted: Tail = SEEING, base: Tail = BLIND, data: bytes | None = None, **adapt: Any) -> FirstSession:
    def fit(tail: Tail, values_Nn: FeaturesBd, labels: Sequence[str]) -> Tail:
        assert tail is base
        assert len(values_Nn) == len(labels) < 60, "those that judge must not be fitted"
        return replace(base, weights=fitted.weights)

    return FirstSession(spec_of(**adapt), SCALE, base, fit, data)


def teach(learner: FirstSession, first: int, last: int) -> None:
    for number in range(first, last):
        learner.integrate(*batch(number))


def accuracy(learner: FirstSession) -> float:
    from everlearn.backbones.tail import TailSession

    solution = learner.learned().solve()
    assert solution.tail is not None
    quantised_Bd, labels = batch(777, 90)
    features_Bd = TailSession(solution.tail).run(SCALE.restore(quantised_Bd))
    found = solution.head.scores(features_Bd).argmax(axis=1)
    return float(np.mean([solution.head.labels[index] == label for index, label in zip(found, labels, strict=True)]))


def test_samples_wait_in_ram_and_nothing_of_them_is_at_rest_before_the_end() -> None:
    learner = session()
    teach(learner, 0, 4)
    assert learner.holds_samples
    assert learner.samples == 48
    assert learner.to_bytes() == b""
    assert accuracy(learner) < 0.7, "the base blocks answer until then"
    teach(learner, 4, 5)
    assert not learner.holds_samples
    assert learner.to_bytes()


def test_better_blocks_are_kept_and_every_sample_of_the_session_is_learned_through_them() -> None:
    learner = session()
    teach(learner, 0, 5)
    assert learner.learned().figures["fitted_accuracy"] > learner.learned().figures["base_accuracy"]
    assert learner.samples == learner.sums.samples == 60
    assert learner.sums_scale.step_d.size == learner.sums.dim == 4, "not the scale at the cut"
    assert accuracy(learner) > 0.95


def test_blocks_that_are_not_better_are_dropped() -> None:
    learner = session(fitted=replace(SEEING, weights=BLIND.weights), base=SEEING)
    teach(learner, 0, 5)
    assert accuracy(learner) > 0.95


def test_after_the_session_order_leaves_no_trace() -> None:
    there, back = session(), session()
    for learner, rest in ((there, range(5, 9)), (back, range(8, 4, -1))):
        teach(learner, 0, 5)
        for number in rest:
            learner.integrate(*batch(number))
    assert there.sums == back.sums


def test_a_stream_that_rests_ends_the_session_with_what_came() -> None:
    learner = session()
    learner.settle()
    teach(learner, 0, 3)
    learner.settle()
    assert not learner.holds_samples
    assert accuracy(learner) > 0.95


def test_too_few_samples_are_learned_through_the_base_blocks() -> None:
    learner = session(base=SEEING)
    teach(learner, 0, 1)
    learner.settle()
    assert learner.learned().figures == {}
    assert learner.sums.samples == 12


def test_a_stored_session_goes_on_bit_for_bit() -> None:
    learner = session()
    teach(learner, 0, 6)
    again = session(data=learner.to_bytes())
    teach(learner, 6, 8)
    teach(again, 6, 8)
    assert again.to_bytes() == learner.to_bytes()
    assert again.learned().digest() == learner.learned().digest()


def test_other_bytes_and_other_blocks_are_refused() -> None:
    learner = session()
    teach(learner, 0, 6)
    other = tail_of(np.ones((DIM, 5), np.float32))
    with pytest.raises(DataLossError, match="other blocks"):
        session(base=other, data=learner.to_bytes())
    with pytest.raises(DataLossError, match="cannot be read"):
        session(data=b"{}\n")


def test_a_batch_that_does_not_fit_is_refused_and_nothing_waits() -> None:
    learner = session()
    with pytest.raises(InputError):
        learner.integrate(batch(0)[0], ["a"])
    assert not learner.holds_samples
    with pytest.raises(PreconditionError, match="has not ended"):
        _ = learner.sums


@pytest.mark.parametrize("samples", [0, 1])
def test_a_session_of_nothing_or_of_one_sample_is_no_error(samples: int) -> None:
    learner = session(base=SEEING)
    assert learner.learned().digest()
    learner.integrate(*(part[:samples] for part in batch(0)))
    assert learner.learned().samples == samples
    learner.settle()
    teach(learner, 1, 6)
    assert accuracy(learner) > 0.95
