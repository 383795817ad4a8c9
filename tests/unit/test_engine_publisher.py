"""The publisher on a real writer: quick heads follow the stream, and at rest stands the exact one, bit for bit."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.engine_parts import EXECUTOR, SCALE, Heard, batch, learn, sums_of, until_durable, writer_of

from everlearn.errors import PreconditionError
from everlearn.heads import head_for
from everlearn.heads.balanced_ridge import BalancedRidge
from everlearn.heads.base import Head
from everlearn.sums import Sums
from everlearn.values import FeatureScale, LinearHead
from everlearn_server.engine import publisher as publishing
from everlearn_server.engine.publisher import NO_NUMBERS, Publisher, Solved
from everlearn_server.engine.writer import ModelWriter
from everlearn_server.store.store import Store


@asynccontextmanager
async def learning(
    folder: Path,
    head: Head,
    install: Callable[[Solved], None],
) -> AsyncIterator[tuple[ModelWriter, Publisher]]:
    """A model that learns: writer and publisher joined as LiveModel joins them."""
    publishers: list[Publisher] = []
    with Store.open(folder) as store:
        async with writer_of(store, head=head, on_integrated=lambda: publishers[0].touch()) as writer:
            publishers.append(
                Publisher(
                    model="digits",
                    writer=writer,
                    executor=EXECUTOR,
                    install=install,
                )
            )
            try:
                yield writer, publishers[0]
            finally:
                publishers[0].close()


def assert_same_head(found: LinearHead, wanted: LinearHead) -> None:
    assert found.labels == wanted.labels
    assert found.weight_dC.tobytes("C") == wanted.weight_dC.tobytes("C")
    assert found.bias_C.tobytes() == wanted.bias_C.tobytes()
    assert found.regularization == wanted.regularization


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["balanced_ridge", "lda"])
def test_at_rest_the_head_is_the_exact_one_of_the_final_sums_whatever_the_schedule(
    tmp_path: Path, kind: str, seed: int
) -> None:
    chance, heads = random.Random(seed), list[Solved]()

    async def scenario() -> Sums:
        async with learning(tmp_path, head_for(kind), heads.append) as (writer, publisher):
            await writer.open_stream("a", 0, Heard())
            sequence = 0
            for _ in range(chance.randint(3, 12)):
                burst = [batch("a", sequence + offset) for offset in range(1, chance.randint(2, 6))]
                sequence += len(burst)
                await learn(writer, *burst)
                await asyncio.sleep(chance.choice([0, 0, 0.001, 0.01, 0.03]))
            await publisher.settled({"a": sequence}, timeout_s=60)
            assert heads[-1].tails == {"a": sequence}
            return writer.learner.sums.copy()

    sums = asyncio.run(scenario())
    assert heads[-1].exact
    assert heads[-1].memory_digest == sums.digest()
    assert_same_head(heads[-1].head, head_for(kind).solve(sums, SCALE))


def test_after_the_first_head_a_quick_one_comes_before_the_exact_one(tmp_path: Path) -> None:
    heads: list[Solved] = []

    class SlowExact(BalancedRidge):
        def solve(self, sums: Sums, scale: FeatureScale, *, hint: float | None = None) -> LinearHead:
            until_s = time.monotonic() + 30
            while hint is None and heads and len(heads) < 2 and time.monotonic() < until_s:
                time.sleep(0.01)  # the first exact head waits for nothing, the second for the quick one
            return super().solve(sums, scale, hint=hint)

    async def scenario() -> None:
        async with learning(tmp_path, SlowExact(), heads.append) as (writer, publisher):
            await writer.open_stream("a", 0, Heard())
            for sequence in (1, 2):
                await learn(writer, batch("a", sequence))
                await publisher.settled({"a": sequence}, timeout_s=60)

    asyncio.run(scenario())
    assert [(solved.exact, solved.tails["a"]) for solved in heads] == [(True, 1), (False, 2), (True, 2)]
    assert [bool(solved.memory_digest) for solved in heads] == [True, False, True]
    assert_same_head(heads[-1].head, BalancedRidge().solve(sums_of(("a", 1), ("a", 2)), SCALE))


def test_while_nobody_asks_heads_rest_long_and_the_first_question_brings_a_fresh_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # To the publisher seconds are thousands of seconds: after a solve of 0.06 s it rests for a minute and more.
    clock = SimpleNamespace(monotonic=lambda: 1000 * time.monotonic(), perf_counter=time.perf_counter)
    monkeypatch.setattr(publishing, "time", clock)

    class Slow(BalancedRidge):
        def solve(self, sums: Sums, scale: FeatureScale, *, hint: float | None = None) -> LinearHead:
            time.sleep(0.06)
            return super().solve(sums, scale, hint=hint)

    heads: list[Solved] = []

    async def shows(sequence: int) -> None:
        async with asyncio.timeout(45):
            while not heads or heads[-1].tails != {"a": sequence}:
                await asyncio.sleep(0.01)

    async def scenario() -> None:
        async with learning(tmp_path, Slow(), heads.append) as (writer, publisher):
            await writer.open_stream("a", 0, Heard())
            await learn(writer, batch("a", 1))
            await shows(1)
            await learn(writer, batch("a", 2))
            await asyncio.sleep(0.3)
            assert heads[-1].tails == {"a": 1}
            publisher.ask()
            await shows(2)

    asyncio.run(scenario())


def test_settled_returns_when_the_publisher_is_closed(tmp_path: Path) -> None:
    async def scenario() -> float:
        async with learning(tmp_path, BalancedRidge(), lambda solved: None) as (_, publisher):
            waiting = asyncio.create_task(publisher.settled({"a": 1}, timeout_s=120))
            publisher.touch()
            await asyncio.sleep(0.01)
            begun_s = time.monotonic()
            publisher.close()
            await waiting
            return time.monotonic() - begun_s

    assert asyncio.run(scenario()) < 60


def test_settled_waits_for_a_stream_of_refusals_no_longer_than_for_one_of_samples(tmp_path: Path) -> None:
    async def scenario() -> float:
        async with learning(tmp_path, BalancedRidge(), lambda solved: None) as (writer, publisher):
            await writer.open_stream("a", 0, Heard())
            await learn(writer, batch("a", 1, refused=True))
            await until_durable(writer, "a", 1)
            begun_s = time.monotonic()
            await publisher.settled({"a": 1}, timeout_s=120)
            return time.monotonic() - begun_s

    assert asyncio.run(scenario()) < 60


def test_an_error_in_a_solve_leaves_the_present_head_and_the_next_batch_tries_again(tmp_path: Path) -> None:
    class FailsOnce(BalancedRidge):
        failures = 0

        def solve(self, sums: Sums, scale: FeatureScale, *, hint: float | None = None) -> LinearHead:
            if sums.samples == sums_of(("a", 1), ("a", 2)).samples and self.failures < 3:
                self.failures += 1
                raise FloatingPointError("did not converge")
            return super().solve(sums, scale, hint=hint)

    heads: list[Solved] = []

    async def scenario() -> None:
        async with learning(tmp_path, FailsOnce(), heads.append) as (writer, publisher):
            await writer.open_stream("a", 0, Heard())
            for sequence in (1, 2, 3):
                await learn(writer, batch("a", sequence))
                await publisher.settled({"a": sequence}, timeout_s=0.3 if sequence == 2 else 60)

    asyncio.run(scenario())
    assert heads[-1].exact
    assert heads[-1].tails == {"a": 3}


def test_a_head_without_a_number_is_installed_once_numbers_are_there(tmp_path: Path) -> None:
    heads, refusals = list[Solved](), [1, 2, 3]

    def install(solved: Solved) -> None:
        if refusals:
            refusals.pop()
            raise PreconditionError("version numbers are being reserved", reason=NO_NUMBERS)
        heads.append(solved)

    async def scenario() -> None:
        async with learning(tmp_path, BalancedRidge(), install) as (writer, publisher):
            await writer.open_stream("a", 0, Heard())
            await learn(writer, batch("a", 1))
            await publisher.settled({"a": 1}, timeout_s=60)

    asyncio.run(scenario())
    assert not refusals
    assert (heads[-1].exact, heads[-1].tails) == (True, {"a": 1})
