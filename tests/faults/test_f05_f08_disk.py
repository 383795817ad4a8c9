"""Rows F5 and F8 on a disk of the test's own: cut in the middle of a COMMIT, failing calls, bad and full disks."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
from tests.faults.disk import Disk
from tests.faults.parts import failing_calls, inside_commit, power_cuts, random_errors
from tests.store_rows import Fatal, wait, with_model

from everlearn.errors import DataLossError, UnavailableError
from everlearn_server.store import store as stores
from everlearn_server.store.store import Store


def test_f05_inside_the_commit_all_or_nothing(tmp_path: Path) -> None:
    found = inside_commit.run(tmp_path, **inside_commit.SHORT)
    assert found["commits found whole"]
    assert found["found undone"]
    assert found["of them with blobs"]


def test_power_cuts_lose_nothing_that_was_said_to_be_durable(tmp_path: Path) -> None:
    power_cuts.run(tmp_path, **power_cuts.SHORT)


@pytest.mark.parametrize("fault", ["not_synced", "folder_not_synced+blobs", "early"])
def test_control_a_server_that_syncs_less_or_acknowledges_earlier_is_caught_by_power_cuts(
    tmp_path: Path, fault: str
) -> None:
    with pytest.raises(AssertionError, match=r"told|cannot be read"):
        power_cuts.run(tmp_path, cuts=20, fault=fault)


def test_f08_whichever_storage_call_fails_nothing_is_lost(tmp_path: Path) -> None:
    found = failing_calls.run(tmp_path, **failing_calls.SHORT)
    assert found["ended for a supervisor"]
    assert found["refused to start"]
    assert found["of them with blobs"]


def test_f08_a_bad_disk_loses_nothing(tmp_path: Path) -> None:
    assert random_errors.run(tmp_path, **random_errors.SHORT)["exits with 75"]


def test_f08_an_fsync_that_failed_is_not_tried_again(tmp_path: Path) -> None:
    fatal = Fatal()
    with Disk(tmp_path / "disk") as disk, Store.open(disk.folder / "data", on_fatal=fatal) as store:
        disk.plan(call="fsync", nth=1)
        with pytest.raises(UnavailableError):
            wait(store.blobs.put(b"bytes"))
        assert len(fatal.errors) == 1
        assert disk.told().calls == 1
        with pytest.raises(UnavailableError):
            wait(store.catalog.models())


@pytest.mark.parametrize("is_synced", [True, False])
def test_f08_the_logs_name_is_durable_or_the_server_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_synced: bool
) -> None:
    """SQLite does not mind where the fsync of its log's name fails: without ours, a power cut takes the log with it, or
    brings back that of the life before."""
    if not is_synced:
        monkeypatch.setattr(stores, "sync_folder", lambda folder: None)
    lost = 0
    with Disk(tmp_path / "disk") as disk:
        for nth in (1, 2, 3):
            place, kept = disk.folder / str(nth), False
            with Store.open(place) as first:
                with_model(first, "first")
            disk.plan(call="fsyncdir", nth=nth)
            with suppress(UnavailableError), Store.open(place, on_fatal=Fatal()) as second:
                with_model(second, "second")
                kept = True
                disk.plan(nth=1, lasting=True)  # it ends here
            disk.cut()
            with Store.open(place) as again:
                lost += kept and "second" not in [row.name for row in wait(again.catalog.models())]
    assert (lost == 0) is is_synced


def test_control_an_fsync_that_is_tried_again_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def stubborn(descriptor: int) -> None:
        try:
            fsync(descriptor)
        except OSError:
            fsync(descriptor)

    monkeypatch.setattr(os, "fsync", stubborn)
    with Disk(tmp_path / "disk") as disk, Store.open(disk.folder / "data") as store:
        disk.plan(call="fsync", nth=1)
        digest = wait(store.blobs.put(b"bytes"))
        disk.cut()
        with pytest.raises(DataLossError):
            store.blobs.read(digest)
