"""What was erased is looked for in the raw files of a data folder: database, write-ahead log, freed pages, blobs."""

from __future__ import annotations

import shutil
import signal
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest
from tests.erasure_scene import Scene, batches
from tests.faults.forked import ForkedServer

from everlearn_client.errors import Unavailable
from everlearn_server.store.database import NAME

Pieces = Mapping[str, frozenset[bytes]]
PIECE = 48
"""Bytes that are looked for at once: few enough to be on one page of the database."""
HELD = {
    "memory": "SELECT content FROM memory WHERE model = 'm'",
    "head": "SELECT head FROM version WHERE model = 'm' ORDER BY number DESC LIMIT 1",
    "own sums": "SELECT content FROM client_sums WHERE model = 'm' AND client = 'ann'",
    "key": "SELECT sealed_key FROM client_key WHERE model = 'm' AND client = 'ann'",
}
SHOWN = {"sums": {"memory", "head"}, "own": {"memory", "head", "own sums", "key"}, "steps": {"memory", "head", "key"}}


def pieces(folder: Path) -> Pieces:
    """Of what a copy of the folder says it holds of ann, in pieces."""
    copy = folder.with_name("copy")
    copy.mkdir()
    for path in folder.glob(f"{NAME}*"):
        shutil.copy(path, copy)
    with closing(sqlite3.connect(copy / NAME)) as database:
        rows = {what: [row for (row,) in database.execute(query)] for what, query in HELD.items()}
        everything = b"".join(
            value
            for (table,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
            for row in database.execute(f'SELECT * FROM "{table}"')
            for value in row
            if isinstance(value, bytes)
        )
    shutil.rmtree(copy)
    cut = {what: frozenset(piece for row in found for piece in cut_up(row)) for what, found in rows.items() if found}
    return {**cut, "everything": frozenset([everything])}


def cut_up(row: bytes) -> list[bytes]:
    found = [row[at : at + PIECE] for at in range(0, len(row) - PIECE + 1, PIECE)]
    return [piece for piece in found if len(set(piece)) > PIECE // 4]  # counts and zeros are in many things


def left(folder: Path, looked_for: Pieces) -> dict[str, float]:
    """Which share of what was there is in some file and in no row."""
    raw = [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]
    (there,) = pieces(folder)["everything"]
    gone = {what: [piece for piece in found if piece not in there] for what, found in looked_for.items()}
    del gone["everything"]
    assert all(gone.values()), "nothing went"
    return {
        what: sum(any(piece in data for data in raw) for piece in found) / len(found) for what, found in gone.items()
    }


@pytest.mark.parametrize("kind", SHOWN)
def test_neither_an_erasure_nor_a_kill_inside_it_leaves_a_byte_of_what_went(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "data"
    with ForkedServer(folder) as server:
        scene = Scene(server, tmp_path)

        def learn(client: str, seed: int) -> Path | None:
            path = scene.learn("m", client, batches(seed, 6), receipts=kind == "sums")
            scene.predictions("m")
            return path if kind == "sums" else None

        scene.declare("m", kind)
        learn("bob", 1)
        receipts = learn("ann", 2)
        server.terminate()
        looked_for = pieces(folder)
        assert set(looked_for) == {*SHOWN[kind], "everything"}
        server.fault = "kill:committed:1"
        server.start()
        with pytest.raises(Unavailable):
            scene.erase("m", "ann", receipts)
        assert server.wait() == -signal.SIGKILL
        # The control: gone for every reader, and its bytes are there (but for those across two pages).
        assert min(left(folder, looked_for).values()) > 0.9
        server.fault = ""
        server.start()
        server.kill()  # not ended in peace, which would tidy up
        assert set(left(folder, looked_for).values()) == {0.0}


def test_an_erasure_is_over_when_its_bytes_are(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with ForkedServer(folder) as server:
        scene = Scene(server, tmp_path)
        scene.declare("m", "own")
        scene.learn("m", "bob", batches(1, 6), receipts=False)
        scene.learn("m", "ann", batches(2, 6), receipts=False)
        server.terminate()
        looked_for = pieces(folder)
        server.start()
        scene.erase("m", "ann", None)
        server.kill()
        assert set(left(folder, looked_for).values()) == {0.0}
