"""A device runs what one server has signed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from everlearn_client.client import Client
from everlearn_client.edge.trust import Trust
from everlearn_client.errors import DataLoss, InvalidArgument
from everlearn_client.results import ExportFile, ExportInfo, KeyRotation
from everlearn_server.engine.manifest import manifest, pointer
from everlearn_server.store import rows
from everlearn_server.store.keys import Keys

OURS, THEIRS = Keys(bytes(32)), Keys(bytes(31) + b"x")


def export_of(keys: Keys, number: int = 3) -> ExportInfo:
    files = (rows.ExportFile(file_name="model.onnx", size=5, sha256="a" * 64),)
    row = rows.ExportRow(model="m", version_number=number, files=files, parity=0.0, probes=1, create_time_s=1.5)
    told = manifest(row)
    return ExportInfo(
        f"models/m/exports/{number}",
        f"models/m/versions/{number}",
        tuple(ExportFile(each.file_name, each.size, each.sha256) for each in files),
        0.0,
        1,
        told,
        keys.sign(told),
        key_rotations=tuple(KeyRotation(each.statement, each.by_old, each.by_new) for each in keys.rotations),
    )


def moved(keys: Keys, number: int, move: int, *, alias: str = "stable", signer: Keys | None = None) -> ExportInfo:
    """An export that was asked for by an alias, which the `move`-th move had brought to that version."""
    row = rows.ExportRow(model="m", version_number=number, files=(), parity=0.0, probes=1, create_time_s=1.5)
    told = pointer(row, alias, move)
    return replace(export_of(keys, number), pointer=told, pointer_signature=(signer or keys).sign(told))


def server(keys: Keys) -> Client:
    return cast(Client, SimpleNamespace(info=lambda: SimpleNamespace(public_key=keys.public_key.hex())))


def test_the_first_server_is_the_one_for_good_over_restarts(tmp_path: Path) -> None:
    Trust(tmp_path).check(export_of(OURS), server(OURS))
    again = Trust(tmp_path)
    again.check(export_of(OURS), server(THEIRS))  # who answers is not asked any more
    with pytest.raises(DataLoss, match="not signed by the server that this device trusts"):
        again.check(export_of(THEIRS), server(THEIRS))
    configured = Trust(tmp_path, key=THEIRS.public_key.hex())
    for export in (export_of(OURS), export_of(THEIRS)):
        with pytest.raises(DataLoss, match="which did not come from it"):
            configured.check(export, server(THEIRS))


def test_a_key_that_was_given_is_the_one_from_the_first_pull_on(tmp_path: Path) -> None:
    trust = Trust(tmp_path, key=OURS.public_key.hex())
    with pytest.raises(DataLoss, match="not signed"):
        trust.check(export_of(THEIRS), server(THEIRS))
    trust.check(export_of(OURS), server(THEIRS))


@pytest.mark.parametrize("key", ["no hexadecimal digits", "ab", "00" * 33])
def test_a_key_that_is_none_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(InvalidArgument, match="64 hexadecimal digits"):
        Trust(tmp_path, key=key)


@pytest.mark.parametrize(
    "changes",
    [
        {"files": (ExportFile("model.onnx", 5, "b" * 64),)},
        {"files": (ExportFile("model.onnx", 6, "a" * 64),)},
        {"files": (ExportFile("model.onnx", 5, "a" * 64), ExportFile("more", 1, "a" * 64))},
        {"name": "models/m/exports/4"},
        {"version": "models/other/versions/3"},
    ],
    ids=["digest", "size", "one more", "export", "version"],
)
def test_what_is_offered_must_be_what_was_signed(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(DataLoss, match="not what was signed"):
        Trust(tmp_path).check(replace(export_of(OURS), **changes), server(OURS))


def test_another_document_of_the_same_server_is_no_manifest(tmp_path: Path) -> None:
    export = export_of(OURS)
    told = json.dumps({**json.loads(export.manifest), "kind": "everlearn erasure receipt 1"}).encode()
    with pytest.raises(DataLoss, match="not what was signed"):
        Trust(tmp_path).check(replace(export, manifest=told, signature=OURS.sign(told)), server(OURS))


def test_a_manifest_that_was_changed_is_not_signed(tmp_path: Path) -> None:
    export = export_of(OURS)
    with pytest.raises(DataLoss, match="not signed"):
        Trust(tmp_path).check(replace(export, manifest=export.manifest + b" "), server(OURS))


def test_a_device_takes_no_move_that_is_older_than_what_it_has_seen_over_restarts(tmp_path: Path) -> None:
    Trust(tmp_path).check(moved(OURS, 3, 30), server(OURS), alias="stable")
    Trust(tmp_path).check(moved(OURS, 4, 40), server(OURS), alias="stable")
    Trust(tmp_path).check(moved(OURS, 4, 40), server(OURS), alias="stable")
    with pytest.raises(
        DataLoss, match=r"versions/3 was stable once \(move 30\), and this device has seen .*versions/4"
    ):
        Trust(tmp_path).check(moved(OURS, 3, 30), server(OURS), alias="stable")
    with pytest.raises(DataLoss, match="was stable once"):  # one number for two versions says nothing
        Trust(tmp_path).check(moved(OURS, 3, 40), server(OURS), alias="stable")
    Trust(tmp_path).check(moved(OURS, 3, 50), server(OURS), alias="stable")  # a rollback is a move
    Trust(tmp_path).check(moved(OURS, 1, 1, alias="latest"), server(OURS), alias="latest")
    Trust(tmp_path).check(export_of(OURS, 1), server(OURS))  # a number is followed: there is nothing to move


@pytest.mark.parametrize(
    "export",
    [
        export_of(OURS),
        moved(OURS, 3, 30, signer=THEIRS),
        moved(OURS, 3, 30, alias="latest"),
        replace(
            moved(OURS, 4, 40),
            **{k: getattr(export_of(OURS, 3), k) for k in ("name", "version", "manifest", "signature")},
        ),
        replace(moved(OURS, 3, 30), pointer=export_of(OURS).manifest, pointer_signature=export_of(OURS).signature),
    ],
    ids=["nothing", "another key", "another alias", "another version", "another document"],
)
def test_where_an_alias_points_must_be_signed(tmp_path: Path, export: ExportInfo) -> None:
    with pytest.raises(DataLoss, match="that it is stable"):
        Trust(tmp_path).check(export, server(OURS), alias="stable")
    Trust(tmp_path).check(moved(OURS, 3, 0), server(OURS), alias="stable")


def test_a_move_is_remembered_before_anything_is_downloaded_of_it_and_through_a_rotation(tmp_path: Path) -> None:
    owner = Keys.open(tmp_path / "owner")
    device = tmp_path / "device"
    device.mkdir()
    Trust(device, key=owner.public_key.hex()).check(moved(owner, 4, 40), server(owner), alias="stable")
    owner.rotate()
    with pytest.raises(DataLoss, match="was stable once"):
        Trust(device).check(moved(owner, 3, 30), server(owner), alias="stable")
