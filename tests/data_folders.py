"""A real data folder with one of everything, and damages done to it by hand."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
from tests import tiny
from tests.real_server import RealServer

from everlearn.sums import Sums
from everlearn_server.store.database import NAME

TAGS = [["red"], ["red", "round"], [], ["round"]]


def make(folder: Path) -> None:
    """Two models: `tiny` of single labels, with versions, an export and a refused batch; `tags` of label sets."""
    backbone = tiny.write_backbone(folder.parent)
    with RealServer(folder) as server, server.client() as client:
        client.models.apply(tiny.declaration(backbone, serving={"keep_versions": 50}))
        for turn in range(3):
            for label in (0, 1):
                images = tiny.images(10, label, seed=turn)
                client.learn("tiny", [(images, [f"class-{label}"] * 10)], client_id=f"client-{label}")
            client.export("tiny", version="latest")
        refused = client.learn("tiny", [([b"no image"], ["class-0"])], client_id="client-1")
        assert refused.rejected_batches == 1
        client.models.apply(tiny.declaration(backbone, name="tags", task="multilabel"))
        client.learn("tags", [(tiny.images(4, 0), TAGS)], client_id="client-0")


def copied(folder: Path, to: Path) -> Path:
    """A folder of one's own to damage."""
    shutil.copytree(folder, to)
    return to


def sql(folder: Path, statement: str, *parameters: object) -> list[tuple[object, ...]]:
    """Runs a statement on a stopped server's database, foreign keys unchecked."""
    with closing(sqlite3.connect(folder / NAME)) as database, database:
        return database.execute(statement, parameters).fetchall()


def blob(folder: Path, statement: str) -> Path:
    """The file of the blob whose digest a statement selects."""
    ((digest,),) = sql(folder, statement)
    return folder / "blobs" / "sha256" / str(digest)[:2] / str(digest)


def flip(path: Path, at: int = 100) -> None:
    """Flips one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def flip_column(folder: Path, table: str, column: str, where: str = "1") -> None:
    """Flips one bit of the bytes in a row."""
    ((row, data),) = sql(folder, f"SELECT rowid, {column} FROM {table} WHERE {where} LIMIT 1")
    assert isinstance(data, bytes)
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    sql(folder, f"UPDATE {table} SET {column} = ? WHERE rowid = ?", flipped, row)


def reseal(folder: Path, change: Callable[[Sums], None]) -> None:
    """Changes the sums of `tiny` as a bug would: with digests that are right."""
    ((data,),) = sql(folder, "SELECT content FROM memory WHERE model = 'tiny'")
    assert isinstance(data, bytes)
    sums = Sums.from_bytes(data)
    change(sums)
    data = sums.to_bytes()
    digest = hashlib.sha256(data).hexdigest()
    sql(folder, "UPDATE memory SET content = ?, digest = ?, size = ? WHERE model = 'tiny'", data, digest, len(data))
    newest = "SELECT max(id) FROM commit_log WHERE model = 'tiny'"
    sql(folder, f"UPDATE commit_log SET memory_digest = ? WHERE id = ({newest})", digest)


def more_of_a_class(sums: Sums) -> None:
    """A sample that is counted and was never added."""
    sums._count_C[0] += 1


def odd_sum(sums: Sums) -> None:
    """A sum that no integers add up to, together with the squares."""
    sums._sum_Cd[0, 3] += 1


def not_semidefinite(sums: Sums) -> None:
    """Squares that are less than the means alone demand, by an even number."""
    sums._lower_dd[5, 5] = 2 * np.floor(sums._lower_dd[5, 5] / 8)
    sums._lower_dd[5, 5] += (sums._lower_dd[5, 5] - sums._sum_Cd[:, 5].sum()) % 2


def too_large(sums: Sums) -> None:
    """A square that no feature of twelve bits has."""
    sums._lower_dd[2, 2] += 2.0**40
