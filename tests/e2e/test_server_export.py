"""Export through the real server: one file that leaves, runs in plain ONNX Runtime and says what the server says."""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
import pytest
from PIL import Image
from tests import tiny
from tests.e2e.server_calls import Stubs, encoded, refused
from tests.real_server import RealServer

from everlearn_client import Client, FailedPrecondition, NotFound
from everlearn_client.results import ExportFile, ExportInfo
from everlearn_protos.v1 import export_pb2

LABELS = ("ash", "birch", "cédre")


@pytest.fixture(scope="module")
def export(server: RealServer, client: Client, backbone: Path) -> ExportInfo:
    """Of a model that knows three classes; asked for in the very moment in which learning ends."""
    server.declare(tiny.declaration(backbone))
    client.learn("tiny", [(tiny.images(20, index), [label] * 20) for index, label in enumerate(LABELS)])
    return client.export("tiny")


def model_file(export: ExportInfo) -> ExportFile:
    return next(file for file in export.files if file.file_name == "model.onnx")


def session_of(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def chunks(
    stubs: Stubs, name: str, offset: int = 0, file_name: str = "model.onnx"
) -> list[export_pb2.DownloadExportResponse]:
    request = export_pb2.DownloadExportRequest(name=name, file_name=file_name, offset=offset)
    return list(stubs.exports.DownloadExport(request, timeout=120))


def test_the_file_alone_predicts_from_png_bytes_what_the_server_predicts(
    client: Client, export: ExportInfo, tmp_path: Path
) -> None:
    paths = {path.name: path for path in client.download(export, tmp_path)}
    session = session_of(paths["model.onnx"])
    for index in range(3):
        for side in (16, 40):
            (image,) = tiny.images(1, index, seed=9, side=side)
            png = encoded(image)
            decoded = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))[None]
            scores, label = session.run(["scores", "label"], {"image": decoded})
            served = client.predict("tiny", [png], scores=True, version=int(export.version.rpartition("/")[2]))
            assert label[0] == served.top[0][0].label
            np.testing.assert_allclose(scores, served.scores_NC, atol=1e-3 if side == 16 else 5e-2)
    table, indices = session.run(["labels", "label_index"], {"image": tiny.images(2, 0)})
    assert tuple(table) == LABELS
    assert indices.dtype == np.int64


def test_the_file_carries_labels_and_provenance_and_has_a_card_beside_it(
    client: Client, export: ExportInfo, tmp_path: Path
) -> None:
    paths = {path.name: path for path in client.download(export, tmp_path)}
    metadata = session_of(paths["model.onnx"]).get_modelmeta().custom_metadata_map
    model = client.models.get("tiny")
    assert json.loads(metadata["everlearn.labels"]) == list(LABELS)
    assert metadata["everlearn.model"] == "tiny"
    assert metadata["everlearn.version"] == export.version.rpartition("/")[2]
    assert metadata["everlearn.memory_digest"] == model.status.memory_digest
    card = paths["MODEL_CARD.md"].read_text()
    assert model_file(export).sha256 in card
    assert all(label in card for label in LABELS)
    assert export.probes > 0
    assert export.parity_max_abs_diff <= 1e-3


def test_a_download_is_chunks_with_a_checksum_each_and_goes_on_from_any_offset(
    stubs: Stubs, export: ExportInfo
) -> None:
    file = model_file(export)
    whole = chunks(stubs, export.name)
    assert all(zlib.crc32(chunk.data) == chunk.crc32 for chunk in whole)
    data = b"".join(chunk.data for chunk in whole)
    assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size_bytes, file.sha256)
    assert {(chunk.size_bytes, chunk.sha256) for chunk in whole} == {(file.size_bytes, file.sha256)}
    for offset in (1, 1000, file.size_bytes - 1):
        rest = chunks(stubs, export.name, offset)
        assert rest[0].offset == offset
        assert b"".join(chunk.data for chunk in rest) == data[offset:]
    (end,) = chunks(stubs, export.name, file.size_bytes)
    assert (end.data, end.crc32, end.size_bytes) == (b"", 0, file.size_bytes)


def test_a_large_file_comes_in_several_chunks(server: RealServer, client: Client, tmp_path: Path) -> None:
    server.declare(tiny.declaration(tiny.write_backbone(tmp_path, dim=1400), name="large"))
    client.learn("large", [(tiny.images(4, 0), ["a"] * 4)])
    export = client.export("large")
    with Stubs(server.address) as stubs:
        parts = chunks(stubs, export.name)
    assert len(parts) > 1
    assert [part.offset for part in parts] == [
        sum(len(before.data) for before in parts[:index]) for index in range(len(parts))
    ]
    client.models.delete("large")


def test_the_sdk_resumes_a_cut_download_and_ends_with_the_same_bytes(
    client: Client, stubs: Stubs, export: ExportInfo, tmp_path: Path
) -> None:
    file = model_file(export)
    data = b"".join(chunk.data for chunk in chunks(stubs, export.name))
    part = tmp_path / f"{file.file_name}.{file.sha256[:16]}.part"
    part.write_bytes(data[:1234])
    progress: list[int] = []
    paths = client.download(export, tmp_path, on_progress=lambda at: progress.append(at.bytes_done))
    assert (tmp_path / "model.onnx").read_bytes() == data
    assert progress[0] > 1234
    assert not part.exists()
    assert sorted(path.name for path in paths) == ["MODEL_CARD.md", "model.onnx", "probes.npz"]


def test_the_same_version_again_is_the_same_export(client: Client, export: ExportInfo) -> None:
    # Only what it was asked for by is not the same: a number, which no alias has to point at.
    plain = replace(export, pointer=b"", pointer_signature=b"")
    assert client.export("tiny", export.version.rpartition("/")[2]) == plain
    assert [each.name for each in client.exports("tiny")].count(export.name) == 1


def test_an_export_outlives_a_restart_and_so_does_the_alias_that_named_it(
    server: RealServer, backbone: Path, tmp_path: Path
) -> None:
    server.declare(tiny.declaration(backbone, name="lasting"))
    with server.client() as client:
        client.learn("lasting", [(tiny.images(4, 0), ["a"] * 4)])
        export = client.export("lasting")
        before = client.models.get("lasting").status.aliases
        server.restart()
        assert client.models.get("lasting").status.aliases == before
        assert client.export("lasting") == export
        client.download(export, tmp_path)
        client.models.delete("lasting")
    assert (tmp_path / "model.onnx").stat().st_size == model_file(export).size_bytes


def test_beyond_what_is_retained_the_oldest_export_goes(server: RealServer, client: Client, backbone: Path) -> None:
    server.declare(tiny.declaration(backbone, name="kept", retention={"exports": 2}))
    names = []
    for index in range(3):
        client.learn("kept", [(tiny.images(4, index), [f"{index}"] * 4)])
        names.append(client.export("kept", "latest").name)
    assert [export.name for export in client.exports("kept")] == names[:0:-1]
    with Stubs(server.address) as stubs:
        refused(lambda: chunks(stubs, names[0]), "NOT_FOUND", field="name")


def test_an_older_version_exported_last_is_the_newest_export(
    server: RealServer, client: Client, stubs: Stubs, backbone: Path, tmp_path: Path
) -> None:
    server.declare(tiny.declaration(backbone, name="single", retention={"exports": 1}))
    versions = []
    for index in range(2):
        client.learn("single", [(tiny.images(4, index), [f"{index}"] * 4)])
        versions.append(client.export("single", "latest"))
    older = versions[0].version.rpartition("/")[2]
    operation = stubs.exports.CreateExport(export_pb2.CreateExportRequest(version=versions[0].version))
    again = client.export("single", older)
    assert [export.name for export in client.exports("single")] == [versions[0].name] == [again.name]
    assert len(client.download(again, tmp_path)) == 3
    client.export("single", "latest")
    gone = stubs.wait(operation)
    assert (gone.error.code, "deleted since" in gone.error.message) == (grpc.StatusCode.NOT_FOUND.value[0], True)
    client.models.delete("single")


def test_many_exports_at_once_are_made_one_after_another(server: RealServer, stubs: Stubs, backbone: Path) -> None:
    server.declare(tiny.declaration(backbone, name="busy", retention={"exports": 1}))
    with server.client() as client:
        client.learn("busy", [(tiny.images(4, 0), ["a"] * 4)])
        client.export("busy")
        client.learn("busy", [(tiny.images(4, 1), ["b"] * 4)])
        request = export_pb2.CreateExportRequest(version="models/busy/versions/latest")
        running = [stubs.exports.CreateExport(request) for _ in range(4)]
        assert [stubs.wait(operation).error.code for operation in running] == [0] * 4
        assert len(list(client.exports("busy"))) == 1
        client.models.delete("busy")


def test_a_download_leaves_the_readme_of_the_folder_alone(client: Client, export: ExportInfo, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("the project's own")
    client.download(export, tmp_path)
    assert (tmp_path / "README.md").read_text() == "the project's own"


def test_what_cannot_be_exported_is_refused(client: Client, stubs: Stubs, server: RealServer, backbone: Path) -> None:
    server.declare(tiny.declaration(backbone, name="empty"))
    with pytest.raises(FailedPrecondition) as nothing:
        client.export("empty")
    assert nothing.value.reason == "MODEL_NOT_READY"
    with pytest.raises(NotFound):
        client.export("empty", 77)
    with pytest.raises(NotFound):
        client.export("unknown")
    create = stubs.exports.CreateExport
    for name in ("", "tiny", "models/tiny/exports/1", "models/tiny/versions/", "models/tiny/versions/a b"):
        request = export_pb2.CreateExportRequest(version=name)
        refused(lambda request=request: create(request), "INVALID_ARGUMENT", field="version")


def test_what_cannot_be_downloaded_is_refused(stubs: Stubs, export: ExportInfo) -> None:
    size = model_file(export).size_bytes
    for offset in (-1, size + 1):
        refused(lambda offset=offset: chunks(stubs, export.name, offset), "INVALID_ARGUMENT", field="offset")
    refused(lambda: chunks(stubs, export.name, file_name="../model.onnx"), "NOT_FOUND", field="file_name")
    refused(lambda: chunks(stubs, "models/tiny/exports/999"), "NOT_FOUND", field="name")
    many_digits = "models/tiny/exports/" + "9" * 5000
    refused(lambda: chunks(stubs, many_digits), "INVALID_ARGUMENT", field="name")
    refused(lambda: chunks(stubs, "models/tiny/exports/x"), "INVALID_ARGUMENT", field="name")
