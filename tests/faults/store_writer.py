"""A writer that learns from two clients until something ends it; run as a process by test_store_crash.py.

The memory is a tally of batches a client, so that the memory alone says which batches it holds. Prints `durable CLIENT
SEQUENCE` after each commit and never before: what is printed has been acknowledged.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

from tests.store_rows import group, version, with_model

from everlearn_server.store import ledger
from everlearn_server.store.payload import Payload
from everlearn_server.store.rows import Commit, StreamRow
from everlearn_server.store.store import Store

CLIENTS = ("a", "b")


def tally(memory: bytes | None) -> dict[str, int]:
    """Batches in the memory, per client."""
    return {} if memory is None else dict(json.loads(memory))


def swollen(counts: dict[str, int], size: int) -> bytes:
    """The tally as a memory of about `size` bytes."""
    return json.dumps(counts, sort_keys=True).encode() + b" " * size


class Killer:
    """Ends this process with SIGKILL at the n-th pass of one failpoint."""

    def __init__(self, point: str, countdown: int) -> None:
        self.point, self.countdown = point, countdown

    def __call__(self, point: str) -> None:
        self.countdown -= point == self.point
        if point == self.point and self.countdown == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def split_the_transaction(store: Store) -> None:
    """The control: commits the memory first and the watermarks in a transaction of their own."""
    together = store.ledger._transact
    put_streams = ledger._put_streams
    ledger._put_streams = lambda connection, commit, commit_id: None

    def apart(commit: Commit, *payloads: Payload) -> Any:
        result = together(commit, *payloads)
        store.ledger._failpoint("between")
        with store._database.transaction() as connection:
            put_streams(connection, commit, result[0])
        return result

    store.ledger._transact = apart


async def learn(store: Store, *, until: int, size: int) -> None:
    """Commits groups of one to three batches a client, each with a version, until both clients are done."""
    tails = {client: (await store.ledger.open_stream("digits", client)) for client in CLIENTS}
    counts = dict.fromkeys(CLIENTS, 0) | tally(await store.ledger.memory("digits"))
    step = 0
    while min(row.durable_sequence for row in tails.values()) < until:
        step += 1
        for position, client in enumerate(CLIENTS):
            row = tails[client]
            batches = min(1 + (step + position) % 3, until - row.durable_sequence)
            counts[client] += batches
            tails[client] = StreamRow(epoch=row.epoch, durable_sequence=row.durable_sequence + batches)
        known = {client: row.durable_sequence for client, row in (await store.ledger.streams("digits")).items()}
        moved = {c: (row.epoch, row.durable_sequence) for c, row in tails.items() if row.durable_sequence > known[c]}
        number = await store.catalog.reserve_versions("digits", 1)
        solved = version(number, head=json.dumps(counts).encode())
        whole = group(store, moved, memory=swollen(counts, size), solved=solved, aliases={"latest": number})
        await store.ledger.commit(whole)
        for client, (_, sequence) in moved.items():
            print("durable", client, sequence, flush=True)


def main() -> None:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--until", type=int, default=12)
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--kill-at", default="")
    parser.add_argument("--pass", dest="countdown", type=int, default=3)
    parser.add_argument("--split", action="store_true")
    parser.add_argument("--file-limit", type=int, default=0)
    chosen = parser.parse_args()
    store = Store.open(chosen.folder, failpoint=Killer(chosen.kill_at, chosen.countdown))
    if not asyncio.run(store.catalog.models()):
        with_model(store)
    if chosen.split:
        split_the_transaction(store)
    if chosen.file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (chosen.file_limit, chosen.file_limit))
    asyncio.run(learn(store, until=chosen.until, size=chosen.size))
    store.close()


if __name__ == "__main__":
    main()
