"""Models, predictions, exports and operations over a real connection, and how errors come out."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from tests.fake_server import FakeServer

import everlearn_client
from everlearn_client import (
    AsyncClient,
    Client,
    Conflict,
    DataLoss,
    DeadlineExceeded,
    EverlearnClientError,
    ExportFile,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Predictions,
    Tls,
    Unavailable,
)
from everlearn_client import errors as e
from everlearn_client._download import PartFile
from everlearn_client._retry import Retry
from everlearn_server.errors import STATUS_OF

PNG = b"\x89PNG rest"
DECLARATION = "metadata: {name: digits}\nspec: {backbone: b0, gate: strict}\n"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.target) as connected:
        yield connected


def test_apply_waits_for_the_backbone_and_reports_progress(client: Client) -> None:
    stages: list[str] = []
    applied = client.models.apply(DECLARATION, progress=lambda step: stages.append(step.stage))
    assert applied.plan.action == "create"
    assert applied.model is not None
    assert applied.model.name == "models/digits"
    assert stages == ["download", "build", "ready"]
    assert client.models.apply(DECLARATION).plan.action == "none"


def test_declaring_may_take_longer_than_other_calls(server: FakeServer) -> None:
    server.faults.declare_delay_s = 1.2
    with Client(server.target, timeout_s=1.0) as client:
        assert client.models.plan(DECLARATION).action == "create"
        assert client.models.lock(DECLARATION).lock
        assert client.models.apply(DECLARATION).model is not None
        with pytest.raises(DeadlineExceeded):
            client.models.plan(DECLARATION, timeout_s=0.1)

    async def go() -> None:
        async with AsyncClient(server.target, timeout_s=1.0) as client:
            assert (await client.models.plan(DECLARATION)).action == "none"
            assert (await client.models.lock(DECLARATION)).lock
            assert (await client.models.apply(DECLARATION)).plan.action == "none"
            with pytest.raises(DeadlineExceeded):
                await client.models.lock(DECLARATION, timeout_s=0.1)

    asyncio.run(go())


def test_apply_without_waiting_hands_the_operation_over(client: Client) -> None:
    applied = client.models.apply(DECLARATION, wait=False)
    assert applied.operation is not None
    assert client.wait(applied.operation).DESCRIPTOR.full_name == "everlearn.v1.Model"
    with pytest.raises(DeadlineExceeded, match="it goes on"):
        client.wait(applied.operation, timeout_s=0.0)


def test_a_failed_operation_raises_its_error(client: Client) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        client.models.apply("metadata: {name: digits}\nspec: {backbone: broken}\n")
    assert (caught.value.reason, caught.value.field) == ("DIGEST_MISMATCH", "spec.backbone")


def test_a_stale_plan_and_a_missing_consent_are_told_apart(client: Client) -> None:
    plan = client.models.plan(DECLARATION)
    client.models.apply(DECLARATION, plan_id=plan.id)
    with pytest.raises(Conflict):
        client.models.apply(DECLARATION, plan_id=plan.id)
    other = DECLARATION.replace("b0", "b1")
    with pytest.raises(FailedPrecondition) as caught:
        client.models.apply(other)
    assert caught.value.reason == "NEEDS_CONSENT"
    assert client.models.apply(other, allow_replace=True).plan.deletions


def test_a_dry_run_changes_nothing(client: Client) -> None:
    assert client.models.apply(DECLARATION, dry_run=True).model is None
    assert list(client.models.list()) == []


def test_lists_turn_their_pages_by_themselves(client: Client, server: FakeServer) -> None:
    for name in "abcde":
        server.ready_model(name)
    assert [model.name for model in client.models.list()] == [f"models/{name}" for name in "abcde"]
    assert [version.number for version in client.models.versions("a")] == [1, 2, 3]


def test_versions_move_by_promotion_and_rollback(client: Client, server: FakeServer) -> None:
    server.ready_model()
    assert client.models.version("digits").number == 1
    assert client.models.promote("digits").status.aliases["stable"] == 3
    assert client.models.rollback("digits").status.aliases["stable"] == 2
    with pytest.raises(FailedPrecondition, match="gate"):
        client.models.promote("digits", 9)
    client.models.delete("digits", etag="1")
    with pytest.raises(NotFound) as caught:
        client.models.get("digits")
    assert caught.value.field == "name"


@pytest.mark.parametrize("name", ["Digits", "", "a/b", "models/", "x" * 64])
def test_a_wrong_name_is_refused_before_it_is_sent(client: Client, name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        client.models.get(name)
    assert caught.value.field == "model"


def test_predictions_come_as_labels_and_scores(client: Client) -> None:
    answer = client.predict("digits", np.zeros((3, 8, 8, 3), np.uint8), top_k=2, scores=True)
    assert [scored.label for scored in answer.top[0]] == ["cat", "dog"]
    assert answer.scores_NC is not None
    assert answer.scores_NC.shape == (3, 2)
    assert len(answer.top) == 3
    assert client.predict("digits", [PNG]).scores_NC is None


def test_a_bad_image_is_named(client: Client) -> None:
    with pytest.raises(InvalidArgument) as caught:
        client.predict("digits", [PNG, b"GIF"])
    assert (caught.value.field, caught.value.code) == ("samples.encoded_images.images[1]", "INVALID_ARGUMENT")


def test_a_predict_stream_goes_on_after_an_error(client: Client) -> None:
    answers = list(client.predict_stream("digits", [[PNG], [b"GIF"], [PNG, PNG]]))
    assert isinstance(answers[0], Predictions)
    assert isinstance(answers[1], InvalidArgument)
    assert isinstance(answers[2], Predictions)
    assert len(answers[2].top) == 2


def test_a_wrong_sample_in_a_predict_stream_is_raised_as_it_is(client: Client, server: FakeServer) -> None:
    with pytest.raises(InvalidArgument, match="must be uint8"):
        list(client.predict_stream("digits", [np.zeros((2, 8, 8), np.uint8)]))

    async def run() -> None:
        async with AsyncClient(server.target) as other:
            async for _ in other.predict_stream("digits", [np.zeros((2, 8, 8), np.uint8)]):
                pass

    with pytest.raises(InvalidArgument, match="must be uint8"):
        asyncio.run(run())


def test_unavailable_calls_are_repeated_even_when_large(client: Client, server: FakeServer) -> None:
    server.faults.unavailable_calls = 2
    client.predict("digits", np.zeros((5, 256, 256, 3), np.uint8))
    assert server.calls["Predict"] == 3


def test_no_server_is_unavailable() -> None:
    with Client("127.0.0.1:9", timeout_s=5) as nobody, pytest.raises(Unavailable):
        nobody.info()


def test_a_token_travels_as_a_header_and_never_in_clear_over_a_network(server: FakeServer) -> None:
    with Client(server.target, token="t0ken") as client:
        client.predict("digits", [PNG])
    assert server.metadata[-1]["authorization"] == "Bearer t0ken"
    with pytest.raises(InvalidArgument, match="clear text"):
        Client("example.org:8470", token="t0ken")
    Client("example.org:8470", token="t0ken", tls=Tls()).close()


def test_a_download_cut_and_corrupted_on_the_way_arrives_whole(
    client: Client, server: FakeServer, tmp_path: Path
) -> None:
    export = client.export("digits")
    server.faults.cut_download_after, server.faults.corrupt_download_chunks = [3, 0], {5}
    seen: list[int] = []
    paths = client.download(export, tmp_path, on_progress=lambda step: seen.append(step.bytes_done))
    assert [path.read_bytes() for path in paths] == list(server.files.values())
    # Cut after three chunks, cut at once, two more and the damaged third, then the rest, then the card.
    assert server.downloads == [0, 3000, 3000, 5000, 0]
    assert seen == [*range(1000, 10001, 1000), 10240, 7]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["MODEL_CARD.md", "model.onnx"]


def test_a_download_goes_on_in_another_process_and_is_not_repeated(
    client: Client, server: FakeServer, tmp_path: Path
) -> None:
    export = client.export("digits")
    part = tmp_path / f"model.onnx.{export.files[0].sha256[:16]}.part"
    part.write_bytes(server.files["model.onnx"][:4000])
    client.download(export, tmp_path)
    assert server.downloads == [4000, 0]
    client.download(export, tmp_path)
    assert server.downloads == [4000, 0]


def test_a_part_that_was_tampered_with_never_becomes_the_file(client: Client, tmp_path: Path) -> None:
    export = client.export("digits")
    part = tmp_path / f"model.onnx.{export.files[0].sha256[:16]}.part"
    part.write_bytes(b"x" * 4000)
    with pytest.raises(DataLoss, match="sha256"):
        client.download(export, tmp_path)
    assert list(tmp_path.iterdir()) == []
    client.download(export, tmp_path)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", ".hidden", "a/b", ""])
def test_a_server_cannot_choose_a_path_outside_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataLoss, match="plain name"):
        PartFile(ExportFile(name, 1, "0" * 64), tmp_path)


def test_the_async_client_says_the_same(server: FakeServer, tmp_path: Path) -> None:
    async def run() -> None:
        async with AsyncClient(server.target) as client:
            assert (await client.info()).version == "0.1.0"
            applied = await client.models.apply(DECLARATION)
            assert applied.model is not None
            for name in "abc":
                server.ready_model(name)
            assert len([model async for model in client.models.list()]) == 4
            assert [version.number async for version in client.models.versions("a")] == [1, 2, 3]
            assert (await client.models.get("a")).name == "models/a"
            assert (await client.models.plan(DECLARATION)).action == "none"
            assert (await client.models.lock(DECLARATION)).lock["revision"] == "a" * 40
            assert (await client.models.version("a", 1)).number == 1
            assert (await client.models.promote("a")).status.aliases["stable"] == 3
            assert (await client.models.rollback("a", 1)).status.promotion_paused
            await client.models.delete("a")
            assert (await client.predict("digits", [PNG])).top[0][0].label == "cat"
            answers = [answer async for answer in client.predict_stream("digits", [[PNG], [b"GIF"]])]
            assert [isinstance(answer, Predictions) for answer in answers] == [True, False]
            export = await client.export("digits")
            assert [item.name async for item in client.exports("digits")] == [export.name]
            server.faults.cut_download_after, server.faults.corrupt_download_chunks = [2], {4}
            paths = await client.download(export, tmp_path)
            assert [path.read_bytes() for path in paths] == list(server.files.values())
            with pytest.raises(NotFound):
                await client.models.get("nobody")

    asyncio.run(run())


def test_every_status_the_server_answers_with_has_an_error_of_its_own() -> None:
    for _, code in STATUS_OF:
        assert code in e.ERROR_OF_STATUS
    served = {code: e.ERROR_OF_STATUS[code] for _, code in STATUS_OF}
    assert len(set(served.values())) == len(served)


def test_errors_survive_pickling() -> None:
    error = e.Overloaded("busy", retry_after_s=0.5, field="x", reason="QUEUE_FULL", code="RESOURCE_EXHAUSTED")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.message, again.retry_after_s, again.field) == (e.Overloaded, "busy", 0.5, "x")


def test_a_reset_stream_counts_as_unavailable_unless_the_server_explains_it() -> None:
    class Reset:
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.INTERNAL

        def details(self) -> str:
            return "Received RST_STREAM with error code 2"

        def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
            return (("grpc-status-details-bin", b"\xff not a status"),)

    assert isinstance(e.from_rpc_error(Reset()), Unavailable)


def test_retries_grow_are_jittered_and_end() -> None:
    now_s = 0.0
    retry = Retry(give_up_after_s=10.0, clock_s=lambda: now_s, uniform=lambda low, high: high)
    delays: list[float] = []
    error = Unavailable("gone")
    while now_s < 20.0:
        try:
            delays.append(retry.delay_s(error))
        except EverlearnClientError:
            break
        now_s += delays[-1]
    assert delays[0] == pytest.approx(0.1)
    assert delays == sorted(delays)
    assert sum(delays) <= 10.0
    retry.progress()
    assert retry.delay_s(error) == pytest.approx(0.1)


def test_importing_the_client_is_light() -> None:
    heavy = ["torch", "onnx", "onnxruntime", "PIL", "rich", "typer", "yaml", "scipy", "pydantic", "everlearn"]
    code = f"import sys, everlearn_client; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    assert all(hasattr(everlearn_client, name) for name in everlearn_client.__all__)
