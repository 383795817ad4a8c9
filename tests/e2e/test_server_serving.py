"""Predictions from the real server: which version answers, what is refused, and what happens when too much is asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tests import tiny
from tests.e2e.server_calls import Refusal, Stubs, encoded, predict_request, refusal_of, refused
from tests.real_server import RealServer

from everlearn_client import Client, Conflict, FailedPrecondition, InvalidArgument, NotFound, Predictions
from everlearn_client.errors import EverlearnClientError
from everlearn_protos.v1 import models_pb2 as pb
from everlearn_protos.v1 import predict_pb2

SLOW = encoded(np.full((3000, 3000, 3), 90, np.uint8))
"""A small file that keeps a worker busy for about a tenth of a second."""


@pytest.fixture(scope="module", autouse=True)
def model(server: RealServer, client: Client, backbone: Path) -> None:
    """`tiny` knows three classes; `manual` has versions that nobody promoted; `blank` has learned nothing."""
    server.declare(tiny.declaration(backbone))
    server.declare(tiny.declaration(backbone, name="manual", serving={"promotion": "manual"}))
    server.declare(tiny.declaration(backbone, name="blank"))
    for name in ("tiny", "manual"):
        for label in range(3):
            client.learn(name, [(tiny.images(8, label), [f"c{label}"] * 8)])


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, backbone: Path) -> Iterator[RealServer]:
    """A server with one worker and room for two waiting images."""
    folder = tmp_path_factory.mktemp("narrow") / "data"
    with RealServer(folder, arguments=["--workers", "1", "--queue-images", "2"]) as server:
        server.declare(tiny.declaration(backbone))
        with server.client() as client:
            client.learn("tiny", [(tiny.images(4, 0), ["a"] * 4)])
        yield server


def test_a_prediction_says_by_which_version_and_how_sure(client: Client) -> None:
    found = client.predict("tiny", tiny.images(2, 1, seed=3), top_k=2, scores=True)
    stable = client.models.version("tiny")
    assert found.version == stable.name
    assert found.labels == ("c0", "c1", "c2")
    assert found.scores_NC is not None
    assert found.scores_NC.shape == (2, 3)
    for best, row in zip(found.top, found.scores_NC, strict=True):
        assert [scored.label for scored in best] == [f"c{index}" for index in np.argsort(-row)[:2]]
        assert best[0].score == row.max()
        assert best[0].label == "c1"
    assert found.trunk_ms > 0


def test_top_k_is_one_by_default_and_all_at_most(client: Client) -> None:
    image = tiny.images(1, 0)
    assert [len(client.predict("tiny", image, top_k=k).top[0]) for k in (0, 1, 3, 1000)] == [1, 1, 3, 3]
    plain = client.predict("tiny", image)
    assert (plain.scores_NC, plain.labels) == (None, ())


def test_no_image_has_no_prediction(client: Client) -> None:
    assert client.predict("tiny", np.zeros((0, 16, 16, 3), np.uint8)).top == ()


def test_a_version_is_asked_for_by_number_or_alias_and_stays_what_it_was(client: Client) -> None:
    probe = tiny.images(2, 2, seed=6)
    numbers = [version.number for version in client.models.versions("tiny")]
    oldest = client.predict("tiny", probe, version=numbers[-1], scores=True)
    latest = client.predict("tiny", probe, version="latest", scores=True)
    assert latest.version == f"models/tiny/versions/{numbers[0]}"
    assert oldest.version == f"models/tiny/versions/{numbers[-1]}"
    assert oldest.scores_NC is not None
    client.learn("tiny", [(tiny.images(8, 1, seed=9), ["c1"] * 8)])
    again = client.predict("tiny", probe, version=numbers[-1], scores=True)
    np.testing.assert_array_equal(again.scores_NC, oldest.scores_NC)


def test_what_does_not_exist_is_not_found_and_what_is_not_ready_says_so(client: Client, stubs: Stubs) -> None:
    image = tiny.images(1, 0)
    for version in (999_999, "10" * 9):
        with pytest.raises(NotFound):
            client.predict("tiny", image, version=version)
    with pytest.raises(NotFound):
        client.predict("nobody", image)
    for name in ("blank", "blank/versions/stable", "blank/versions/latest"):
        request = predict_request(name, image)
        refused(
            lambda request=request: stubs.predictions.Predict(request), "FAILED_PRECONDITION", reason="MODEL_NOT_READY"
        )
    for name in ("", "tiny", "models/", "models/Tiny", "models/tiny/versions", "models/tiny/versions/1/x", "x" * 9999):
        request = predict_pb2.PredictRequest(name=name)
        refused(lambda request=request: stubs.predictions.Predict(request), "INVALID_ARGUMENT", field="name")


def test_a_stream_answers_in_order_and_an_error_in_the_middle_is_its_own(client: Client, stubs: Stubs) -> None:
    batches = [tiny.images(1, 0), [b"no image"], tiny.images(2, 1), [], tiny.images(1, 2)]
    answers = list(client.predict_stream("tiny", batches))
    assert [len(answer.top) if isinstance(answer, Predictions) else answer for answer in answers[::2]] == [1, 2, 1]
    wrong = answers[1]
    assert isinstance(wrong, InvalidArgument)
    assert wrong.field == "samples.encoded_images.images[0]"

    def requests() -> Iterator[predict_pb2.PredictRequest]:
        yield predict_request("nobody", tiny.images(1, 0))
        yield predict_request("blank", tiny.images(1, 0))
        yield predict_pb2.PredictRequest(name="models/tiny")
        yield predict_request("tiny", tiny.images(1, 0))

    outcomes = list(stubs.predictions.PredictStream(requests()))
    assert [outcome.error.code for outcome in outcomes] == ["NOT_FOUND", "FAILED_PRECONDITION", "INVALID_ARGUMENT", ""]
    assert outcomes[2].error.field == "samples"
    assert outcomes[3].response.predictions


def test_malformed_bytes_in_a_predict_stream_are_answered_and_it_goes_on(stubs: Stubs) -> None:
    method = stubs.channel.stream_stream(
        "/everlearn.v1.PredictService/PredictStream",
        response_deserializer=predict_pb2.PredictStreamResponse.FromString,
    )
    good = predict_request("tiny", tiny.images(1, 0)).SerializeToString()
    outcomes = list(method(iter([good, b"\xff\xff\xff", good])))
    assert [outcome.WhichOneof("outcome") for outcome in outcomes] == ["response", "error", "response"]
    assert outcomes[1].error.code == "INVALID_ARGUMENT"


def test_manual_promotion_serves_nothing_until_somebody_promotes(server: RealServer, client: Client) -> None:
    image = tiny.images(1, 0)
    with pytest.raises(FailedPrecondition):
        client.predict("manual", image)
    assert client.predict("manual", image, version="latest").top
    latest = client.models.version("manual", "latest").number
    promoted = client.models.promote("manual", "latest")
    assert promoted.status.aliases["stable"] == latest
    client.learn("manual", [(tiny.images(4, 0, seed=2), ["c0"] * 4)])
    assert client.predict("manual", image).version.endswith(f"/{latest}")
    server.restart()
    assert client.predict("manual", image).version.endswith(f"/{latest}")


def test_a_version_that_fails_its_gate_is_not_promoted(server: RealServer, client: Client, backbone: Path) -> None:
    server.declare(tiny.declaration(backbone, name="strict", gate={"min_accuracy": 0.9}))
    client.learn("strict", [(tiny.images(4, 0), ["a"] * 4), (tiny.images(4, 1), ["b"] * 4)])
    with pytest.raises(FailedPrecondition) as early:
        client.predict("strict", tiny.images(1, 0))
    assert "prequential accuracy" in early.value.message
    with pytest.raises(FailedPrecondition) as gate:
        client.models.promote("strict", "latest")
    assert gate.value.reason == "GATE_FAILED"
    for turn in range(60):
        client.learn("strict", [(tiny.images(8, turn % 2, seed=turn), ["ab"[turn % 2]] * 8)])
        if "stable" in client.models.get("strict").status.aliases:
            break
    assert client.models.version("strict", "stable").gate_passed
    assert client.predict("strict", tiny.images(1, 1)).top[0][0].label == "b"


def test_rolling_back_moves_a_pointer_and_pauses_promotion_until_the_next_promote(
    server: RealServer, client: Client
) -> None:
    image = tiny.images(1, 1)
    before = [version.number for version in client.models.versions("tiny")]
    assert len(before) >= 3
    back = client.models.rollback("tiny")
    assert back.status.aliases["stable"] == before[1]
    assert back.status.promotion_paused
    assert client.predict("tiny", image).version.endswith(f"/{before[1]}")
    client.learn("tiny", [(tiny.images(4, 1, seed=1), ["c1"] * 4)])
    assert client.predict("tiny", image).version.endswith(f"/{before[1]}")
    assert client.models.rollback("tiny", before[2]).status.aliases["stable"] == before[2]
    server.restart()
    assert client.predict("tiny", image).version.endswith(f"/{before[2]}")
    assert client.models.get("tiny").status.promotion_paused
    promoted = client.models.promote("tiny", "latest")
    assert not promoted.status.promotion_paused
    client.learn("tiny", [(tiny.images(4, 1, seed=2), ["c1"] * 4)])
    assert client.models.version("tiny", "stable").number == client.models.version("tiny", "latest").number


def test_pointers_move_only_where_the_caller_sees_the_present(client: Client, stubs: Stubs) -> None:
    with pytest.raises(Conflict):
        client.models.promote("tiny", "latest", etag="stale")
    with pytest.raises(Conflict):
        client.models.rollback("tiny", etag="stale")
    with pytest.raises(NotFound):
        client.models.rollback("tiny", 12345)
    with pytest.raises(FailedPrecondition):
        client.models.rollback("blank")
    rollback, promote = stubs.models.RollbackModel, stubs.models.PromoteVersion
    negative = pb.RollbackModelRequest(name="models/tiny", version=-1)
    refused(lambda: rollback(negative), "INVALID_ARGUMENT", field="version")
    refused(lambda: promote(pb.PromoteVersionRequest(name="models/tiny")), "INVALID_ARGUMENT", field="name")
    etag = client.models.get("tiny").etag
    assert client.models.promote("tiny", "latest", etag=etag).etag != etag


def test_an_unloaded_model_is_refused_until_it_is_loaded_and_goes_on_learning(
    server: RealServer, client: Client
) -> None:
    with triton.InferenceServerClient(server.address) as oip:
        oip.unload_model("tiny")
        with pytest.raises(FailedPrecondition) as unloaded:
            client.predict("tiny", tiny.images(1, 0))
        assert unloaded.value.reason == "MODEL_NOT_READY"
        assert client.learn("tiny", [(tiny.images(2, 0), ["c0"] * 2)]).durable_samples == 2
        oip.load_model("tiny")
    assert client.predict("tiny", tiny.images(1, 0)).top


def test_a_full_queue_is_resource_exhausted_with_a_time_to_come_back(narrow: RealServer) -> None:
    with Stubs(narrow.address) as stubs, ThreadPoolExecutor(1) as pool:
        refusals: list[Refusal] = []
        for _ in range(100):  # it may come after the others, or be done before they come
            refusals.clear()
            busy = pool.submit(stubs.predictions.Predict, predict_request("tiny", [SLOW] * 12), timeout=120)
            time.sleep(0.2)
            while not busy.done() and not refusals:
                try:
                    stubs.predictions.Predict(predict_request("tiny", tiny.images(1, 0)), timeout=1)
                except grpc.RpcError as error:
                    is_full = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                    refusals += [refusal_of(_raising(error))] if is_full else []
            if refusals and busy.exception() is None:
                break
        assert refusals, "the queue was never full"
        assert (refusals[0].reason, refusals[0].domain) == ("QUEUE_FULL", "everlearn")
        assert refusals[0].retry_after_s is not None
        assert refusals[0].retry_after_s > 0
        assert len(busy.result().predictions) == 12
        assert stubs.predictions.Predict(predict_request("tiny", tiny.images(1, 0)), timeout=120).predictions


def test_learning_waits_where_predicting_is_refused(narrow: RealServer) -> None:
    with narrow.client() as client:
        report = client.learn("tiny", [(tiny.images(8, 0, seed=turn), ["a"] * 8) for turn in range(20)])
    assert (report.durable_samples, report.reconnects) == (160, 0)


def test_a_request_whose_time_is_over_is_dropped_from_the_queue(narrow: RealServer) -> None:
    with Stubs(narrow.address) as stubs, triton.InferenceServerClient(narrow.address) as oip:
        with ThreadPoolExecutor(1) as pool:
            for _ in range(200):
                busy = pool.submit(stubs.predictions.Predict, predict_request("tiny", [SLOW] * 2), timeout=120)
                time.sleep(0.03)
                expired = _expired(oip)
                busy.result()
                if expired:
                    break
        assert "deadline passed after" in expired


def _expired(oip: Any) -> str:
    """What the server says to a request that may wait a millisecond; empty if it did not have to."""
    image = triton.InferInput("image", [1, 16, 16, 3], "UINT8")
    image.set_data_from_numpy(tiny.images(1, 0))
    try:
        oip.infer("tiny", [image], timeout=1000)
    except triton.InferenceServerException as error:
        return str(error.message()) if "DEADLINE_EXCEEDED" in str(error.status()) else ""
    return ""


def _raising(error: Exception) -> Any:
    def call() -> None:
        raise error

    return call


def test_predictions_go_on_while_a_model_learns(client: Client) -> None:
    stop = threading.Event()
    failures: list[EverlearnClientError] = []
    versions: set[str] = set()

    def ask() -> None:
        while not stop.is_set():
            try:
                versions.add(client.predict("tiny", tiny.images(1, 0)).version)
            except EverlearnClientError as error:
                failures.append(error)

    asker = threading.Thread(target=ask)
    asker.start()
    client.learn("tiny", [(tiny.images(8, turn % 3, seed=turn), [f"c{turn % 3}"] * 8) for turn in range(60)])
    stop.set()
    asker.join()
    assert not failures
    assert len(versions) > 2


def test_pixels_that_overflow_in_the_trunk_are_refused_and_never_scored(stubs: Stubs) -> None:
    pixels = np.zeros((2, 3, 16, 16), np.float32)
    pixels[1].flat[3] = 3e38
    request = predict_request("tiny", pixels)
    refused(lambda: stubs.predictions.Predict(request), "INVALID_ARGUMENT", field="samples.pixels[1]", says="beyond")
