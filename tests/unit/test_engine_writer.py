"""The single writer: what counts, what does not, what is durable when it says so, and how it ends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.engine_parts import (
    DIM,
    Heard,
    SlowLedger,
    batch,
    features_of,
    learn,
    make_writer,
    submitted,
    sums_of,
    until_durable,
    writer_of,
)
from tests.store_rows import Fatal, group

from everlearn.errors import FencedError, PreconditionError, SequenceGapError, UnavailableError
from everlearn.memories.statistics import Statistics
from everlearn.metrics.prequential import Prequential
from everlearn.sums import Sums
from everlearn.values import QuantisedBd
from everlearn_server.engine.batches import Outcome
from everlearn_server.engine.committing import in_turn
from everlearn_server.store.store import Store

Scenario = Callable[[Store], Coroutine[Any, Any, None]]


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Scenario], None]:
    """Runs a scenario on a fresh store."""

    def on_a_store(scenario: Scenario) -> None:
        with Store.open(tmp_path / "data", on_fatal=Fatal()) as store:
            asyncio.run(asyncio.wait_for(scenario(store), 30))

    return on_a_store


def numbers(outcomes: Sequence[Outcome | BaseException]) -> list[tuple[int, bool]]:
    """(sequence, duplicate) of each."""
    assert all(isinstance(outcome, Outcome) for outcome in outcomes), outcomes
    return [(outcome.sequence, outcome.duplicate) for outcome in outcomes if isinstance(outcome, Outcome)]


async def stored_digest(store: Store) -> str:
    data = await store.ledger.memory("digits")
    assert data is not None
    return Sums.from_bytes(data).digest()


def test_a_batch_sent_twice_counts_once_and_says_so(run: Callable[[Scenario], None]) -> None:
    async def scenario(store: Store) -> None:
        async with writer_of(store) as writer:
            await writer.open_stream("a", 0, Heard())
            outcomes = await learn(writer, batch("a", 1), batch("a", 1), batch("a", 2), batch("a", 1))
            assert numbers(outcomes) == [(1, False), (1, True), (2, False), (1, True)]
            assert writer.learner.sums == sums_of(("a", 1), ("a", 2))
            assert writer.prequential.tested == writer.learner.sums.samples

    run(scenario)


def test_a_gap_is_refused_with_what_is_expected_and_spends_nothing(run: Callable[[Scenario], None]) -> None:
    async def scenario(store: Store) -> None:
        async with writer_of(store) as writer:
            await writer.open_stream("a", 0, Heard())
            _, gap, late = await learn(writer, batch("a", 1), batch("a", 3), batch("a", 2))
            assert isinstance(gap, SequenceGapError)
            assert gap.expected == 2
            assert numbers([late]) == [(2, False)]
            assert writer.learner.sums == sums_of(("a", 1), ("a", 2))

    run(scenario)


def test_batches_of_an_older_epoch_are_fenced_and_have_no_effect(run: Callable[[Scenario], None]) -> None:
    async def scenario(store: Store) -> None:
        async with writer_of(store) as writer:
            assert (await writer.open_stream("a", 0, Heard())).epoch == 1
            assert (await writer.open_stream("a", 0, Heard())).epoch == 2
            stale, present = await learn(writer, batch("a", 1, epoch=1), batch("a", 1, epoch=2))
            assert isinstance(stale, FencedError)
            assert numbers([present]) == [(1, False)]
            for epoch in (1, 3):
                with pytest.raises(FencedError):
                    await writer.open_stream("a", epoch, Heard())
            with pytest.raises(FencedError):
                await writer.open_stream("unknown", 1, Heard())

    run(scenario)


def test_a_refused_batch_spends_its_sequence_and_that_is_durable(run: Callable[[Scenario], None]) -> None:
    async def scenario(store: Store) -> None:
        heard = Heard()
        async with writer_of(store) as writer:
            await writer.open_stream("a", 0, heard)
            outcomes = await learn(writer, batch("a", 1), batch("a", 2, refused=True), batch("a", 3))
            assert [getattr(outcome, "refusal", None) is not None for outcome in outcomes] == [False, True, False]
            await until_durable(writer, "a", 3)
        [row] = await store.ledger.rejects("digits")
        assert (row.client, row.sequence, row.field) == ("a", 2, "batch.samples.encoded_images.images[0]")
        async with writer_of(store) as again:
            tail = await again.open_stream("a", 0, Heard())
            assert tail.durable == 3
            assert numbers(await learn(again, batch("a", 2, epoch=2))) == [(2, True)]
            assert again.learner.sums == sums_of(("a", 1), ("a", 3))

    run(scenario)


def test_two_connections_of_one_client_count_each_batch_once_and_the_older_is_told(
    run: Callable[[Scenario], None],
) -> None:
    async def scenario(store: Store) -> None:
        older, newer = Heard(), Heard()
        async with writer_of(store, commit_share=0.02) as writer:
            await writer.open_stream("a", 0, older)
            staged = [submitted(writer, batch("a", sequence)) for sequence in (1, 2, 3)]
            tail = await writer.open_stream("a", 1, newer)
            resent = [submitted(writer, batch("a", sequence)) for sequence in range(tail.durable + 1, 6)]
            late = submitted(writer, batch("a", 4))
            await asyncio.gather(*staged, *resent, late)
            await until_durable(writer, "a", 5)
            writer.close_stream("a", older)  # the older connection's handler ends later
            assert writer.learner.sums == sums_of(*(("a", sequence) for sequence in range(1, 6)))
            assert newer.durable[-1] == 5
            assert [type(error) for error in older.ends] == [FencedError]
            assert newer.ends == []

    run(scenario)


def test_a_connection_that_has_left_is_told_nothing_more(run: Callable[[Scenario], None]) -> None:
    async def scenario(store: Store) -> None:
        heard = Heard()
        async with writer_of(store) as writer:
            await writer.open_stream("a", 0, heard)
            writer.close_stream("a", heard)
            await learn(writer, batch("a", 1))
            await until_durable(writer, "a", 1)
        assert (heard.durable, heard.ends) == ([], [])

    run(scenario)


def test_durable_is_said_only_after_the_commit(run: Callable[[Scenario], None]) -> None:
    async def scenario(store: Store) -> None:
        order: list[tuple[str, int]] = []
        ledger = SlowLedger(store.ledger, 0.02)
        commit = ledger.commit

        async def observed(group: Any) -> Any:
            receipt = await commit(group)
            order.append(("committed", group.streams["a"].durable_sequence))
            return receipt

        ledger.commit = observed  # type: ignore[method-assign]
        async with writer_of(store, ledger=ledger) as writer:
            await writer.open_stream("a", 0, Heard(on_durable=lambda sequence: order.append(("told", sequence))))
            for sequence in range(1, 6):
                await learn(writer, batch("a", sequence))
                await asyncio.sleep(0.01)
        assert order[-1] == ("told", 5)
        assert order[::2] == [("committed", sequence) for _, sequence in order[1::2]]

    run(scenario)


@pytest.mark.parametrize(("share", "most"), [(0.1, 1.0), (1.0, None)])
def test_commits_keep_the_disk_busy_for_the_declared_share_of_time_only(
    run: Callable[[Scenario], None], share: float, most: float | None
) -> None:
    async def scenario(store: Store) -> None:
        disk_s, sequence = 0.02, 0
        ledger = SlowLedger(store.ledger, disk_s)
        writer = await make_writer(store, ledger=ledger, commit_share=share)
        await writer.open_stream("a", 0, Heard())
        begun_s = time.monotonic()

        def within_rule() -> bool:
            commits = len(ledger.commits)  # first, for no commit may come between
            return commits <= 1 + (time.monotonic() - begun_s) * 0.1 / disk_s  # the first one waits for nothing

        ends_s = 1.2 if most else 0.0
        # A loaded machine may need longer; the control goes on until there are more than the rule allows.
        while time.monotonic() - begun_s < ends_s or len(ledger.commits) < 2 or (most is None and within_rule()):
            sequence += 1
            await learn(writer, batch("a", sequence))
            await asyncio.sleep(0.002)
        is_within = within_rule()
        await writer.close()
        assert is_within is (most is not None)
        assert await stored_digest(store) == sums_of(*(("a", n) for n in range(1, sequence + 1))).digest()

    run(scenario)


class SlowRecord(Prequential):
    """Notes who serialises it, and takes its time."""

    def __init__(self, delay_s: float) -> None:
        super().__init__()
        self.delay_s = delay_s
        self.threads: list[int] = []

    def to_dict(self) -> dict[str, Any]:
        self.threads.append(threading.get_ident())
        time.sleep(self.delay_s)
        return super().to_dict()


def test_a_large_record_is_serialised_beside_the_event_loop_and_counts_in_the_pace(
    run: Callable[[Scenario], None],
) -> None:
    async def scenario(store: Store) -> None:
        record, ledger = SlowRecord(0.05), SlowLedger(store.ledger, 0)
        async with writer_of(store, ledger=ledger, commit_share=0.1) as writer:
            writer.work.prequential = record
            await writer.open_stream("a", 0, Heard())
            begun_s = time.monotonic()
            for sequence in range(1, 60):
                await learn(writer, batch("a", sequence))
                await asyncio.sleep(0.01)
            commits = len(ledger.commits)
            assert commits <= 1 + (time.monotonic() - begun_s) * 0.1 / 0.05  # by the disk alone there were dozens
        assert threading.get_ident() not in record.threads

    run(scenario)


def test_closing_commits_what_is_staged_once_even_while_a_commit_is_under_way(run: Callable[[Scenario], None]) -> None:
    async def scenario(store: Store) -> None:
        ledger, heard = SlowLedger(store.ledger, 0.05), Heard()
        writer = await make_writer(store, ledger=ledger, commit_share=0.01)
        await writer.open_stream("a", 0, heard)
        await learn(writer, batch("a", 1))
        while not ledger.commits:
            await asyncio.sleep(0)
        staged = [submitted(writer, batch("a", sequence)) for sequence in range(2, 50)]
        await writer.close()
        await asyncio.gather(*staged)
        watermarks = [commit.streams["a"].durable_sequence for commit in ledger.commits]
        assert watermarks == [1, 49]
        assert heard.durable == [1, 49]
        assert [type(error) for error in heard.ends] == [UnavailableError]
        assert await stored_digest(store) == sums_of(*(("a", n) for n in range(1, 50))).digest()
        with pytest.raises(UnavailableError):
            await submitted(writer, batch("a", 50))
        with pytest.raises(UnavailableError):
            await writer.open_stream("a", 0, Heard())

    run(scenario)


def test_closing_without_a_commit_answers_everyone_and_keeps_what_was_durable(run: Callable[[Scenario], None]) -> None:
    async def scenario(store: Store) -> None:
        heard = Heard()
        writer = await make_writer(store, commit_share=0.001)
        await writer.open_stream("a", 0, heard)
        await learn(writer, batch("a", 1))
        await until_durable(writer, "a", 1)
        staged = [submitted(writer, batch("a", sequence)) for sequence in range(2, 100)]
        await asyncio.sleep(0)  # the first group is under way
        await writer.close(commit=False)
        outcomes = await asyncio.gather(*staged, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {Outcome, UnavailableError}
        assert [type(error) for error in heard.ends] == [UnavailableError]
        assert (await store.ledger.streams("digits"))["a"].durable_sequence == 1
        assert await stored_digest(store) == sums_of(("a", 1)).digest()

    run(scenario)


class Full(Statistics):
    """Has no room for the labels of one batch, once."""

    full_for: tuple[str, ...] = ()

    def integrate(self, quantised_Bd: QuantisedBd, labels: Sequence[str], **given: Any) -> None:
        if tuple(labels) == self.full_for:
            self.full_for = ()
            raise PreconditionError("the memory is full", reason="MEMORY_FULL")
        super().integrate(quantised_Bd, labels, **given)


def test_a_full_memory_keeps_the_sequence(run: Callable[[Scenario], None]) -> None:
    async def scenario(store: Store) -> None:
        memory = Full.create(DIM, ())
        async with writer_of(store, memory=memory) as writer:
            await writer.open_stream("a", 0, Heard())
            await learn(writer, batch("a", 1))
            memory.full_for = features_of("a", 2)[1]
            refused, gap, again = await learn(writer, batch("a", 2), batch("a", 3), batch("a", 2))
            assert isinstance(refused, PreconditionError)
            assert refused.reason == "MEMORY_FULL"
            assert isinstance(gap, SequenceGapError)
            assert numbers([again]) == [(2, False)]
            assert writer.learner.sums == sums_of(("a", 1), ("a", 2))
            assert writer.prequential.tested == writer.learner.sums.samples

    run(scenario)


class Broken(Statistics):
    """Fails in a way that nobody foresaw."""

    def integrate(self, quantised_Bd: QuantisedBd, labels: Sequence[str], **given: Any) -> None:
        raise RuntimeError("a bug")

    def to_bytes(self) -> bytes:
        raise RuntimeError("a bug")


@pytest.mark.parametrize("refused", [False, True], ids=["while integrating", "while committing"])
def test_an_unforeseen_error_ends_the_process_and_hangs_nobody(run: Callable[[Scenario], None], refused: bool) -> None:
    async def scenario(store: Store) -> None:
        fatal = Fatal()
        writer = await make_writer(store, memory=Broken.create(DIM, ()), on_fatal=fatal)
        await writer.open_stream("a", 0, Heard())
        submitted(writer, batch("a", 1, refused=refused))
        while not fatal.errors:
            await asyncio.sleep(0.002)
        await writer.close()
        assert [str(error) for error in fatal.errors] == ["a bug"]

    run(scenario)


def test_only_batches_with_an_effect_ask_for_a_new_head(run: Callable[[Scenario], None]) -> None:
    async def scenario(store: Store) -> None:
        touched: list[int] = []
        async with writer_of(store, on_integrated=lambda: touched.append(1)) as writer:
            await writer.open_stream("a", 0, Heard())
            await learn(writer, batch("a", 1))
            await learn(writer, batch("a", 1), batch("a", 3))
            assert len(touched) == 1

    run(scenario)


def test_the_digest_follows_the_sums(run: Callable[[Scenario], None]) -> None:
    async def scenario(store: Store) -> None:
        async with writer_of(store) as writer:
            await writer.open_stream("a", 0, Heard())
            assert await writer.digest() == Sums(DIM).digest()
            await learn(writer, batch("a", 1))
            assert await writer.digest() == await writer.digest() == sums_of(("a", 1)).digest()
            (copy, _), tails = await writer.copy_sums(), (await writer.learned())[1]
            await learn(writer, batch("a", 2))
            assert (copy, tails) == (sums_of(("a", 1)), {"a": 1})

    run(scenario)


def test_each_stream_is_the_first_in_turn_to_hear_of_a_commit(run: Callable[[Scenario], None]) -> None:
    async def scenario(store: Store) -> None:
        commit = group(store, {"a": (1, 1), "b": (1, 1), "c": (1, 1)})
        told = [[client for client, _ in in_turn(commit, commit_id)] for commit_id in range(3)]
        assert told == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]
        assert in_turn(group(store, {}), 7) == []

    run(scenario)
