"""everlearn-server with one fault built in: `python faulty_server.py FAULT[:ARGUMENT...] --data ...`.

kill:POINT:N      SIGKILL at the N-th pass of a failpoint of the store (`begun`, `before_commit`, `committed`, ...)
raise:N           the writer meets an error that nobody foresaw at its N-th batch
early             a broken server: says durable when it has received, and commits late
by_durable        a broken server: deduplicates against what is durable and forgets what is staged, and commits late
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from everlearn.errors import EverlearnError
from everlearn_server import cli

LATE_S = 0.25


def kill(point: str, passes: str) -> None:
    from everlearn_server import app
    from everlearn_server.store.store import Store

    left = int(passes)

    def failpoint(name: str) -> None:
        nonlocal left
        left -= name == point
        if name == point and left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    class FailingStore(Store):
        @classmethod
        def open(cls, folder: Path, **options: object) -> Store:  # type: ignore[override]  # only what app.py passes
            return Store.open(folder, failpoint=failpoint)

    app.Store = FailingStore  # type: ignore[misc]  # the point of this file


def raise_in_writer(batches: str) -> None:
    from everlearn_server.engine.batches import Derived, Outcome
    from everlearn_server.engine.writer import ModelWriter

    integrate, left = ModelWriter._integrate, int(batches)

    def fail(self: ModelWriter, batch: Derived) -> Outcome | EverlearnError:
        nonlocal left
        left -= 1
        if left == 0:
            raise RuntimeError("a bug")
        return integrate(self, batch)

    ModelWriter._integrate = fail  # type: ignore[method-assign]


def commit_late() -> None:
    from everlearn_server.engine.writer import ModelWriter

    commit_after = ModelWriter._commit_after

    async def late(self: ModelWriter, delay_s: float) -> None:
        await commit_after(self, max(delay_s, LATE_S))

    ModelWriter._commit_after = late  # type: ignore[method-assign]


def early() -> None:
    from everlearn_server.engine.writer import ModelWriter

    commit_late()
    commit_when_due = ModelWriter._commit_when_due

    def acknowledge(self: ModelWriter) -> None:
        for client, listener in self._listeners.items():
            listener.durable_up_to(self._tails[client].integrated, 1)
        commit_when_due(self)

    ModelWriter._commit_when_due = acknowledge  # type: ignore[method-assign]


def by_durable() -> None:
    from everlearn_server.engine.batches import Derived, Outcome
    from everlearn_server.engine.writer import ModelWriter

    commit_late()
    integrate = ModelWriter._integrate

    def forgetful(self: ModelWriter, batch: Derived) -> Outcome | EverlearnError:
        tail = self._tails[batch.client]
        if tail.durable < batch.sequence <= tail.integrated:
            tail.integrated = batch.sequence - 1
        return integrate(self, batch)

    ModelWriter._integrate = forgetful  # type: ignore[method-assign]


FAULTS: dict[str, Callable[..., None]] = {
    "kill": kill,
    "raise": raise_in_writer,
    "early": early,
    "by_durable": by_durable,
}


def main() -> None:
    """Builds the fault in and runs the server."""
    fault, *arguments = sys.argv.pop(1).split(":")
    FAULTS[fault](*arguments)
    cli.main()


if __name__ == "__main__":
    main()
