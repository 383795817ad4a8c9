"""What every store must do, whatever is below it. A new one is one more entry in STORES."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.store_rows import MODEL, OPERATION, Fatal, add_versions, group, version, wait, with_model

from everlearn.errors import ConflictError, NotFoundError, PreconditionError, TimelineChangedError, UnavailableError
from everlearn_server.store.rows import ExportFile, ExportRow, RejectRow, StreamRow, TrunkRow
from everlearn_server.store.store import Store

STORES: dict[str, Callable[[Path], Store]] = {"sqlite": lambda folder: Store.open(folder, on_fatal=Fatal())}


@pytest.fixture(params=sorted(STORES))
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    return lambda: STORES[request.param](tmp_path / "data")


@pytest.fixture
def store(opener: Callable[[], Store]) -> Iterator[Store]:
    with opener() as opened:
        yield opened


def test_a_model_comes_back_as_it_was_put_with_an_etag_of_the_stores_own(store: Store) -> None:
    stored = wait(store.catalog.put_model(replace(MODEL, etag="mine"), expected_etag=None))
    assert stored == replace(MODEL, etag=stored.etag)
    assert stored.etag not in ("", "mine")
    assert wait(store.catalog.get_model("digits")) == stored
    assert wait(store.catalog.models()) == (stored,)


def test_a_model_is_replaced_only_by_who_has_seen_it(store: Store) -> None:
    first = with_model(store)
    second = wait(store.catalog.put_model(replace(first, state="LEARNING"), expected_etag=first.etag))
    assert second.etag != first.etag
    with pytest.raises(ConflictError, match="changed by someone else"):
        wait(store.catalog.put_model(first, expected_etag=first.etag))
    with pytest.raises(ConflictError, match="exists already"):
        wait(store.catalog.put_model(first, expected_etag=None))
    with pytest.raises(ConflictError, match="does not exist"):
        wait(store.catalog.put_model(replace(first, name="other"), expected_etag=first.etag))
    with pytest.raises(ConflictError, match="uid"):
        wait(store.catalog.put_model(replace(first, uid="u2"), expected_etag=second.etag))
    assert wait(store.catalog.get_model("digits")) == second


def test_what_is_not_there_is_not_found(store: Store) -> None:
    with_model(store)
    wait(store.catalog.reserve_versions("digits", 5))
    for missing in (
        store.catalog.get_model("none"),
        store.catalog.delete_model("none"),
        store.catalog.reserve_versions("none", 1),
        store.catalog.version("digits", 1),
        store.catalog.set_alias("digits", "stable", 1, "why"),
        store.catalog.put_version(version(1, model="none"), aliases={}, reason=""),
        store.catalog.put_version(version(1), aliases={"stable": 2}, reason=""),
        store.catalog.get_operation("none"),
        store.catalog.put_operation(replace(OPERATION, model="none")),
        store.catalog.get_export("digits", 1),
        store.catalog.delete_export("digits", 1),
        store.catalog.trunk_of_digest("0" * 64),
        store.catalog.delete_trunk("none"),
        store.ledger.open_stream("none", "c"),
    ):
        with pytest.raises(NotFoundError):
            wait(missing)
    assert wait(store.catalog.versions("digits")) == ()
    assert wait(store.ledger.memory("digits")) is None
    assert wait(store.ledger.state("digits")) is None
    assert wait(store.catalog.find_trunk("none")) is None


def test_version_numbers_are_never_given_twice_even_after_a_restart(opener: Callable[[], Store]) -> None:
    with opener() as store:
        with_model(store)
        assert wait(store.catalog.reserve_versions("digits", 10)) == 1
    with opener() as store:
        assert wait(store.catalog.reserve_versions("digits", 1)) == 11
        model = wait(store.catalog.get_model("digits"))
        wait(store.catalog.put_model(replace(model, lineage=2), expected_etag=model.etag))
        assert wait(store.catalog.reserve_versions("digits", 1)) == 12


@pytest.mark.parametrize("size", [10, 5 << 20], ids=["inline", "blob"])
def test_a_version_keeps_its_head_whatever_its_size(store: Store, size: int) -> None:
    with_model(store)
    wait(store.catalog.reserve_versions("digits", 2))
    row = version(2, head=bytes(size))
    wait(store.catalog.put_version(row, aliases={"latest": 2}, reason="published"))
    assert wait(store.catalog.version("digits", 2)) == row
    assert [summary.number for summary in wait(store.catalog.versions("digits"))] == [2]


def test_moves_of_aliases_are_logged_with_reason_and_origin(store: Store) -> None:
    with_model(store)
    add_versions(store, 1, 2)
    for number, reason in ((1, "gate passed"), (2, "gate passed"), (2, "again"), (1, "rolled back")):
        wait(store.catalog.set_alias("digits", "stable", number, reason))
    log = wait(store.catalog.promotion_log("digits"))
    moves = [(row.previous, row.number, row.reason) for row in log]
    assert moves == [(None, 1, "gate passed"), (1, 2, "gate passed"), (2, 1, "rolled back")]
    assert [(row.alias, row.number) for row in wait(store.catalog.aliases("digits"))] == [("stable", 1)]


def test_each_move_of_an_alias_has_a_larger_number_whatever_the_clock_says(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_model(store)
    add_versions(store, 1, 2)
    moves = []
    for clock_s, number in ((1e9, 1), (1e9, 2), (5.0, 1), (2e9, 2), (2e9, 2)):
        monkeypatch.setattr(time, "time", lambda clock_s=clock_s: clock_s)
        wait(store.catalog.set_alias("digits", "stable", number, "why"))
        moves.append(wait(store.catalog.aliases("digits"))[0].moved)
    assert moves == [1_000_000_000_000, 1_000_000_000_001, 1_000_000_000_002, 2_000_000_000_000, 2_000_000_000_000]


def test_pruning_keeps_the_newest_the_aliased_and_the_exported(store: Store) -> None:
    with_model(store)
    add_versions(store, 1, 2, 3, 4, 5, 6)
    wait(store.catalog.set_alias("digits", "stable", 2, "why"))
    wait(store.catalog.put_export(_export(store, 4, b"onnx")))
    assert wait(store.catalog.prune_versions("digits", 1)) == (1, 3, 5)
    assert [row.number for row in wait(store.catalog.versions("digits"))] == [2, 4, 6]
    assert wait(store.catalog.prune_versions("digits", 1)) == ()


def test_operations_are_updated_by_name_and_listed_by_what_is_left_to_do(store: Store) -> None:
    with_model(store)
    other = replace(OPERATION, name="operations/2")
    wait(store.catalog.put_operation(OPERATION))
    wait(store.catalog.put_operation(other))
    done = replace(OPERATION, stage="released", done=True, result_json='{"files": 2}', update_time_s=2.0)
    wait(store.catalog.put_operation(done))
    assert wait(store.catalog.get_operation("operations/1")) == done
    assert wait(store.catalog.operations()) == (done, other)
    assert wait(store.catalog.operations(model="digits", done=False)) == (other,)


def test_an_export_names_blobs_that_exist_and_takes_them_along_when_it_goes(store: Store) -> None:
    with_model(store)
    add_versions(store, 1)
    row = _export(store, 1, b"onnx bytes")
    with pytest.raises(NotFoundError, match="no blob"):
        wait(store.catalog.put_export(replace(row, files=(replace(row.files[0], sha256="f" * 64),))))
    wait(store.catalog.put_export(row))
    assert wait(store.catalog.get_export("digits", 1)) == row
    assert wait(store.catalog.exports("digits")) == (row,)
    again = _export(store, 1, b"better bytes")
    wait(store.catalog.put_export(again))
    assert not store.blobs.exists(row.files[0].sha256)
    wait(store.catalog.delete_export("digits", 1))
    assert not store.blobs.exists(again.files[0].sha256)


def test_a_trunk_is_found_by_key_and_digest_and_stays_while_it_is_used(store: Store) -> None:
    digest = wait(store.blobs.put(b"onnx"))
    row = TrunkRow(key="k", digest=digest, manifest=b"{}", source="hf://a/b", size=4)
    wait(store.catalog.put_trunk(row))
    assert wait(store.catalog.find_trunk("k")) == row == wait(store.catalog.trunk_of_digest(digest))
    assert wait(store.catalog.trunks()) == (row,)
    wait(store.catalog.put_model(replace(MODEL, trunk_digest=digest), expected_etag=None))
    with pytest.raises(PreconditionError, match="in use by digits"):
        wait(store.catalog.delete_trunk("k"))
    wait(store.catalog.delete_model("digits"))
    assert wait(store.blobs.get(digest)) == b"onnx"
    wait(store.catalog.delete_trunk("k"))
    assert not store.blobs.exists(digest)


def test_each_open_of_a_stream_begins_an_epoch_that_survives_a_restart(opener: Callable[[], Store]) -> None:
    fresh = StreamRow(epoch=1, durable_sequence=0, learned_mac=bytes(32))
    with opener() as store:
        with_model(store)
        assert wait(store.ledger.open_stream("digits", "a")) == fresh
        wait(store.ledger.commit(group(store, {"a": (1, 7)})))
        assert wait(store.ledger.open_stream("digits", "a")) == StreamRow(epoch=2, durable_sequence=7, first_commit=1)
    with opener() as store:
        assert wait(store.ledger.open_stream("digits", "a")) == StreamRow(epoch=3, durable_sequence=7, first_commit=1)
        assert wait(store.ledger.open_stream("digits", "b")) == fresh
        assert list(wait(store.ledger.streams("digits"))) == ["a", "b"]


def test_connections_that_open_at_once_get_an_epoch_each(store: Store) -> None:
    async def open_all() -> list[StreamRow]:
        return await asyncio.gather(*(store.ledger.open_stream("digits", "a") for _ in range(20)))

    with_model(store)
    assert sorted(row.epoch for row in wait(open_all())) == list(range(1, 21))


def test_a_commit_makes_memory_watermarks_rejects_version_and_alias_durable_together(
    opener: Callable[[], Store],
) -> None:
    reject = RejectRow(client="a", sequence=2, code="INVALID_ARGUMENT", field="batch.samples")
    with opener() as store:
        with_model(store)
        number = wait(store.catalog.reserve_versions("digits", 1))
        wait(store.ledger.open_stream("digits", "a"))
        whole = group(
            store, {"a": (1, 3)}, memory=b"m1", rejects=[reject], solved=version(number), aliases={"latest": number}
        )
        receipt = wait(store.ledger.commit(whole))
        assert receipt.bytes_written == len(b"m1") + len(b"head")
        assert receipt.busy_s > 0
    with opener() as store:
        assert wait(store.ledger.memory("digits")) == b"m1"
        assert wait(store.ledger.streams("digits")) == {
            "a": StreamRow(epoch=1, durable_sequence=3, first_commit=receipt.commit_id)
        }
        assert wait(store.ledger.rejects("digits")) == (reject,)
        assert wait(store.catalog.version("digits", number)) == version(number)
        assert wait(store.catalog.aliases("digits"))[0].number == number
        state = wait(store.ledger.state("digits"))
        assert state is not None
        assert (state.commit_id, state.size, state.sample_count) == (receipt.commit_id, 2, 1)


def test_the_commit_log_is_a_chain(store: Store) -> None:
    with_model(store)
    wait(store.ledger.open_stream("digits", "a"))
    ids = [wait(store.ledger.commit(group(store, {"a": (1, s)}, memory=b"%d" % s))).commit_id for s in (1, 2, 3)]
    log = wait(store.ledger.commits("digits"))
    assert [row.id for row in log] == ids
    assert [row.parent for row in log] == [None, *ids[:-1]]
    assert [row.id for row in wait(store.ledger.commits("digits", limit=1))] == ids[-1:]


def test_a_batch_integrated_before_a_newer_epoch_began_still_commits(store: Store) -> None:
    with_model(store)
    wait(store.ledger.open_stream("digits", "a"))
    wait(store.ledger.open_stream("digits", "a"))
    wait(store.ledger.commit(group(store, {"a": (1, 4)})))
    assert wait(store.ledger.streams("digits")) == {"a": StreamRow(epoch=2, durable_sequence=4, first_commit=1)}


def test_a_group_for_another_timeline_model_or_lineage_is_refused_and_changes_nothing(store: Store) -> None:
    with_model(store)
    wait(store.ledger.open_stream("digits", "a"))
    good = group(store, {"a": (1, 1)}, memory=bytes(5 << 20))
    with pytest.raises(TimelineChangedError):
        wait(store.ledger.commit(replace(good, timeline="0" * 32)))
    with pytest.raises(NotFoundError):
        wait(store.ledger.commit(replace(good, model="gone")))
    for stale in (replace(good, lineage=2), replace(good, uid="u0")):
        with pytest.raises(PreconditionError) as refusal:
            wait(store.ledger.commit(stale))
        assert refusal.value.reason == "LINEAGE_CHANGED"
    assert wait(store.ledger.memory("digits")) is None
    assert wait(store.ledger.streams("digits"))["a"].durable_sequence == 0
    wait(store.ledger.commit(good))


def test_a_higher_lineage_drops_the_memory_and_goes_on_with_streams(store: Store) -> None:
    model = with_model(store)
    wait(store.ledger.open_stream("digits", "a"))
    wait(store.ledger.commit(group(store, {"a": (1, 1)})))
    raised = wait(store.catalog.put_model(replace(model, lineage=2), expected_etag=model.etag))
    assert wait(store.ledger.memory("digits")) is None
    wait(store.ledger.commit(replace(group(store, {"a": (1, 2)}), lineage=2)))
    assert wait(store.ledger.commits("digits"))[-1].parent is None
    with pytest.raises(ConflictError, match="never goes down"):
        wait(store.catalog.put_model(replace(model, lineage=1), expected_etag=raised.etag))


def test_a_folder_keeps_its_timeline_until_it_is_restored(opener: Callable[[], Store], tmp_path: Path) -> None:
    with opener() as store:
        first = store.timeline
    with opener() as store:
        assert store.timeline == first
    with Store.open(tmp_path / "data", restored=True) as store:
        assert store.timeline != first
        assert len(store.timeline) == 32


def test_a_closed_store_says_so(store: Store) -> None:
    store.close()
    store.close()
    for call in (store.catalog.models(), store.ledger.streams("digits"), store.blobs.put(b"x")):
        with pytest.raises(UnavailableError, match="closed"):
            wait(call)


def _export(store: Store, number: int, data: bytes) -> ExportRow:
    digest = wait(store.blobs.put(data))
    file = ExportFile(file_name="model.onnx", size=len(data), sha256=digest)
    return ExportRow(model="digits", version_number=number, files=(file,), parity=1e-6, probes=32, create_time_s=1.0)


def test_a_stream_keeps_its_count_of_samples_and_the_first_commit_that_it_was_in(store: Store) -> None:
    with_model(store)
    for number, samples in ((1, 32), (2, 64)):
        wait(store.ledger.open_stream("digits", "a"))
        row = StreamRow(epoch=number, durable_sequence=number, sample_count=samples)
        wait(store.ledger.commit(replace(group(store, {}), streams={"a": row})))
    assert wait(store.ledger.streams("digits")) == {
        "a": StreamRow(epoch=2, durable_sequence=2, sample_count=64, first_commit=1)
    }
