"""Earlier moments of a memory: one before each client's first contribution, thinned, and gone with who is in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select
from tests.store_rows import MODEL, blob_files, group, wait, with_model

from everlearn_server.store.moments import Moments
from everlearn_server.store.rows import Commit, Erasing, Keeping, Moment, StreamRow
from everlearn_server.store.schema import stream
from everlearn_server.store.store import Store
from everlearn_server.store.thinning import surplus

BIG = 5 << 20


def marked(data: bytes) -> bytes:
    return b"of " + data


def commit(store: Store, learned: Mapping[str, int], memory: bytes, *, samples: int = 0, most: int = 9) -> Commit:
    """Client -> samples learned of it by then; its sequence is one higher each time."""
    rows = {}
    for client, count in learned.items():
        sequence = wait(store.ledger.open_stream("digits", client)).durable_sequence + 1
        rows[client] = StreamRow(epoch=1, durable_sequence=sequence, sample_count=count)
    made = replace(group(store, {}, memory=memory), streams=rows, sample_count=samples)
    return replace(made, keeping=Keeping(most=most, made_of=marked) if most else None)


def erased(store: Store, client: str, memory: bytes, *, is_whole: bool = True) -> Commit:
    left = StreamRow(epoch=1, durable_sequence=0, sample_count=0)
    erasing = Erasing(
        client=client,
        label="",
        sample_count=1,
        sequences=[(1, 1)],
        stream=left,
        is_whole=is_whole,
        since_commit=1,
        attest=lambda commit_id, versions, copies: ("{}", b""),
    )
    return replace(commit(store, {}, memory), erasing=erasing)


def before(moments: Moments, client: str) -> bytes:
    found = moments.before("digits", client)
    return found.data if found is not None else b""


@pytest.mark.parametrize("size", [1, BIG], ids=["inline", "blob"])
def test_what_was_learned_before_a_client_came_is_kept_and_goes_with_who_is_in_it(tmp_path: Path, size: int) -> None:
    with Store.open(tmp_path) as store:
        ledger, moments = store.ledger, store.moments
        with_model(store)
        for learned, letter in (({"a": 5}, b"1"), ({"a": 9, "b": 0}, b"2"), ({"b": 4}, b"3"), ({"c": 1}, b"4")):
            wait(ledger.commit(commit(store, learned, letter * size)))
        wait(ledger.open_stream("digits", "nobody"))
        # The first had nothing before it; what was refused is no contribution.
        assert list(wait(moments.commits("digits"))) == [2, 3]
        assert [before(moments, each)[:4] for each in "abc"] == [b"", b"of 2", b"of 3"]
        assert before(moments, "nobody") == b"4" * size  # nothing of it is committed: the memory itself
        assert len(blob_files(tmp_path)) == (3 if size == BIG else 0)
        wait(ledger.commit(erased(store, "c", b"5" * size, is_whole=False)))
        assert list(wait(moments.commits("digits"))) == [2, 3]
        wait(ledger.commit(erased(store, "b", b"6" * size)))
        assert list(wait(moments.commits("digits"))) == [2]
        assert [before(moments, each)[:4] for each in "ac"] == [b"", b"of 2"]
        assert len(blob_files(tmp_path)) == (2 if size == BIG else 0)
        wait(ledger.commit(commit(store, {"b": 3}, b"7" * size)))  # it comes back
        assert before(moments, "b")[:4] == b"of 6"
        row = wait(store.catalog.get_model("digits"))
        wait(store.catalog.put_model(replace(MODEL, lineage=2), expected_etag=row.etag))
        assert list(wait(moments.commits("digits"))) == []
        assert blob_files(tmp_path) == set()


def test_where_nothing_goes_back_nothing_is_kept_and_less_is_when_less_is_declared(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        with_model(store)
        for client in "abcd":
            wait(store.ledger.commit(commit(store, {client: 1}, client.encode(), most=0)))
        assert list(wait(store.moments.commits("digits"))) == []
        for number, client in enumerate("efghi"):
            made = commit(store, {client: 1}, client.encode(), samples=[0, 10, 500, 510, 900][number], most=4)
            wait(store.ledger.commit(made))
        # Made before e, f, g, h and i; of those between, f's is the nearest to the one before it.
        assert list(wait(store.moments.commits("digits"))) == [4, 6, 7, 8]
        wait(store.moments.thin("digits", Keeping(most=2, made_of=marked)))
        assert list(wait(store.moments.commits("digits"))) == [4, 8]
        wait(store.moments.thin("digits", None))
        assert list(wait(store.moments.commits("digits"))) == []


def test_a_damaged_moment_is_passed_over(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        with_model(store)
        for number, client in enumerate("abc"):
            wait(store.ledger.commit(commit(store, {client: 1}, bytes([number]) * BIG)))
        newest = store.moments.before("digits", "c")
        assert newest is not None
        assert newest.commit_id == 2
        for path in (tmp_path / "blobs").rglob("*"):
            if path.is_file() and path.read_bytes() == newest.data:
                path.write_bytes(b"rotten")
        assert isinstance(earlier := store.moments.before("digits", "c"), Moment)
        assert earlier.commit_id == 1


def test_who_came_before_commits_were_noted_has_contributed_since_ever(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        with_model(store)
        wait(store.ledger.commit(commit(store, {"a": 1}, b"1")))

        def as_migrated(connection: object) -> None:
            connection.execute(stream.update().values(contributes_since=0, first_commit=0))  # type: ignore[attr-defined]

        wait(store._database.write(as_migrated))  # type: ignore[arg-type]
        wait(store.ledger.commit(commit(store, {"a": 2}, b"2")))
        wait(store.ledger.commit(commit(store, {"b": 2}, b"3")))
        assert before(store.moments, "a") == b""
        rows = wait(store._database.read(lambda connection: connection.execute(select(stream.c.first_commit)).all()))
        assert sorted(row[0] for row in rows) == [0, 3]


@given(st.lists(st.integers(0, 1000), max_size=12).map(sorted), st.integers(0, 12))
def test_the_oldest_and_the_newest_stay_and_no_more_than_may_be(samples: list[int], most: int) -> None:
    left = [place for place in range(len(samples)) if place not in surplus(samples, most)]
    assert len(left) == min(most, len(samples))
    if most >= 2 and samples:
        assert {0, len(samples) - 1} <= set(left)
    if most == 1 and samples:
        assert left == [0]
