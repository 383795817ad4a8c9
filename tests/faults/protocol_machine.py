"""The protocol of acknowledgements against a model of it: duplicates, gaps, batches that overtake each other, stale
epochs, several connections of a client, crashes.

What is under test is a model's real writer on a real ledger; what it is held against are sixteen lines, `Known`. 300
examples are a commit's tests, 20,000 steps are `python -m tests.faults protocol`.
"""

from __future__ import annotations

import asyncio
import atexit
import tempfile
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.engine_parts import Heard, batch, make_writer, submitted, sums_of
from tests.store_rows import MODEL, Fatal

from everlearn.errors import EverlearnError, FencedError, SequenceGapError
from everlearn.sums import Sums
from everlearn_server.engine.batches import Derived, Outcome
from everlearn_server.engine.stacking import Stack
from everlearn_server.store.store import Store

CLIENTS = st.sampled_from(["a", "b", "c"])
AWAY = {"next": 1, "again": 0, "older": -2, "gap": 4, "overtaking": 2, "stale epoch": 1, "epoch to come": 1}
"""How far a batch's number is from the last that was taken."""
STEPS = st.lists(st.tuples(CLIENTS, st.sampled_from(["next", *AWAY])), min_size=2, max_size=12)


def is_refused(client: str, sequence: int) -> bool:
    """Whether that batch is one that cannot be decoded: the same each time it is sent."""
    return (sequence + ord(client)) % 5 == 0


@cache
def store() -> Store:
    """One for all, until the process ends: each machine has a model of its own in it. In memory where that can be;
    disks are tested elsewhere."""
    memory = Path("/dev/shm")
    folder = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
    atexit.register(folder.cleanup)
    return Store.open(Path(folder.name) / "data", on_fatal=Fatal())


@dataclass
class Known:
    """What the model knows of a client: that is the whole protocol."""

    epoch: int = 0
    integrated: int = 0
    told: int = 0
    connected: bool = False
    heard: list[Heard] = field(default_factory=list)

    def answer(self, epoch: int, sequence: int) -> type[Exception] | bool:
        """What a batch must meet: an error, or whether it is a duplicate."""
        if epoch != self.epoch:
            return FencedError
        if sequence > self.integrated + 1:
            return SequenceGapError
        if sequence <= self.integrated:
            return True
        self.integrated = sequence
        return False


class WriterMachine(RuleBasedStateMachine):
    """A model, one writer after the other, three clients."""

    runs = steps = batches = 0
    """Of all machines of the process."""

    def __init__(self) -> None:
        super().__init__()
        WriterMachine.runs += 1  # hypothesis makes some more than it is asked for
        self.runner = asyncio.Runner()
        self.fatal = Fatal()
        self.store = store()
        self.model = replace(MODEL, name=f"model-{WriterMachine.runs}", uid=f"u{WriterMachine.runs}")
        self.clients = {name: Known() for name in "abc"}
        self.writer = self.runner.run(self.made())

    @initialize()
    def all_connect(self) -> None:
        for client in self.clients:
            self.connect(client, goes_on=False)

    async def made(self):  # type: ignore[no-untyped-def]
        return await make_writer(self.store, model=self.model, on_fatal=self.fatal, commit_share=0.5)

    @rule(client=CLIENTS, goes_on=st.booleans())
    def connect(self, client: str, goes_on: bool) -> None:
        known, heard = self.clients[client], Heard()
        epoch = known.epoch if goes_on else 0
        tail = self.runner.run(self.writer.open_stream(client, epoch, heard))
        assert tail.epoch == (known.epoch if epoch else known.epoch + 1)
        assert known.told <= tail.durable <= tail.integrated == known.integrated
        known.epoch = tail.epoch
        for older in known.heard:  # of this life or of one before; each is told once
            assert len(older.ends) == 1
        if known.heard and known.connected:
            assert isinstance(known.heard[-1].ends[0], FencedError)
        known.heard.append(heard)
        known.connected = True

    @rule(client=CLIENTS, epoch=st.integers(1, 9))
    def connect_with_a_wrong_epoch(self, client: str, epoch: int) -> None:
        if epoch == self.clients[client].epoch:
            return
        try:
            self.runner.run(self.writer.open_stream(client, epoch, Heard()))
        except FencedError:
            return
        raise AssertionError("an epoch that is over was taken up")

    @rule(steps=STEPS)
    def send(self, steps: list[tuple[str, str]]) -> None:
        self.runner.run(self.streamed(steps))

    async def streamed(self, steps: list[tuple[str, str]]) -> None:
        expected, futures = [], []
        WriterMachine.batches += len(steps)
        for client, kind in steps:
            known = self.clients[client]
            sequence = max(1, known.integrated + AWAY[kind])
            epoch = known.epoch + {"stale epoch": -1, "epoch to come": 1}.get(kind, 0)
            refused = is_refused(client, sequence)
            expected.append(known.answer(epoch, sequence))
            futures.append(submitted(self.writer, batch(client, sequence, epoch=epoch, refused=refused)))
        for wanted, outcome in zip(expected, await asyncio.gather(*futures, return_exceptions=True), strict=True):
            if isinstance(wanted, bool):
                assert isinstance(outcome, Outcome), outcome
                assert outcome.duplicate == wanted
            else:
                assert isinstance(outcome, wanted), outcome

    @rule()
    def rest(self) -> None:
        self.runner.run(asyncio.sleep(0.01))

    @rule(orderly=st.booleans())
    def restart(self, orderly: bool) -> None:
        """A stop, or a crash: then everything that is not durable is gone, and each client resends from there."""
        self.runner.run(self.writer.close(commit=orderly))
        rows = self.runner.run(self.store.ledger.streams(self.model.name))
        for client, row in rows.items():
            known = self.clients[client]
            self.hear(client)
            assert known.told <= row.durable_sequence <= known.integrated
            assert row.durable_sequence == known.integrated or not orderly
            known.integrated, known.connected = row.durable_sequence, False
        self.writer = self.runner.run(self.made())
        self.sums_are_those_of_what_was_accepted()

    def hear(self, client: str) -> None:
        """A watermark never falls, and an older connection hears no more than that it is over."""
        known = self.clients[client]
        for heard in known.heard:
            assert heard.durable == sorted(set(heard.durable))
            known.told = max([known.told, *heard.durable])

    @invariant()
    def nothing_broke(self) -> None:
        WriterMachine.steps += 1
        assert self.fatal.errors == []
        for client in self.clients:
            self.hear(client)

    @invariant()
    def sums_are_those_of_what_was_accepted(self) -> None:
        accepted = [
            (client, sequence)
            for client, known in self.clients.items()
            for sequence in range(1, known.integrated + 1)
            if not is_refused(client, sequence)
        ]
        assert self.writer.learner.sums.digest() == sums_of(*accepted).digest()
        assert self.writer.prequential.tested == self.writer.learner.sums.samples

    def teardown(self) -> None:
        try:
            self.restart(orderly=True)
            data = self.runner.run(self.store.ledger.memory(self.model.name))
            assert data is None or Sums.from_bytes(data).digest() == self.writer.learner.sums.digest()
            self.runner.run(self.writer.close())
        finally:
            self.runner.close()


class ForgetfulMachine(WriterMachine):
    """The control: its writers deduplicate against what is durable, and forget what is staged."""

    async def made(self):  # type: ignore[no-untyped-def]
        writer = await super().made()
        integrate = writer.work.take

        def forgetful(item: Derived, stack: Stack | None = None) -> Outcome | EverlearnError:
            tail = writer.work.tails[item.client]
            if item.epoch == tail.epoch and tail.durable < item.sequence <= tail.integrated:
                tail.integrated = item.sequence - 1
            return integrate(item, stack)

        writer.work.take = forgetful
        return writer


def sized(examples: int, steps: int) -> settings:
    """So many examples of so many steps each; the same ones each time."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
