"""Predictions of any size: ranked as a stable sort ranks, bounded, and never in the way of others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from everlearn.errors import InputError
from everlearn.inputs.samples import Samples
from everlearn_protos.arrays import to_tensor
from everlearn_protos.v1 import predict_pb2, tensor_pb2
from everlearn_server.engine.serving import Scored, Serving, Snapshot
from everlearn_server.rpc.predict import MAX_RANKED, MAX_RESPONSE_BYTES, MAX_SAMPLES, PredictService, best_of

scores = arrays(
    np.float32, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40), elements=st.integers(-3, 3).map(float)
)


@settings(max_examples=200, deadline=None)
@given(scores, st.integers(1, 40))
def test_the_best_are_those_of_a_stable_sort(scores_BC: npt.NDArray[np.float32], count: int) -> None:
    count = min(count, scores_BC.shape[1])
    wanted = np.argsort(-scores_BC, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(best_of(scores_BC, count), wanted)


class Served:
    """A model of so many classes, whose scores are noise."""

    def __init__(self, classes: int, label: str = "c{}") -> None:
        self.labels = tuple(label.format(index) for index in range(classes))
        self.asked = 0

    def snapshot(self, model: str, version: str = "") -> Snapshot:
        return cast(
            Snapshot,
            SimpleNamespace(model=model, version=1, head=SimpleNamespace(labels=self.labels, task="classification")),
        )

    async def score(self, snapshot: Snapshot, samples: Samples, *, timeout_s: float | None) -> Scored:
        self.asked += 1
        noise_BC = np.random.default_rng(0).normal(size=(len(samples), len(self.labels))).astype(np.float32)
        features_Bd = np.zeros((len(samples), 1), np.float32)
        return Scored(scores_BC=noise_BC, features_Bd=features_Bd, decode_ms=0, queue_ms=0, trunk_ms=0, head_ms=0)

    async def keep(self, snapshot: Snapshot, scored: Scored, *, caller: Callable[[], str]) -> list[str]:
        return []


async def predict(served: Served, samples: int, **fields: Any) -> predict_pb2.PredictResponse:
    sent = tensor_pb2.Samples(features=to_tensor(np.zeros((samples, 1), np.float32)))
    request = predict_pb2.PredictRequest(name="models/m", samples=sent, **fields)
    context = cast(Any, SimpleNamespace(time_remaining=lambda: None))
    return await PredictService(cast(Serving, served)).predict(request, context)


@pytest.mark.parametrize(
    ("samples", "fields", "field", "says"),
    [
        (MAX_SAMPLES + 1, {}, "samples", "1025 samples; send 1024"),
        (1000, {"top_k": 2000}, "top_k", f"more than {MAX_RANKED}"),
        (600, {"scores": True}, "scores", "send 516 samples at most"),
    ],
)
def test_an_answer_too_large_is_refused_before_any_work(
    samples: int, fields: dict[str, Any], field: str, says: str
) -> None:
    served = Served(2000)
    with pytest.raises(InputError, match=says) as error:
        asyncio.run(predict(served, samples, **fields))
    assert (error.value.field, served.asked) == (field, 0)


def test_long_labels_cannot_make_an_answer_that_grpc_refuses() -> None:
    served = Served(64, "{}" + 200 * "x")
    with pytest.raises(InputError, match="the response has") as error:
        asyncio.run(predict(served, 1000, top_k=60))
    assert error.value.field == "top_k"
    assert asyncio.run(predict(served, 100, top_k=60)).ByteSize() < MAX_RESPONSE_BYTES


def test_a_large_answer_is_right_and_others_go_on_meanwhile() -> None:
    served = Served(2000)

    async def scenario() -> tuple[predict_pb2.PredictResponse, int]:
        answer, turns = asyncio.create_task(predict(served, 1024, top_k=64)), 0
        while not answer.done():
            await asyncio.sleep(0.001)
            turns += served.asked
        return answer.result(), turns

    answer, turns = asyncio.run(scenario())
    assert turns > 4
    assert len(answer.predictions) == 1024
    for prediction in answer.predictions:
        told = [best.score for best in prediction.top]
        assert len(told) == 64
        assert told == sorted(told, reverse=True)
