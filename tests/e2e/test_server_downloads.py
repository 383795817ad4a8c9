"""Who has a copy of what: real servers note who downloads, tell it, and write it into receipts of erasures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from tests.e2e.server_calls import refused
from tests.erasure_scene import Scene, batches
from tests.faults.test_hostile_names import hostile_names
from tests.real_server import RealServer
from typer.testing import CliRunner

from everlearn_client import AsyncClient
from everlearn_client.cli.app import app
from everlearn_client.errors import InvalidArgument
from everlearn_client.results import ExportInfo
from everlearn_protos.v1 import clients_pb2, export_pb2, learn_pb2

_METHODS = {
    "ExportService/CreateExport": export_pb2.CreateExportRequest(version="models/m/versions/stable"),
    "ExportService/DownloadExport": export_pb2.DownloadExportRequest(name="models/m/exports/1", file_name="model.onnx"),
    "LearnService/Learn": learn_pb2.LearnRequest(open=learn_pb2.Open(model="models/m", client="ann")),
}


@pytest.fixture(scope="module")
def scene(server: RealServer, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(server, tmp_path_factory.mktemp("receipts"))


def take(scene: Scene, model: str, client_id: str | None) -> int:
    """Exports `stable` and downloads it; its number."""
    with scene.server.client(client_id=client_id) as client:
        made = client.export(model)
        client.download(made, scene.folder / f"{model}-{client_id}-{number_of(made)}")
        return number_of(made)


def number_of(made: ExportInfo) -> int:
    return int(made.version.rpartition("/")[2])


def listed(scene: Scene, model: str) -> dict[str, clients_pb2.ModelClient]:
    with scene.server.client() as client:
        return {each.client: each for each in client.models.clients(model)}


def test_a_receipt_names_those_who_have_a_copy_of_what_contained_the_erased(scene: Scene) -> None:
    scene.declare("held")
    scene.learn("held", "bob", batches(1, 6), receipts=False)
    before = take(scene, "held", "early")
    path = scene.learn("held", "ann", batches(2, 6))
    after = take(scene, "held", "late")
    for client_id in ("ann", None):
        assert take(scene, "held", client_id) == after
    assert before < after
    found = listed(scene, "held")
    assert {each: found[each].downloaded_version for each in found} == {
        "ann": after, "bob": 0, "early": before, "late": after, "": after,
    }  # fmt: skip
    assert (found["late"].samples, found["late"].download_time.ToSeconds() > 0) == (0, True)
    plan = scene.erase("held", "ann", path, dry_run=True)
    holders = [("", after), ("ann", after), ("late", after)]
    assert [(each.client, each.version) for each in plan.copies] == holders
    report = scene.erase("held", "ann", path)
    assert [(each.client, each.version) for each in report.copies] == holders
    told = json.loads(report.erasure.receipt)["clients_last_seen_with_them"]
    assert [(each.get("client", ""), each["version"]) for each in told] == holders
    # What is known of the erased client itself goes with it; of the others it stays.
    assert {each: found.downloaded_version for each, found in listed(scene, "held").items()} == {
        "ann": 0, "bob": 0, "early": before, "late": after, "": after,
    }  # fmt: skip


def test_a_copy_of_a_version_that_was_deleted_since_is_still_named(scene: Scene) -> None:
    scene.server.declare(
        json.dumps(
            {
                "metadata": {"name": "pruned"},
                "spec": {
                    "backbone": {"source": "identity"},
                    "input": {"modality": "tensor", "shape": [24], "range": [-4.0, 4.0]},
                    "retention": {"exports": 1},
                    "serving": {"keep_versions": 2},
                },
            }
        )
    )
    path = scene.learn("pruned", "ann", batches(2, 2))
    old = take(scene, "pruned", "phone")
    for turn in range(4):
        scene.learn("pruned", "bob", batches(3 + turn, 2), receipts=False)
        new = take(scene, "pruned", "camera")
    with scene.server.client() as client:
        assert old not in {version.number for version in client.models.versions("pruned")}
    report = scene.erase("pruned", "ann", path)
    assert [(each.client, each.version) for each in report.copies] == [("camera", new), ("phone", old)]
    assert old not in report.versions


def test_who_has_what_outlives_a_kill_as_soon_as_a_byte_has_left(tmp_path: Path) -> None:
    with RealServer(tmp_path / "data") as server:
        scene = Scene(server, tmp_path)
        scene.declare("m")
        scene.learn("m", "bob", batches(1, 6), receipts=False)
        with server.client(client_id="phone") as client:
            made = client.export("m")
            file = next(each for each in made.files if each.file_name == "model.onnx")
            request = export_pb2.DownloadExportRequest(name=made.name, file_name=file.file_name)
            next(client._export.DownloadExport(request, metadata=client.metadata))
        server.kill()
        server.start()
        assert listed(scene, "m")["phone"].downloaded_version == number_of(made)


def test_a_card_is_no_copy_and_a_name_that_does_not_last_is_not_told(scene: Scene) -> None:
    scene.declare("carded")
    scene.learn("carded", "bob", batches(1, 6), receipts=False)
    with scene.server.client(client_id="reader") as client:
        made = client.export("carded")
        card = next(each for each in made.files if each.file_name != "model.onnx")
        client.download(replace(made, files=(card,)), scene.folder / "reader")
    assert "reader" not in listed(scene, "carded")
    with scene.server.client() as client:
        assert client.metadata == ()  # its random one would be another client each time


def test_the_asyncio_client_says_who_it_is_too(scene: Scene) -> None:
    scene.declare("awaited")
    scene.learn("awaited", "bob", batches(1, 6), receipts=False)

    async def go() -> None:
        async with AsyncClient(scene.server.address, client_id="watch") as client:
            await client.download(await client.export("awaited"), scene.folder / "watch")

    asyncio.run(go())
    assert listed(scene, "awaited")["watch"].downloaded_version > 0


@pytest.fixture(scope="module")
def channel(scene: Scene) -> Iterator[grpc.Channel]:
    scene.declare("m")
    with grpc.insecure_channel(scene.server.address) as connected:
        yield connected


@pytest.mark.parametrize("method", _METHODS)
def test_a_hostile_name_in_the_header_is_refused_by_its_field(channel: grpc.Channel, method: str) -> None:
    calls = {
        "CreateExport": channel.unary_unary,
        "DownloadExport": channel.unary_stream,
        "Learn": channel.stream_stream,
    }
    service, _, verb = method.partition("/")
    call, request = calls[verb](f"/everlearn.v1.{service}/{verb}"), _METHODS[method].SerializeToString()
    # gRPC itself sends nothing but printable ASCII, without blanks at the ends, of 8 KiB at most.
    tried = [name for name in hostile_names() if name.isascii() and name.isprintable() and name.strip() == name]
    tried = [name for name in tried if len(name) < 1000][:150]
    assert len(tried) > 100
    for headers in [*([("everlearn-client", name)] for name in tried), [("everlearn-client", "ann")] * 2]:
        refused(
            lambda headers=headers: list(call(iter([request]) if verb == "Learn" else request, metadata=headers)),
            "INVALID_ARGUMENT",
            field="metadata.everlearn-client",
        )


def test_control_a_good_name_is_not_refused(channel: grpc.Channel) -> None:
    call = channel.stream_stream("/everlearn.v1.LearnService/Learn")
    request = _METHODS["LearnService/Learn"].SerializeToString()
    opened = learn_pb2.LearnResponse.FromString(
        next(iter(call(iter([request]), metadata=[("everlearn-client", "a-1")])))
    )
    assert opened.opened.epoch > 0


def test_the_command_line_says_who_takes_a_file_and_who_has_one(scene: Scene) -> None:
    scene.declare("shown")
    scene.learn("shown", "bob", batches(1, 6), receipts=False)
    path = scene.learn("shown", "ann", batches(2, 6))
    options = {"env": {"EVERLEARN_SERVER": scene.server.address, "COLUMNS": "200"}}

    def cli(*arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments), **options)  # type: ignore[arg-type]
        assert result.exit_code == 0, result.output
        return result.output

    cli("export", "shown", "-d", str(scene.folder / "kiosk"), "--client", "kiosk")
    cli("export", "shown", "-d", str(scene.folder / "anybody"))
    rows = cli("clients", "shown").splitlines()
    assert any(row.lstrip().startswith("kiosk") and "version" in row for row in rows), rows
    assert any("(gave no name)" in row for row in rows)
    erased = str(scene.folder / "shown.json")
    done = cli("erase", "shown", "--client", "ann", "--receipts", str(path), "--yes", "--out", erased)
    for text in (done, cli("verify-receipt", erased)):
        assert "kiosk (version " in text
        assert "some that gave no name (version " in text
    with pytest.raises(InvalidArgument, match="not a learner's id"):
        scene.server.client(client_id="../x")
