"""everlearn-server with faults built in: `python faulty_server.py FAULT[:ARGUMENT...][+FAULT...] --data ...`.

alias:N           SIGKILL right before the N-th move of an alias by itself, after what it points to was stored
trusting          a broken server: takes stored bytes for what they should be
kill:POINT:N[:GATE]  SIGKILL at the N-th pass of a step of the protocol; with GATE it says that it is there by the file
                  GATE.reached, and waits for the file GATE. Of the store: `begun`, `before_commit`,
                  `committed`, `blob_half`, `blob_written`, `blob_renamed`; of the wire: `arrived` (a batch was read),
                  `received_due`, `received_sent`, `durable_due`, `durable_sent`
blobs             no fault: sums of any size are a blob, as those of wide features are
journal:FILE      writes what is learned, in the order in which it is: client, sequence, time
twice             a broken server: the second batch of a life is learned twice
clock:SECONDS     the wall clock jumps by so much, forth and back, at every other reading
greedy:ROWS       the trainer's device has no memory for a step on more than so many samples
decoder           decoding a picture that is all black meets an error that nobody foresaw
not_synced        a broken server: SQLite's synchronous=NORMAL
folder_not_synced a broken server: names are never synced
raise:N           the writer meets an error that nobody foresaw at its N-th batch
early[:GATE]      a broken server: says durable when it has received, and commits late, or once the file
                  GATE is there
charged_late:N    a broken server: charges budgets of privacy in a transaction of its own, and is killed before the N-th
by_durable[:GATE] a broken server: deduplicates against what is durable and forgets what is staged, and commits late
and those of faulty_wire.py and faulty_rules.py.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from everlearn.errors import EverlearnError
from everlearn_server import cli

LATE_S = 0.25


class Killer:
    """Ends the process at the N-th pass of one step."""

    def __init__(self, point: str, passes: int, gate: str = "") -> None:
        self.point, self.left, self.gate = point, passes, gate

    def __call__(self, point: str) -> None:
        self.left -= point == self.point
        if point == self.point and self.left == 0:
            if self.gate:
                Path(f"{self.gate}.reached").touch()
                while not Path(self.gate).exists():
                    time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    def is_next(self, point: str) -> bool:
        """Whether this pass of `point` is the last."""
        return point == self.point and self.left == 1


def kill(point: str, passes: str, gate: str = "") -> None:
    from everlearn_server import app
    from everlearn_server.store.store import Store

    killer = Killer(point, int(passes), gate)

    class FailingStore(Store):
        @classmethod
        def open(cls, folder: Path, **options: Any) -> Store:  # type: ignore[override]  # only what app.py passes
            return Store.open(folder, failpoint=killer, **options)

    app.Store = FailingStore  # type: ignore[misc]  # the point of this file
    if point.partition("_")[0] in ("arrived", "received", "durable"):
        watch_the_wire(killer)
    if point == "blob_half":
        write_in_halves(killer)


def watch_the_wire(killer: Killer) -> None:
    from everlearn_server.rpc import learn

    understood, answers = learn._batch, learn.LearnService.learn

    def arrived(batch: Any) -> Any:
        killer("arrived")
        return understood(batch)

    async def watched(self: learn.LearnService, requests: Any, context: Any) -> AsyncIterator[Any]:
        async for answer in answers(self, requests, context):
            kind = answer.WhichOneof("response")
            killer(f"{kind}_due")
            yield answer
            if killer.is_next(f"{kind}_sent"):
                await asyncio.sleep(0.05)  # until it has left the process
            killer(f"{kind}_sent")

    learn._batch = arrived
    learn.LearnService.learn = watched  # type: ignore[method-assign,assignment]  # wrapped


def write_in_halves(killer: Killer) -> None:
    from everlearn_server.store import blobs

    write = os.write

    class HalfOs:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def write(self, descriptor: int, data: Any) -> int:
            written = write(descriptor, data[: len(data) // 2 + 1])
            killer("blob_half")
            return written

    blobs.os = HalfOs()  # type: ignore[assignment]  # as a system that writes little at a time


def blobs() -> None:
    from everlearn_server.store import catalog, client_sums, ledger, payload

    for module in (catalog, client_sums, ledger, payload):
        if hasattr(module, "INLINE_BYTES"):
            module.INLINE_BYTES = min(4096, module.INLINE_BYTES)


def journal(path: str) -> None:
    from everlearn.learners.trainer import Trainer
    from everlearn_server.engine.integration import Integration

    integrate, learn, times_s = Trainer.integrate, Integration._learn, list[float]()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def timed(self: Trainer, quantised_Bd: Any, labels: Any, *, origin: Any = None) -> None:
        integrate(self, quantised_Bd, labels, origin=origin)
        times_s.append(origin.time_s)

    def noted(self: Integration, batch: Any, tail: Any, stack: Any) -> Any:
        outcome = learn(self, batch, tail, stack)
        os.write(file, f"{batch.client} {batch.sequence} {times_s.pop()!r}\n".encode())
        return outcome

    Trainer.integrate = timed  # type: ignore[method-assign]
    Integration._learn = noted  # type: ignore[method-assign]
    os.write(file, b"life\n")


def twice() -> None:
    from everlearn.learners.trainer import Trainer

    integrate, turns = Trainer.integrate, iter(range(1 << 62))

    def again(self: Trainer, quantised_Bd: Any, labels: Any, *, origin: Any = None) -> None:
        for _ in range(2 if next(turns) == 1 else 1):
            integrate(self, quantised_Bd, labels, origin=origin)

    Trainer.integrate = again  # type: ignore[method-assign]


def clock(jump_s: str) -> None:
    import time

    now, readings = time.time, iter(range(1 << 62))
    time.time = lambda: now() + float(jump_s) * (next(readings) % 4 - 1.5)


def greedy(rows: str) -> None:
    from everlearn.learners import trainer
    from everlearn.runtime import process

    trainer.begun.__defaults__ = ("tests.faults.greedy_child",)
    root = str(Path(__file__).parents[2])
    process._ENVIRONMENT |= {"PYTHONPATH": f"{process._ENVIRONMENT['PYTHONPATH']}:{root}", "GREEDY_ROWS": rows}


def decoder() -> None:
    from everlearn_server.engine import decode

    prepared = decode.Decoder.pixels_of

    def pixels_of(self: decode.Decoder, samples: Any, *, field: str) -> Callable[[int], Any]:
        right = prepared(self, samples, field=field)

        def one(index: int) -> Any:
            if not samples.images_BHWC[index].any():
                raise RuntimeError("a decoder's bug")
            return right(index)

        return one

    decode.Decoder.pixels_of = pixels_of  # type: ignore[method-assign]


def not_synced() -> None:
    from everlearn_server.store import database

    changed = {"synchronous": ("synchronous", "NORMAL", 1)}
    database.PRAGMAS = tuple(changed.get(row[0], row) for row in database.PRAGMAS)


def folder_not_synced() -> None:
    from everlearn_server.store import blobs, keys

    blobs.sync_folder = keys.sync_folder = lambda folder: None


def kill_before_alias(moves: str) -> None:
    from everlearn_server.store.catalog import Catalog

    set_alias, left = Catalog.set_alias, int(moves)

    async def killed(self: Catalog, model: str, alias: str, number: int, reason: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        await set_alias(self, model, alias, number, reason)

    Catalog.set_alias = killed  # type: ignore[method-assign]


def trusting() -> None:
    from everlearn_server.store import catalog, ledger, payload
    from everlearn_server.store.blobs import Blobs

    def recover(blobs: Blobs, digest: str, inline: bytes | None, *, what: str) -> bytes:
        return blobs.path(digest).read_bytes() if inline is None else inline

    for module in (catalog, ledger, payload):
        module.recover = recover


def raise_in_writer(batches: str) -> None:
    from everlearn_server.engine.batches import Derived, Outcome
    from everlearn_server.engine.integration import Integration

    integrate, left = Integration.take, int(batches)

    def fail(self: Integration, batch: Derived, stack: Any = None) -> Outcome | EverlearnError:
        nonlocal left
        left -= 1
        if left == 0:
            raise RuntimeError("a bug")
        return integrate(self, batch, stack)

    Integration.take = fail  # type: ignore[method-assign]


def commit_late(gate: str) -> None:
    """Where there is a `gate`, when the test says so: it has seen by then what it has to see."""
    from everlearn_server.engine.pace import Pace

    wait = Pace.wait

    async def late(self: Pace) -> None:
        self._may_at_s = max(self._may_at_s, time.monotonic() + LATE_S)
        await wait(self)
        while gate and not Path(gate).exists():
            await asyncio.sleep(0.01)

    Pace.wait = late  # type: ignore[method-assign]


def early(gate: str = "") -> None:
    from everlearn_server.engine.writer import ModelWriter

    commit_late(gate)
    commit_when_due = ModelWriter._commit_when_due

    def acknowledge(self: ModelWriter) -> None:
        for client, listener in self._listeners.items():
            listener.durable_up_to(self.work.tails[client].integrated, 1)
        commit_when_due(self)

    ModelWriter._commit_when_due = acknowledge  # type: ignore[method-assign]


def by_durable(gate: str = "") -> None:
    from everlearn_server.engine.batches import Derived, Outcome
    from everlearn_server.engine.integration import Integration

    commit_late(gate)
    integrate = Integration.take

    def forgetful(self: Integration, batch: Derived, stack: Any = None) -> Outcome | EverlearnError:
        tail = self.tails[batch.client]
        if tail.durable < batch.sequence <= tail.integrated:
            tail.integrated = batch.sequence - 1
        return integrate(self, batch, stack)

    Integration.take = forgetful  # type: ignore[method-assign]


def charge_late(passes: str) -> None:
    from everlearn_server.store import ledger
    from everlearn_server.store.rows import Commit, Receipt

    put_spends, make_durable = ledger._put_spends, ledger.Ledger._commit

    def charge_after(self: ledger.Ledger, commit: Commit) -> Receipt:
        receipt = make_durable(self, commit)
        with self._database.transaction() as connection:
            put_spends(connection, commit)
        return receipt

    ledger._put_spends = lambda connection, commit: None
    ledger.Ledger._commit = charge_after  # type: ignore[method-assign]
    kill("committed", passes)


FAULTS: dict[str, Callable[..., None]] = {
    "kill": kill,
    "trusting": trusting,
    "alias": kill_before_alias,
    "blobs": blobs,
    "journal": journal,
    "twice": twice,
    "clock": clock,
    "greedy": greedy,
    "decoder": decoder,
    "not_synced": not_synced,
    "folder_not_synced": folder_not_synced,
    "raise": raise_in_writer,
    "early": early,
    "charged_late": charge_late,
    "by_durable": by_durable,
}


def build_in(faults: str) -> None:
    """Each of them, separated by `+`."""
    from tests.faults import faulty_rules, faulty_wire

    known = FAULTS | faulty_wire.FAULTS | faulty_rules.FAULTS
    for spec in faults.split("+"):
        fault, *arguments = spec.split(":")
        known[fault](*arguments)


def main() -> None:
    """Builds the faults in and runs the server."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    build_in(sys.argv.pop(1))
    cli.main()


if __name__ == "__main__":
    main()
