from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.store_rows import Fatal, blob_files, group, wait, with_model

from everlearn.errors import ConflictError, DataLossError, PreconditionError, UnavailableError
from everlearn_server.store import ledger
from everlearn_server.store.rows import RejectRow
from everlearn_server.store.store import Store

BIG = 5 << 20


@pytest.mark.parametrize(
    "streams",
    [{"a": (1, 5)}, {"a": (1, 4)}, {"a": (2, 6)}, {"unopened": (1, 1)}],
    ids=["stands still", "moves back", "epoch from the future", "stream never opened"],
)
def test_a_watermark_that_would_count_twice_is_fatal_and_leaves_nothing(
    tmp_path: Path, streams: dict[str, tuple[int, int]]
) -> None:
    fatal = Fatal()
    with Store.open(tmp_path, on_fatal=fatal) as store:
        with_model(store)
        wait(store.ledger.open_stream("digits", "a"))
        wait(store.ledger.commit(group(store, {"a": (1, 5)}, memory=b"right")))
        with pytest.raises(UnavailableError):
            wait(store.ledger.commit(group(store, streams, memory=bytes(BIG))))
        assert [type(error) for error in fatal.errors] == [ledger.WatermarkError]
    with Store.open(tmp_path) as store:
        assert wait(store.ledger.memory("digits")) == b"right"
        assert wait(store.ledger.streams("digits"))["a"].durable_sequence == 5
        assert blob_files(tmp_path) == set()


def test_memory_moves_between_row_and_file_and_only_the_last_one_stays(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        with_model(store)
        wait(store.ledger.open_stream("digits", "a"))
        for sequence, (size, files) in enumerate([(9, 0), (BIG, 1), (BIG + 1, 1), (4 << 20, 0), (BIG, 1)], start=1):
            wait(store.ledger.commit(group(store, {"a": (1, sequence)}, memory=bytes(size))))
            assert wait(store.ledger.memory("digits")) == bytes(size)
            assert len(blob_files(tmp_path)) == files


@pytest.mark.parametrize("size", [9, BIG], ids=["inline", "blob"])
def test_a_group_of_rejections_alone_keeps_the_memory(tmp_path: Path, size: int) -> None:
    with Store.open(tmp_path) as store:
        with_model(store)
        wait(store.ledger.open_stream("digits", "a"))
        for sequence in (1, 2):
            reject = RejectRow(client="a", sequence=sequence, code="INVALID_ARGUMENT", field="batch.labels")
            wait(store.ledger.commit(group(store, {"a": (1, sequence)}, memory=bytes(size), rejects=[reject])))
        assert wait(store.ledger.memory("digits")) == bytes(size)
        assert [row.sequence for row in wait(store.ledger.rejects("digits"))] == [1, 2]


def test_commit_log_and_rejects_are_bounded_per_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "COMMITS_KEPT", 3)
    monkeypatch.setattr(ledger, "REJECTS_KEPT", 4)
    with Store.open(tmp_path) as store:
        with_model(store)
        wait(store.ledger.open_stream("digits", "a"))
        for last in range(2, 13, 2):
            rejects = [RejectRow(client="a", sequence=s, code="INTERNAL", field="") for s in (last - 1, last)]
            receipt = wait(store.ledger.commit(group(store, {"a": (1, last)}, rejects=rejects)))
        assert [row.id for row in wait(store.ledger.commits("digits"))][-1] == receipt.commit_id
        assert len(wait(store.ledger.commits("digits"))) == 3
        assert [row.sequence for row in wait(store.ledger.rejects("digits"))] == [9, 10, 11, 12]


def test_a_memory_with_a_flipped_byte_is_never_handed_out(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        with_model(store)
        wait(store.ledger.open_stream("digits", "a"))
        wait(store.ledger.commit(group(store, {"a": (1, 1)}, memory=b"inline")))
        wait(
            store._database.write(
                lambda connection: connection.exec_driver_sql("UPDATE memory SET content = CAST('inlinf' AS BLOB)")
            )
        )
        with pytest.raises(DataLossError, match="the memory of model 'digits'"):
            wait(store.ledger.memory("digits"))
        wait(store.ledger.commit(group(store, {"a": (1, 2)}, memory=bytes(BIG))))
        path = next(path for path in (tmp_path / "blobs").rglob("*") if path.is_file())
        path.write_bytes(b"\x01" + bytes(BIG - 1))
        with pytest.raises(DataLossError, match="other bytes"):
            wait(store.ledger.memory("digits"))


def test_a_new_namesake_starts_from_nothing(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        with_model(store)
        wait(store.ledger.open_stream("digits", "a"))
        wait(store.ledger.commit(group(store, {"a": (1, 5)})))
        wait(store.catalog.delete_model("digits"))
        with_model(store)
        assert wait(store.ledger.memory("digits")) is None
        assert wait(store.ledger.streams("digits")) == {}
        assert wait(store.ledger.open_stream("digits", "a")).durable_sequence == 0


@pytest.mark.parametrize("size", [9, BIG], ids=["inline", "blob"])
def test_a_next_lineage_begins_with_its_memory_and_keeps_the_streams(tmp_path: Path, size: int) -> None:
    with Store.open(tmp_path) as store:
        row = with_model(store)
        wait(store.ledger.open_stream("digits", "a"))
        wait(store.ledger.commit(group(store, {"a": (1, 5)}, memory=bytes(BIG + 1))))
        commit = replace(group(store, {}, memory=bytes(size)), lineage=2)
        stored = wait(store.ledger.replace(replace(row, lineage=2), commit, expected_etag=row.etag))
        assert (stored.lineage, stored.etag != row.etag) == (2, True)
        assert wait(store.ledger.memory("digits")) == bytes(size)
        assert wait(store.ledger.streams("digits"))["a"].durable_sequence == 5
        assert len(blob_files(tmp_path)) == (size == BIG), "the old memory's file stayed"
        wait(store.ledger.commit(replace(group(store, {"a": (1, 6)}, memory=b"on"), lineage=2)))
    with Store.open(tmp_path) as store:
        assert wait(store.ledger.memory("digits")) == b"on"


def test_a_next_lineage_with_a_stale_etag_or_another_s_memory_changes_nothing(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        row = with_model(store)
        wait(store.ledger.open_stream("digits", "a"))
        wait(store.ledger.commit(group(store, {"a": (1, 5)}, memory=b"old")))
        commit = replace(group(store, {}, memory=bytes(BIG)), lineage=2)
        with pytest.raises(ConflictError):
            wait(store.ledger.replace(replace(row, lineage=2), commit, expected_etag="stale"))
        with pytest.raises(PreconditionError):
            wait(store.ledger.replace(replace(row, lineage=3), commit, expected_etag=row.etag))
        assert wait(store.ledger.memory("digits")) == b"old"
        assert wait(store.catalog.models())[0] == row
        assert blob_files(tmp_path) == set()
