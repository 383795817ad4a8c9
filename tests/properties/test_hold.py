"""Tier `aggregate`: any two states that were persisted or shown are the same, or k samples of m clients apart."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine_parts import Heard, SlowLedger, batch, features_of, make_writer, submitted
from tests.store_rows import Fatal

from everlearn.errors import PreconditionError
from everlearn_server.engine.batches import Outcome
from everlearn_server.engine.hold import Hold
from everlearn_server.engine.writer import ModelWriter
from everlearn_server.store.store import Store

CLASS_SAMPLES = 8
Tails = Mapping[str, int]
Refused = set[tuple[str, int]]


def samples_of(tails: Tails, refused: Refused) -> dict[str, int]:
    """Client -> its samples in a state."""
    return {
        client: sum(len(features_of(client, n)[1]) for n in range(1, last + 1) if (client, n) not in refused)
        for client, last in tails.items()
    }


def apart(one: Tails, other: Tails, refused: Refused) -> tuple[int, int]:
    """(samples, clients) by which two states differ."""
    ours, theirs = samples_of(one, refused), samples_of(other, refused)
    moved = [abs(ours.get(client, 0) - theirs.get(client, 0)) for client in ours.keys() | theirs.keys()]
    return sum(moved), sum(count > 0 for count in moved)


class Run:
    """Clients that send, crash with the server, and send again from where they are durable."""

    def __init__(self, store: Store, hold: Hold | None) -> None:
        self.store, self.hold = store, hold
        self.ledger = SlowLedger(store.ledger, 0.0)
        self.refused: Refused = set()
        self.states: list[Tails] = [{}]
        self.writer: ModelWriter

    async def start(self) -> None:
        self.writer = await make_writer(self.store, ledger=self.ledger, hold=self.hold)

    async def send(self, client: str, *, refused: bool) -> None:
        tail = self.writer.work.tails.get(client)
        if tail is None or client not in self.writer._listeners:
            tail = await self.writer.open_stream(client, 0, Heard())
        sequence = self.writer.work.tails[client].integrated + 1
        # What a batch is stays with its number: one that is sent again after a crash is the same.
        refused = (client, sequence) in self.refused or (refused and sequence % 5 == 0)
        if refused:
            self.refused.add((client, sequence))
        epoch = self.writer.work.tails[client].epoch
        outcome = await submitted(self.writer, batch(client, sequence, epoch=epoch, refused=refused))
        assert isinstance(outcome, Outcome)

    async def look(self) -> None:
        """What a publisher would meet now."""
        for _ in range(8):  # a commit may be under way
            await asyncio.sleep(0.001)
        learned, tails = await self.writer.learned()
        self.states.append(dict(tails))
        try:
            head = learned.solve().head
        except PreconditionError:
            return
        if self.hold is None:
            return
        counts = dict(zip(learned.labels, learned.count_C.tolist(), strict=True))
        assert list(counts) == list(head.labels) == list(self.writer.held.shown.labels)
        assert min(counts.values()) >= CLASS_SAMPLES
        rows = self.writer.held.shown.record.report()["classes"]
        assert all(row["samples"] >= CLASS_SAMPLES for row in rows if row["label"].startswith("class"))

    def persisted(self) -> list[Tails]:
        found, tails = [], dict[str, int]()
        for commit in self.ledger.commits:
            tails = {**tails, **{client: row.durable_sequence for client, row in commit.streams.items()}}
            found.append(tails)
        return found


def run(steps: list[tuple[str, str]], hold: Hold | None) -> tuple[list[Tails], Refused]:
    """States that were persisted or shown."""

    async def scenario(store: Store) -> Run:
        it = Run(store, hold)
        await it.start()
        for what, client in steps:
            if what == "restart":
                await it.writer.close(commit=client != "a")  # an orderly end, or as good as a crash
                await it.start()
            elif what == "look":
                await it.look()
            else:
                await it.send(client, refused=what == "refused")
        await it.look()
        await it.writer.close()
        return it

    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "data", on_fatal=Fatal()) as store:
        it = asyncio.run(asyncio.wait_for(scenario(store), 240))
    return [*it.states, *it.persisted()], it.refused


STEP = st.tuples(
    st.sampled_from(["learn", "learn", "learn", "learn", "learn", "learn", "refused", "look", "restart"]),
    st.sampled_from("abc"),
)


@settings(max_examples=15, deadline=None)
@given(
    steps=st.lists(STEP, min_size=20, max_size=70),
    samples=st.sampled_from([2, 5, 12]),
    clients=st.sampled_from([1, 2, 3]),
)
def test_no_two_states_that_rested_or_were_shown_differ_by_fewer_than_the_minima(
    steps: list[tuple[str, str]], samples: int, clients: int
) -> None:
    hold = Hold(samples=samples, clients=clients, class_samples=CLASS_SAMPLES)
    states, refused = run(cast(list[tuple[str, str]], steps), hold)
    for one, other in itertools.combinations(states, 2):
        count, of = apart(one, other, refused)
        assert (count, of) == (0, 0) or (count >= samples and of >= clients), (one, other)


def test_without_a_hold_states_are_single_batches_apart() -> None:
    """The control: the check above does find what it is for."""
    steps = [("learn", "a"), ("look", ""), ("learn", "b"), ("look", ""), ("learn", "a"), ("look", "")]
    states, refused = run(steps, None)
    assert min(apart(one, other, refused) for one, other in itertools.combinations(states, 2) if one != other) < (4, 2)
