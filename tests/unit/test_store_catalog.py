from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path

import pytest
from tests.store_rows import OPERATION, add_versions, blob_files, group, version, wait, with_model

from everlearn_server.store import artefacts, database, schema
from everlearn_server.store.rows import ExportFile, ExportRow
from everlearn_server.store.store import Store
from everlearn_server.store.versions import UnreservedVersionError

BIG = 5 << 20


def test_deleting_a_model_leaves_no_row_and_no_blob_of_it_and_all_of_its_neighbour(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        for name in ("digits", "other"):
            with_model(store, name)
            add_versions(store, 1, model=name, head=name.encode() + bytes(BIG))
            wait(store.catalog.set_alias(name, "stable", 1, "why"))
            wait(store.ledger.open_stream(name, "a"))
            wait(store.catalog.put_operation(replace(OPERATION, name=f"operations/{name}", model=name)))
            shared, own = wait(store.blobs.put(b"card")), wait(store.blobs.put(name.encode()))
            files = tuple(ExportFile(file_name="f", size=1, sha256=digest) for digest in (shared, own))
            wait(
                store.catalog.put_export(
                    ExportRow(model=name, version_number=1, files=files, parity=0.0, probes=1, create_time_s=1.0)
                )
            )
            wait(store.ledger.commit(replace(group(store, {"a": (1, 1)}, memory=name.encode() * BIG), model=name)))
        assert len(blob_files(tmp_path)) == 7
        wait(store.catalog.delete_model("digits"))
        assert len(blob_files(tmp_path)) == 4
        assert _rows_of(store, "digits") == {}
        assert _rows_of(store, "other") == dict.fromkeys(
            ("version", "alias", "promotion", "operation", "export", "memory", "commit_log", "stream"), 1
        ) | {"export_file": 2}
        assert wait(store.ledger.memory("other")) == b"other" * BIG
        assert wait(store.blobs.get(shared)) == b"card"


def test_pruned_versions_take_their_heads_along(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        with_model(store)
        for number in (1, 2):
            wait(store.catalog.reserve_versions("digits", 1))
            wait(store.catalog.put_version(version(number, head=bytes([number]) * BIG), aliases={}, reason=""))
        assert len(blob_files(tmp_path)) == 2
        assert wait(store.catalog.prune_versions("digits", 1)) == (1,)
        assert len(blob_files(tmp_path)) == 1
        assert wait(store.catalog.version("digits", 2)).head == b"\x02" * BIG


def test_a_version_with_a_number_that_was_not_reserved_is_a_bug_and_leaves_no_blob(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        with_model(store)
        for number in (0, 1):
            with pytest.raises(UnreservedVersionError):
                wait(store.catalog.put_version(version(number, head=bytes(BIG)), aliases={}, reason=""))
        assert blob_files(tmp_path) == set()


def test_finished_operations_are_bounded_and_unfinished_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artefacts, "OPERATIONS_KEPT", 2)
    with Store.open(tmp_path) as store:
        with_model(store)
        wait(store.catalog.put_operation(replace(OPERATION, name="open")))
        for number in range(4):
            wait(store.catalog.put_operation(replace(OPERATION, name=f"done{number}", done=True)))
        assert [row.name for row in wait(store.catalog.operations())] == ["open", "done2", "done3"]


@pytest.mark.parametrize("scrubbed", [True, False], ids=["as shipped", "control: secure_delete off"])
def test_a_deleted_head_is_not_in_any_file_after_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scrubbed: bool
) -> None:
    if not scrubbed:
        kept = tuple(pragma for pragma in database.PRAGMAS if pragma[0] != "secure_delete")
        monkeypatch.setattr(database, "PRAGMAS", (*kept, ("secure_delete", "OFF", 0)))
    marker = secrets.token_bytes(24)
    with Store.open(tmp_path) as store:
        with_model(store)
        add_versions(store, 1, 2, head=marker * 100)
        assert _files_with(tmp_path, marker)
        wait(store.catalog.prune_versions("digits", 0))
    assert bool(_files_with(tmp_path, marker)) is not scrubbed


def test_a_deleted_model_is_out_of_the_write_ahead_log_at_once(tmp_path: Path) -> None:
    marker = secrets.token_bytes(24)
    with Store.open(tmp_path) as store:
        with_model(store)
        add_versions(store, 1, head=marker)
        assert _files_with(tmp_path, marker) == ["everlearn.sqlite-wal"]
        wait(store.catalog.delete_model("digits"))
        assert _files_with(tmp_path, marker) == []


def _rows_of(store: Store, model: str) -> dict[str, int]:
    def count(connection: database.Connection) -> dict[str, int]:
        found = {}
        for table in schema.metadata.tables.values():
            if "model" in table.c:
                number = len(connection.execute(table.select().where(table.c.model == model)).all())
                found |= {table.name: number} if number else {}
        return found

    return wait(store._database.read(count))


def _files_with(folder: Path, marker: bytes) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and marker in path.read_bytes()]
