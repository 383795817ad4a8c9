"""Backups of stopped and of running stores, restoring them, and folders of an older release."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, event
from tests import data_folders as folders
from tests.data_folders import sql
from tests.store_rows import blob_files, group, version, wait, with_model

from everlearn.errors import DataLossError, EverlearnError, InvalidError, NotFoundError, PreconditionError
from everlearn.errors import UnavailableError as Unavailable
from everlearn_server.store import backup, migrate
from everlearn_server.store.backup import Work, back_up, back_up_stopped
from everlearn_server.store.database import LOG_PAGES, NAME
from everlearn_server.store.manifest import NAME as MANIFEST
from everlearn_server.store.manifest import Manifest
from everlearn_server.store.payload import INLINE_BYTES
from everlearn_server.store.restore import restore
from everlearn_server.store.rows import TrunkRow
from everlearn_server.store.store import Store

LARGE = bytes(INLINE_BYTES) + b"large"


def streaming(store: Store) -> None:
    """A model with a memory that is a blob, a version, and one client."""
    with_model(store)
    trunk = wait(store.blobs.put(b"trunk"))
    wait(store.catalog.put_trunk(TrunkRow(key="k", digest=trunk, manifest=b"{}", source="s", size=5)))
    wait(store.catalog.reserve_versions("digits", 1))
    wait(store.catalog.put_version(version(1, trunk=trunk), aliases={}, reason="test"))
    wait(store.ledger.open_stream("digits", "a"))
    wait(store.ledger.commit(group(store, {"a": (1, 1)}, memory=LARGE)))


def test_what_is_committed_while_a_backup_is_made_is_not_in_it_and_is_not_held_up(tmp_path: Path) -> None:
    async def run(store: Store) -> tuple[Manifest, int]:
        async with store.frozen() as (frozen, digests):
            assert digests >= {row.digest for row in [await store.ledger.state("digits")] if row}
            before = os.pread(frozen.descriptor, frozen.size, 0)
            await store.ledger.commit(group(store, {"a": (1, 2)}, memory=LARGE + b"r"))
            assert os.pread(frozen.descriptor, frozen.size, 0) == before
            assert await store.is_frozen(frozen)
            kept = len(blob_files(tmp_path / "data"))
        return await back_up(store, tmp_path / "to"), kept

    with Store.open(tmp_path / "data") as store:
        streaming(store)
        manifest, kept = wait(run(store))
        assert kept == 3, "the memory that was replaced is kept until it has been copied"
        assert len(blob_files(tmp_path / "data")) == 2, "and no longer"
        ((pages,),) = wait(store._database.read(lambda c: c.exec_driver_sql("PRAGMA wal_autocheckpoint").fetchall()))
        assert pages == LOG_PAGES
    assert manifest.models["digits"]["samples"] == 1
    assert list(manifest.problems(tmp_path / "to")) == []


def test_a_backup_opens_as_a_data_folder_with_everything_in_it(tmp_path: Path) -> None:
    with Store.open(tmp_path / "data") as store:
        streaming(store)
        sealed = store.keys.seal(b"x", purpose="test", place=b"here")
        wait(back_up(store, tmp_path / "to"))
        timeline = store.timeline
    restored = restore(tmp_path / "to", tmp_path / "again")
    assert restored.is_current
    with Store.open(tmp_path / "again") as again:
        assert wait(again.ledger.memory("digits")) == LARGE
        assert wait(again.ledger.streams("digits"))["a"].durable_sequence == 1
        assert wait(again.catalog.version("digits", 1)).head == b"head"
        assert again.keys.unseal(sealed, purpose="test", place=b"here") == b"x"
        assert again.timeline == restored.timeline != timeline
    assert Manifest.read(tmp_path / "to").timeline == timeline, "the backup stays as it was"


def test_no_other_program_can_open_the_database_after_a_backup(tmp_path: Path) -> None:
    code = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('SELECT * FROM model')"

    def other() -> str:
        file = str(tmp_path / "data" / NAME)
        return subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True).stderr

    with Store.open(tmp_path / "data") as store:
        streaming(store)
        wait(back_up(store, tmp_path / "to"))
        assert "locked" in other()
        # Control: this is what closing a descriptor of the file would have done.
        os.close(os.open(tmp_path / "data" / NAME, os.O_RDONLY))
        assert other() == ""


def test_a_model_that_is_deleted_meanwhile_is_not_in_the_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied, work = backup._copied, Work()

    async def run(store: Store) -> Manifest:
        loop = asyncio.get_running_loop()

        def delete_once(*arguments: object) -> object:
            files = copied(*arguments)  # type: ignore[arg-type]  # passed on
            if not work.restarts:
                asyncio.run_coroutine_threadsafe(store.catalog.delete_model("digits"), loop).result()
            return files

        monkeypatch.setattr(backup, "_copied", delete_once)
        return await back_up(store, tmp_path / "to", work)

    with Store.open(tmp_path / "data") as store:
        streaming(store)
        assert not wait(run(store)).models
    assert work.restarts == 1
    assert len(blob_files(tmp_path / "to")) == 1, "the trunk, which is nobody's own"
    assert LARGE[-5:] not in (tmp_path / "to" / NAME).read_bytes()
    assert [path.name for path in tmp_path.iterdir() if ".part" in path.name] == []


def test_a_backup_that_is_given_up_leaves_nothing_and_the_next_one_works(tmp_path: Path) -> None:
    work = Work()
    work.cancel()
    with Store.open(tmp_path / "data") as store:
        streaming(store)
        with pytest.raises(Unavailable, match="given up"):
            wait(back_up(store, tmp_path / "to", work))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
        wait(back_up(store, tmp_path / "to"))


def test_a_backup_that_is_cancelled_while_it_waits_for_the_database_leaves_nothing_frozen(tmp_path: Path) -> None:
    async def run(store: Store) -> None:
        gate = threading.Event()
        busy = asyncio.create_task(store._database.run(gate.wait, 60))
        waiting = asyncio.create_task(back_up(store, tmp_path / "to"))
        await asyncio.sleep(0.05)
        waiting.cancel()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await busy

    with Store.open(tmp_path / "data") as store:
        streaming(store)
        wait(run(store))
        ((pages,),) = wait(store._database.read(lambda c: c.exec_driver_sql("PRAGMA wal_autocheckpoint").fetchall()))
        assert (pages, dict(store.blobs._held)) == (LOG_PAGES, {})
        wait(back_up(store, tmp_path / "to"))


def test_a_second_backup_at_once_is_refused(tmp_path: Path) -> None:
    async def run(store: Store) -> None:
        async with store.frozen():
            with pytest.raises(PreconditionError, match="being made already"):
                await back_up(store, tmp_path / "to")

    with Store.open(tmp_path / "data") as store:
        wait(run(store))


def test_what_is_damaged_is_not_backed_up_as_if_it_were_whole(tmp_path: Path) -> None:
    with Store.open(tmp_path / "data") as store:
        streaming(store)
        name = min(blob_files(tmp_path / "data"))
        folders.flip(tmp_path / "data" / "blobs" / "sha256" / name[:2] / name, 0)
        with pytest.raises(DataLossError, match=f"blob {name} has other bytes.* `everlearn-server check`"):
            wait(back_up(store, tmp_path / "to"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize(
    ("to", "meant"),
    [("relative", "is not absolute"), ("{}/data/inside", "inside of the data folder"), ("{}/full", "is there already")],
)
def test_a_place_that_is_no_place_for_a_backup_is_refused(tmp_path: Path, to: str, meant: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with Store.open(tmp_path / "data") as store, pytest.raises(InvalidError, match=meant):
        wait(back_up(store, Path(to.format(tmp_path))))


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "_SPARE_BYTES", 1 << 62)
    with Store.open(tmp_path / "data") as store, pytest.raises(Unavailable, match="MiB free"):
        wait(back_up(store, tmp_path / "to"))


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "manifest"])
def test_a_damaged_backup_is_not_restored(tmp_path: Path, damage: str) -> None:
    with Store.open(tmp_path / "data") as store:
        streaming(store)
    back_up_stopped(tmp_path / "data", tmp_path / "to")
    file = tmp_path / "to" / (MANIFEST if damage == "manifest" else NAME)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "gone":
        file.unlink()
    else:
        folders.flip(file, 150)
    with pytest.raises(DataLossError, match="is damaged"):
        restore(tmp_path / "to", tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assert [path.name for path in tmp_path.iterdir() if ".part" in path.name] == []


def test_a_folder_that_holds_something_is_not_restored_into(tmp_path: Path) -> None:
    with Store.open(tmp_path / "data") as store:
        streaming(store)
    back_up_stopped(tmp_path / "data", tmp_path / "to")
    with pytest.raises(InvalidError, match="is not empty"):
        restore(tmp_path / "to", tmp_path / "data")
    with pytest.raises(NotFoundError, match="is no backup"):
        restore(tmp_path / "data", tmp_path / "again")
    (tmp_path / "again").mkdir()
    restore(tmp_path / "to", tmp_path / "again")


def of_the_first_release(folder: Path) -> None:
    """A folder as revision 0001 left it: its tables, a model, a client, a memory in the row and a trunk as a blob."""
    with Store.open(folder) as store:
        blob = wait(store.blobs.put(b"trunk"))
    (folder / NAME).unlink()
    engine = create_engine(f"sqlite:///{folder / NAME}", isolation_level=None)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    with engine.begin() as connection:
        migrate.upgrade(connection, to="0001")
        run = connection.exec_driver_sql
        run("INSERT INTO timeline VALUES (1, 'first', 1.0)")
        run(
            "INSERT INTO model (name, uid, lineage, generation, etag, state, promotion_paused, create_time_s, "
            "update_time_s, next_version, conditions_json, lock_json, declaration) "
            "VALUES ('digits', 'u1', 1, 1, 'e', 'READY', 0, 1, 1, 1, '[]', '{}', 'kind: Model')"
        )
        run("INSERT INTO stream (model, client, epoch, durable_sequence) VALUES ('digits', 'a', 3, 17)")
        run(
            "INSERT INTO commit_log (id, model, lineage, memory_digest, sample_count, stream_count, reject_count, "
            "create_time_s) VALUES (1, 'digits', 1, ?, 5, 1, 0, 1)",
            (SUMS_DIGEST,),
        )
        run(
            "INSERT INTO memory (model, lineage, commit_id, digest, size, sample_count, update_time_s, "
            "prequential_json, content) VALUES ('digits', 1, 1, ?, 4, 5, 1, '{}', ?)",
            (SUMS_DIGEST, b"sums"),
        )
        run("INSERT INTO trunk (key, digest, source, size, manifest) VALUES ('k', ?, 's', 5, ?)", (blob, b"{}"))
    engine.dispose()


SUMS_DIGEST = hashlib.sha256(b"sums").hexdigest()


def test_a_folder_of_the_release_before_is_refused_with_the_command_and_left_as_it_is(tmp_path: Path) -> None:
    of_the_first_release(tmp_path / "data")
    before = (tmp_path / "data" / NAME).read_bytes()
    with pytest.raises(PreconditionError, match=r"everlearn-server migrate --data .* --backup-to FOLDER") as refusal:
        Store.open(tmp_path / "data")
    assert refusal.value.reason == "OLDER_DATABASE"
    with closing(sqlite3.connect(tmp_path / "data" / NAME)) as database:
        assert database.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
    assert len(before) == len((tmp_path / "data" / NAME).read_bytes())


def test_migrating_a_folder_of_the_release_before_keeps_every_row_and_can_be_undone_by_its_backup(
    tmp_path: Path,
) -> None:
    of_the_first_release(tmp_path / "data")
    back_up_stopped(tmp_path / "data", tmp_path / "to")
    assert migrate.migrate(tmp_path / "data") == ("0001", migrate.head())
    assert migrate.migrate(tmp_path / "data") == (migrate.head(), migrate.head())
    with Store.open(tmp_path / "data") as store:
        assert store.timeline == "first"
        assert wait(store.ledger.streams("digits"))["a"].durable_sequence == 17
        state = wait(store.ledger.state("digits"))
        assert state is not None
        assert (state.commit_id, state.sample_count, len(wait(store.catalog.trunks()))) == (1, 5, 1)
    restored = restore(tmp_path / "to", tmp_path / "undone")
    assert not restored.is_current
    assert sql(tmp_path / "undone", "SELECT version_num FROM alembic_version") == [("0001",)]
    assert len(blob_files(tmp_path / "undone")) == 1, "all blobs of an older folder are in its backup"


def test_a_folder_that_a_newer_release_wrote_is_neither_migrated_nor_restored(tmp_path: Path) -> None:
    Store.open(tmp_path / "data").close()
    back_up_stopped(tmp_path / "data", tmp_path / "before")
    sql(tmp_path / "data", "UPDATE alembic_version SET version_num = '9999'")
    refusals: list[EverlearnError] = []
    for refused in (
        lambda: migrate.migrate(tmp_path / "data"),
        lambda: Store.open(tmp_path / "data"),
        lambda: back_up_stopped(tmp_path / "data", tmp_path / "after"),
    ):
        with pytest.raises(PreconditionError, match="newer everlearn") as refusal:
            refused()
        refusals.append(refusal.value)
    assert {refusal.reason for refusal in refusals} == {"NEWER_DATABASE"}


def test_every_revision_can_be_reached_from_the_one_before(tmp_path: Path) -> None:
    revisions = [each.revision for each in ScriptDirectory(str(migrate.SCRIPTS)).walk_revisions()]
    assert revisions == sorted(revisions, reverse=True)
    assert len(revisions) == len(list((migrate.SCRIPTS / "versions").glob("r*.py")))
