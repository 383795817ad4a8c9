"""Devices that have an earlier version download differences, over any line, and run only what the server has signed."""

from __future__ import annotations

import asyncio
import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests import tiny
from tests.e2e.server_calls import Stubs, refused
from tests.faults.proxy import Proxy
from tests.real_server import RealServer

from everlearn_client import AsyncClient, Client
from everlearn_client._download import DownloadProgress
from everlearn_client.edge.follower import Follower
from everlearn_client.results import ExportInfo
from everlearn_protos.v1 import export_pb2

LABELS = tuple(f"kind {number}" for number in range(10))
SLOW = 2_000
"""Bytes a second: 16 kbit/s."""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file, [N, 3, 16, 16] -> [N, 256]: heads of 10 KB."""
    return tiny.write_backbone(tmp_path_factory.mktemp("backbone"), 256)


def declare(server: RealServer, backbone: Path, name: str, **spec: object) -> None:
    server.declare(tiny.declaration(backbone, name=name, **spec))


def next_version(client: Client, name: str, seed: int) -> ExportInfo:
    """Learns some more and has it exported."""
    client.learn(name, [(tiny.images(6, index, seed=seed), [label] * 6) for index, label in enumerate(LABELS)])
    return client.export(name, "latest")


def digests(folder: Path, export: ExportInfo) -> None:
    for file in export.files:
        assert hashlib.sha256((folder / file.file_name).read_bytes()).hexdigest() == file.sha256


def test_a_new_head_travels_as_its_difference_and_is_the_file_to_the_byte(
    server: RealServer, client: Client, wide: Path, tmp_path: Path
) -> None:
    declare(server, wide, "differs")
    first = next_version(client, "differs", 1)
    client.download(first, tmp_path / "first")
    second = next_version(client, "differs", 2)
    assert second.version != first.version
    seen: dict[str, DownloadProgress] = {}
    client.download(
        second,
        tmp_path / "second",
        base=tmp_path / "first",
        on_progress=lambda told: seen.update({told.file_name: told}),
    )
    digests(tmp_path / "second", second)
    assert sorted(each.name for each in (tmp_path / "second").iterdir()) == sorted(f.file_name for f in second.files)
    sizes = {file.file_name: file.size_bytes for file in second.files}
    (model,) = (told for name, told in seen.items() if name.startswith("model.onnx."))
    assert "model.onnx" not in seen
    assert model.bytes_total < 0.5 * sizes["model.onnx"]


def test_the_asyncio_client_takes_differences_as_the_other_one_does(
    server: RealServer, client: Client, wide: Path, tmp_path: Path
) -> None:
    declare(server, wide, "awaited")
    first = next_version(client, "awaited", 1)
    seen: dict[str, DownloadProgress] = {}

    async def both() -> ExportInfo:
        async with AsyncClient(server.address) as awaited:
            await awaited.download(first, tmp_path / "first")
            second = await asyncio.to_thread(next_version, client, "awaited", 2)

            def note(told: DownloadProgress) -> None:
                seen[told.file_name] = told

            await awaited.download(second, tmp_path / "second", base=tmp_path / "first", on_progress=note)
            (tmp_path / "other").mkdir()
            (tmp_path / "other" / "model.onnx").write_bytes(b"something else")
            await awaited.download(second, tmp_path / "whole", base=tmp_path / "other")
            return second

    second = asyncio.run(both())
    digests(tmp_path / "second", second)
    digests(tmp_path / "whole", second)
    assert sorted(each.name for each in (tmp_path / "second").iterdir()) == sorted(f.file_name for f in second.files)
    (model,) = (told for name, told in seen.items() if name.startswith("model.onnx."))
    assert "model.onnx" not in seen
    assert model.bytes_total < 0.5 * {file.file_name: file.size_bytes for file in second.files}["model.onnx"]


def test_with_a_base_that_the_server_does_not_know_the_file_comes_whole(
    server: RealServer, client: Client, wide: Path, tmp_path: Path
) -> None:
    declare(server, wide, "unknown")
    made = next_version(client, "unknown", 1)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.onnx").write_bytes(b"something else")
    client.download(made, tmp_path / "here", base=tmp_path / "base")
    digests(tmp_path / "here", made)


def test_what_cannot_be_planned_or_sent_is_refused_with_its_field(
    server: RealServer, client: Client, stubs: Stubs, wide: Path, tmp_path: Path
) -> None:
    declare(server, wide, "refuses")
    first, second = (next_version(client, "refuses", seed) for seed in (1, 2))
    base, target = (next(f for f in each.files if f.file_name == "model.onnx") for each in (first, second))
    plan = export_pb2.PlanUpdateRequest(name=second.name, file_name="model.onnx", have_sha256=base.sha256)
    (step,) = stubs.exports.PlanUpdate(plan).steps
    assert (step.base_sha256, step.target_sha256, step.target_size_bytes) == (
        base.sha256,
        target.sha256,
        target.size_bytes,
    )
    good = {"base_sha256": base.sha256, "target_sha256": target.sha256}

    def sent(**changes: Any) -> bytes:
        asked = {"name": second.name, "file_name": "model.onnx", **good, **changes}
        return b"".join(chunk.data for chunk in stubs.exports.DownloadDelta(export_pb2.DownloadDeltaRequest(**asked)))

    whole = sent()
    assert hashlib.sha256(whole).hexdigest() == step.sha256
    assert sent(offset=5) == whole[5:]
    assert sent(offset=step.size_bytes) == b""
    refused(lambda: sent(offset=step.size_bytes + 1), "INVALID_ARGUMENT", field="offset")
    refused(lambda: sent(offset=-1), "INVALID_ARGUMENT", field="offset")
    refused(lambda: sent(target_sha256="0" * 64), "NOT_FOUND", field="base_sha256")
    refused(lambda: sent(file_name="other"), "NOT_FOUND", field="file_name")
    refused(lambda: sent(name="models/refuses/exports/999"), "NOT_FOUND", field="name")
    plan.have_sha256 = "A"
    refused(lambda: stubs.exports.PlanUpdate(plan), "INVALID_ARGUMENT", field="have_sha256")


def test_who_took_a_difference_is_noted_as_who_has_the_version(
    server: RealServer, client: Client, wide: Path, tmp_path: Path
) -> None:
    declare(server, wide, "noted")
    with server.client(client_id="device-7") as device:
        device.download(next_version(client, "noted", 1), tmp_path / "first")
        second = next_version(client, "noted", 2)
        device.download(second, tmp_path / "second", base=tmp_path / "first")
    (told,) = (each for each in client.models.clients("noted") if each.client == "device-7")
    assert told.downloaded_version == int(second.version.rpartition("/")[2])


@pytest.mark.slow
def test_over_a_line_of_16_kbit_s_that_breaks_three_times_a_head_is_installed_and_nothing_comes_twice(
    server: RealServer, client: Client, wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(server, wide, "far")
    next_version(client, "far", 1)
    with Proxy() as proxy:
        proxy.target = server.address
        with Client(proxy.address, client_id="device-8") as device:
            follower = Follower(tmp_path, model="far", version="latest")
            assert follower.pull(device)
            follower.confirm()
            made, progress, broken = next_version(client, "far", 2), [0], []
            proxy.bytes_a_second = SLOW

            def breaks(told: DownloadProgress) -> None:
                if told.file_name.startswith("model.onnx."):
                    progress.append(told.bytes_done)
                    if len(broken) < 3:
                        broken.append(proxy.reset())

            whole = device.download
            monkeypatch.setattr(device, "download", lambda *given, **named: whole(*given, on_progress=breaks, **named))
            assert follower.pull(device)
    assert follower.version == made.version
    assert broken == [1, 1, 1]
    # A chunk is 4 KiB: each came once, and after each break the next one, not the first.
    steps = [after - before for before, after in pairwise(progress)]
    assert len(steps) >= 3
    assert all(0 < step <= 4096 for step in steps)
    assert progress[-1] < 10_000
