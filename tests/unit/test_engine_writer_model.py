"""The writer against a model of it: any interleaving of clients, resends, gaps, stale epochs and crashes."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from tests.engine_parts import Heard, batch, make_writer, sums_of
from tests.store_rows import Fatal

from everlearn.errors import EverlearnError, FencedError, SequenceGapError
from everlearn.sums import Sums
from everlearn_server.engine.batches import Derived, Outcome
from everlearn_server.store.store import Store

CLIENTS = st.sampled_from(["a", "b", "c"])
STEPS = st.lists(
    st.tuples(CLIENTS, st.sampled_from(["next", "again", "older", "gap", "stale epoch"])), min_size=1, max_size=8
)


def is_refused(client: str, sequence: int) -> bool:
    """Whether that batch is one that cannot be decoded: the same each time it is sent."""
    return (sequence + ord(client)) % 5 == 0


@dataclass
class Known:
    """What the model knows of a client: that is the whole protocol."""

    epoch: int = 0
    integrated: int = 0
    told: int = 0
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
    """One store, one writer after the other, three clients."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.fatal = Fatal()
        self.store = Store.open(Path(self.folder.name) / "data", on_fatal=self.fatal)
        self.clients = {name: Known() for name in "abc"}
        self.writer = self.runner.run(self.made())

    async def made(self):  # type: ignore[no-untyped-def]
        return await make_writer(self.store, on_fatal=self.fatal, commit_share=0.5)

    @rule(client=CLIENTS, goes_on=st.booleans())
    def connect(self, client: str, goes_on: bool) -> None:
        known, heard = self.clients[client], Heard()
        epoch = known.epoch if goes_on else 0
        tail = self.runner.run(self.writer.open_stream(client, epoch, heard))
        assert tail.epoch == (known.epoch if epoch else known.epoch + 1)
        assert known.told <= tail.durable <= tail.integrated == known.integrated
        known.epoch = tail.epoch
        known.heard.append(heard)

    @rule(client=CLIENTS, epoch=st.integers(1, 9))
    def connect_with_a_wrong_epoch(self, client: str, epoch: int) -> None:
        if epoch == self.clients[client].epoch:
            return
        try:
            self.runner.run(self.writer.open_stream(client, epoch, Heard()))
        except FencedError:
            return
        raise AssertionError("an epoch that is over was taken up")

    @precondition(lambda self: any(known.epoch for known in self.clients.values()))
    @rule(steps=STEPS)
    def stream(self, steps: list[tuple[str, str]]) -> None:
        self.runner.run(self.streamed([step for step in steps if self.clients[step[0]].epoch]))

    async def streamed(self, steps: list[tuple[str, str]]) -> None:
        expected, futures = [], []
        for client, kind in steps:
            known = self.clients[client]
            away = {"next": 1, "again": 0, "older": -2, "gap": 3, "stale epoch": 1}[kind]
            sequence = max(1, known.integrated + away)
            epoch = known.epoch + (1 if kind == "stale epoch" else 0)
            refused = is_refused(client, sequence)
            expected.append(known.answer(epoch, sequence))
            futures.append(self.writer.submit(batch(client, sequence, epoch=epoch, refused=refused)))
        for wanted, outcome in zip(expected, await asyncio.gather(*futures, return_exceptions=True), strict=True):
            if isinstance(wanted, bool):
                assert isinstance(outcome, Outcome), outcome
                assert outcome.duplicate == wanted
            else:
                assert isinstance(outcome, wanted), outcome

    @rule()
    def rest(self) -> None:
        self.runner.run(asyncio.sleep(0.02))

    @rule(orderly=st.booleans())
    def restart(self, orderly: bool) -> None:
        """A stop, or a crash: then everything that is not durable is gone, and each client resends from there."""
        self.runner.run(self.writer.close(commit=orderly))
        rows = self.runner.run(self.store.ledger.streams("digits"))
        for client, row in rows.items():
            known = self.clients[client]
            self.hear(client)
            assert known.told <= row.durable_sequence <= known.integrated
            assert row.durable_sequence == known.integrated or not orderly
            known.integrated = row.durable_sequence
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
            data = self.runner.run(self.store.ledger.memory("digits"))
            assert data is None or Sums.from_bytes(data).digest() == self.writer.learner.sums.digest()
            self.runner.run(self.writer.close())
        finally:
            self.store.close()
            self.runner.close()
            self.folder.cleanup()


class ForgetfulMachine(WriterMachine):
    """The control: its writers deduplicate against what is durable, and forget what is staged."""

    async def made(self):  # type: ignore[no-untyped-def]
        writer = await super().made()
        integrate = writer._integrate

        def forgetful(item: Derived) -> Outcome | EverlearnError:
            tail = writer._tails[item.client]
            if item.epoch == tail.epoch and tail.durable < item.sequence <= tail.integrated:
                tail.integrated = item.sequence - 1
            return integrate(item)

        writer._integrate = forgetful
        return writer


SETTINGS = settings(
    max_examples=25,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
WriterMachine.TestCase.settings = SETTINGS
test_any_interleaving_counts_every_accepted_batch_once = WriterMachine.TestCase


def test_control_the_model_catches_a_writer_that_forgets_what_is_staged() -> None:
    once = settings(SETTINGS, phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(ForgetfulMachine, settings=once)
