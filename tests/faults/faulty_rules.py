"""Faults of faulty_server.py that break one rule of the protocol or of the store.

unfenced          a broken server: an older connection of a client goes on beside the newer one
newest_wins       a broken server: takes what comes with an earlier wall clock than a client's last for old news
any_value         a broken server: learns what is no number as zero
alias_kept:N      SIGKILL right after the N-th move of an alias by itself: as of a server that moves it too early
unstored          a broken server: rows name files that are written later
unlocked          a broken server: takes a data folder and a database that another one has
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np


def unfenced() -> None:
    from everlearn_server.engine.batches import Derived, StreamListener, Tail
    from everlearn_server.engine.integration import Integration
    from everlearn_server.engine.writer import ModelWriter

    take, open_stream = Integration.take, ModelWriter.open_stream

    async def opened(self: ModelWriter, client: str, epoch: int, listener: StreamListener) -> Tail:
        self._listeners.pop(client, None)
        return await open_stream(self, client, 0, listener)

    def taken(self: Integration, batch: Derived, _: Any = None) -> Any:
        return take(self, replace(batch, epoch=self.tails[batch.client].epoch))

    ModelWriter.open_stream = opened  # type: ignore[method-assign]
    Integration.take = taken  # type: ignore[method-assign]


def newest_wins() -> None:
    from everlearn_server.engine.batches import Derived, Outcome
    from everlearn_server.engine.integration import Integration

    take, last_s = Integration.take, dict[str, float]()

    def by_the_clock(self: Integration, batch: Derived, stack: Any = None) -> Any:
        now_s, tail = time.time(), self.tails[batch.client]
        if now_s < last_s.get(batch.client, 0.0) and batch.sequence == tail.integrated + 1:
            tail.integrated = batch.sequence
            return Outcome(sequence=batch.sequence, duplicate=True)
        last_s[batch.client] = now_s
        return take(self, batch, stack)

    Integration.take = by_the_clock  # type: ignore[method-assign]


def any_value() -> None:
    from everlearn.inputs import forms
    from everlearn.values import FeatureScale
    from everlearn_server.engine.decode import Decoder

    quantise = FeatureScale.quantise

    def quantised(self: FeatureScale, features_Bd: Any) -> Any:
        return quantise(self, np.nan_to_num(features_Bd, posinf=0.0, neginf=0.0))

    forms._check_floats = lambda *_: None
    Decoder.check_features = lambda *_, **__: None  # type: ignore[method-assign]
    FeatureScale.quantise = quantised  # type: ignore[method-assign]


def alias_kept(moves: str) -> None:
    from everlearn_server.store.catalog import Catalog

    set_alias, left = Catalog.set_alias, int(moves)

    async def killed(self: Catalog, model: str, alias: str, number: int, reason: str) -> None:
        nonlocal left
        await set_alias(self, model, alias, number, reason)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    Catalog.set_alias = killed  # type: ignore[method-assign]


def unstored() -> None:
    from everlearn_server.store.blobs import Blobs
    from everlearn_server.store.catalog import Catalog

    put_export = Catalog.put_export

    async def put(self: Blobs, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self.hold([digest])
        return digest

    async def named(self: Catalog, row: Any) -> None:
        await put_export(self, row)
        os.kill(os.getpid(), signal.SIGKILL)  # its files would be next

    Blobs.put, Blobs.require, Catalog.put_export = put, lambda *_: None, named  # type: ignore[method-assign]


def unlocked() -> None:
    from everlearn_server.store import database, store

    class NoLock:
        def __init__(self, folder: Path) -> None: ...

        def release(self) -> None: ...

    store.FolderLock = NoLock  # type: ignore[misc,assignment]  # the point of it
    shared = {"locking_mode": ("locking_mode", "NORMAL", "normal")}  # else SQLite refuses, where our lock does not
    database.PRAGMAS = tuple(shared.get(row[0], row) for row in database.PRAGMAS)


FAULTS: dict[str, Callable[..., None]] = {
    "unfenced": unfenced,
    "newest_wins": newest_wins,
    "any_value": any_value,
    "alias_kept": alias_kept,
    "unstored": unstored,
    "unlocked": unlocked,
}
