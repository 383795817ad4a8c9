from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.store_rows import Fatal, add_versions, blob_files, version, wait, with_model

from everlearn.errors import DataLossError, InvalidError, UnavailableError
from everlearn_server.store.rows import TrunkRow
from everlearn_server.store.store import Store

BIG = 5 << 20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path, on_fatal=Fatal()) as opened:
        yield opened


def test_a_blob_is_a_private_file_named_by_its_digest(store: Store, tmp_path: Path) -> None:
    digest = wait(store.blobs.put(b"bytes"))
    path = store.blobs.path(digest)
    assert path == tmp_path / "blobs" / "sha256" / digest[:2] / digest
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert wait(store.blobs.get(digest)) == b"bytes"
    assert wait(store.blobs.open_range(digest, 1, 3)) == b"yte"
    assert wait(store.blobs.open_range(digest, 5, 3)) == b""


@pytest.mark.parametrize("name", ["../../etc/passwd", "A" * 64, "a" * 63, "", "a" * 64 + "\n", "/" + "a" * 63])
def test_only_a_digest_becomes_a_path(store: Store, name: str) -> None:
    with pytest.raises(InvalidError, match="hexadecimal"):
        store.blobs.path(name)


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, -1), (6, 1)])
def test_a_range_outside_the_blob_is_refused(store: Store, offset: int, size: int) -> None:
    digest = wait(store.blobs.put(b"bytes"))
    with pytest.raises(InvalidError) as refusal:
        wait(store.blobs.open_range(digest, offset, size))
    assert refusal.value.field == "offset"


def test_a_missing_or_flipped_blob_is_data_loss_and_a_new_put_heals_it(store: Store) -> None:
    digest = wait(store.blobs.put(b"bytes"))
    store.blobs.path(digest).write_bytes(b"bytez")
    with pytest.raises(DataLossError, match="other bytes"):
        wait(store.blobs.get(digest))
    wait(store.blobs.put(b"bytes"))
    assert wait(store.blobs.get(digest)) == b"bytes"
    store.blobs.path(digest).unlink()
    with pytest.raises(DataLossError, match="ENOENT"):
        wait(store.blobs.get(digest))


def test_equal_bytes_put_twice_outlive_the_first_delete(store: Store) -> None:
    digest = wait(store.blobs.put(b"bytes"))
    assert wait(store.blobs.put(b"bytes")) == digest
    wait(store.blobs.delete(digest))
    assert store.blobs.exists(digest)
    wait(store.blobs.delete(digest))
    assert not store.blobs.exists(digest)


def test_a_blob_put_and_not_yet_named_survives_the_deletion_of_another_row_with_the_same_bytes(store: Store) -> None:
    digest = wait(store.blobs.put(b"onnx"))
    row = TrunkRow(key="a", digest=digest, manifest=b"", source="", size=4)
    wait(store.catalog.put_trunk(row))
    wait(store.blobs.put(b"onnx"))
    wait(store.catalog.delete_trunk("a"))
    wait(store.catalog.put_trunk(replace(row, key="b")))
    assert wait(store.blobs.get(digest)) == b"onnx"


def test_start_removes_temp_files_and_orphans_and_leaves_foreign_files_alone(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        with_model(store)
        add_versions(store, 1, head=bytes(BIG))
        kept = blob_files(tmp_path)
        orphan = wait(store.blobs.put(b"no row names me"))
        folder = store.blobs.path(orphan).parent
        (folder / ".part-0123").write_bytes(b"half")
        (folder / "README").write_bytes(b"not ours")
    with Store.open(tmp_path) as store:
        assert blob_files(tmp_path) == kept | {"README"}
        assert wait(store.catalog.version("digits", 1)).head == bytes(BIG)


def test_a_full_disk_refuses_a_put_and_the_store_lives(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(UnavailableError, match="no room"):
            wait(store.blobs.put(b"bytes"))
    assert blob_files(tmp_path) == set()
    wait(store.blobs.put(b"bytes"))


def test_a_failed_fsync_is_fatal_and_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def broken(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(errno.ENOSPC, "No space left on device")

    fatal = Fatal()
    with Store.open(tmp_path, on_fatal=fatal) as store:
        with_model(store)
        wait(store.catalog.reserve_versions("digits", 1))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", broken)
            with pytest.raises(UnavailableError, match="restart"):
                wait(store.catalog.put_version(version(1, head=bytes(BIG)), aliases={}, reason=""))
        assert len(calls) == 1
        assert [type(error).__name__ for error in fatal.errors] == ["SyncError"]
        with pytest.raises(UnavailableError, match="restart"):
            wait(store.catalog.models())
