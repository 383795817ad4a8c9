from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from tests.store_rows import Fatal, add_versions, wait, with_model

from everlearn.errors import DataLossError, PreconditionError, UnavailableError
from everlearn_server.store import schema
from everlearn_server.store.store import Store


def test_migrations_make_exactly_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        differences = wait(
            store._database.read(lambda c: compare_metadata(MigrationContext.configure(c), schema.metadata))
        )
    assert differences == []


def test_every_column_that_names_a_blob_keeps_it_alive() -> None:
    named = {
        f"{table.name}.{column.name}"
        for table in schema.metadata.tables.values()
        for column in table.columns
        if "digest" in column.name or "sha256" in column.name
    }
    provenance = {"version.memory_digest", "commit_log.memory_digest"}
    assert named - provenance == {
        "model.trunk_digest",
        "version.trunk_digest",
        "version.head_digest",
        "memory.digest",
        "moment.digest",
        "client_sums.digest",
        "export_file.sha256",
        "trunk.digest",
    }, "a new column that names blobs belongs into references.py and named_by_model, then here"


def test_a_second_server_on_one_folder_is_told_who_has_it(tmp_path: Path) -> None:
    with Store.open(tmp_path):
        with pytest.raises(UnavailableError, match=f"{tmp_path} is in use by another server .process {os.getpid()}"):
            Store.open(tmp_path)
        code = (
            "import sys, pathlib; from everlearn_server.store.store import Store; Store.open(pathlib.Path(sys.argv[1]))"
        )
        other = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
        assert "UnavailableError" in other.stderr
    with Store.open(tmp_path):
        pass


def test_no_other_program_can_open_the_database_meanwhile(tmp_path: Path) -> None:
    with Store.open(tmp_path):
        other = sqlite3.connect(tmp_path / "everlearn.sqlite", timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("SELECT * FROM model")
        other.close()


def test_a_database_that_another_program_has_open_is_refused_by_name(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    other = sqlite3.connect(tmp_path / "everlearn.sqlite", isolation_level=None)
    other.execute("PRAGMA locking_mode=EXCLUSIVE")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UnavailableError, match=r"everlearn\.sqlite: database is locked"):
        Store.open(tmp_path)
    other.close()
    Store.open(tmp_path).close()


def test_a_database_of_a_newer_release_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    file = tmp_path / "everlearn.sqlite"
    _execute(file, "UPDATE alembic_version SET version_num = '9999'")
    before = file.read_bytes()
    with pytest.raises(
        PreconditionError, match=r"newer everlearn .revision 9999, this one knows up to 0004"
    ) as refusal:
        Store.open(tmp_path)
    assert refusal.value.reason == "NEWER_DATABASE"
    assert file.read_bytes() == before


def test_what_is_no_database_is_data_loss(tmp_path: Path) -> None:
    (tmp_path / "everlearn.sqlite").write_bytes(b"not a database, though long enough to be taken for one" * 100)
    with pytest.raises(DataLossError, match="not an intact SQLite database"):
        Store.open(tmp_path)


def test_a_damaged_database_is_found_by_the_check(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        for name in range(200):
            with_model(store, f"m{name:03}")
    file = tmp_path / "everlearn.sqlite"
    with Store.open(tmp_path, check=True):
        pass
    data = bytearray(file.read_bytes())
    data[-16 * 1024 :] = b"\xff" * (16 * 1024)
    file.write_bytes(data)
    with pytest.raises(DataLossError, match="damaged"):
        Store.open(tmp_path, check=True)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match=f"{tmp_path}/file"):
        Store.open(tmp_path / "file")


def test_closing_leaves_one_private_file_and_no_log(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        with_model(store)
    files = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir() if path.is_file()}
    assert files == {"everlearn.sqlite": 0o600, "lock": 0o600}


def test_a_storage_error_names_no_value_and_ends_every_later_call(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fatal = Fatal()
    store = Store.open(tmp_path, on_fatal=fatal)
    with_model(store)
    add_versions(store, 1)
    wait(store._database.write(lambda connection: connection.exec_driver_sql("DROP TABLE promotion")))
    with pytest.raises(UnavailableError, match="restart to go on from the last commit"):
        wait(store.catalog.set_alias("digits", "s3cret", 1, "s3cret"))
    assert len(fatal.errors) == 1
    assert "s3cret" not in caplog.text + str(fatal.errors[0])
    with pytest.raises(UnavailableError, match="restart"):
        wait(store.catalog.models())
    store.close()


def _execute(file: Path, statement: str) -> None:
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    connection.execute(statement)
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
