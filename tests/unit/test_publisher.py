"""Which of two heads stays when they are solved side by side, and when a drain has nothing to wait for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, cast

import numpy as np

from everlearn.heads.ncm import Ncm
from everlearn.learners.base import Learned
from everlearn.learners.closed_form import LearnedSums
from everlearn.sums import Sums
from everlearn.values import FeatureScale, LinearHead
from everlearn_server.engine.publisher import Publisher, Solved
from everlearn_server.engine.writer import ModelWriter

DIM = 4
SCALE = FeatureScale(step_d=np.ones(DIM, np.float32), bits=12)


class SlowWhenQuick(Ncm):
    """Its quick solve ends only after the exact one has been published."""

    def __init__(self) -> None:
        super().__init__()
        self.exact_is_out = threading.Event()

    def solve(self, sums: Sums, scale: FeatureScale, *, hint: float | None = None) -> LinearHead:
        if hint is not None:
            assert self.exact_is_out.wait(60)
        return super().solve(sums, scale)


class Writer:
    """The sums of one client's stream."""

    idle = True

    def __init__(self) -> None:
        self.sums = Sums(DIM)
        self.head = Ncm()
        self.tails = {"a": 0}

    def learn(self) -> None:
        self.sums.add(np.ones((1, DIM), np.int16), ["x"])
        self.tails["a"] += 1

    async def learned(self) -> tuple[Learned, dict[str, int]]:
        return LearnedSums(self.sums.copy(), self.head, SCALE, np.array(self.sums.count_C, np.int64)), dict(self.tails)


@asynccontextmanager
async def publisher_of(writer: Writer, head: Ncm, heads: list[Solved], **options: Any) -> AsyncIterator[Publisher]:
    def install(solved: Solved) -> None:
        heads.append(solved)
        if solved.exact and isinstance(head, SlowWhenQuick):
            head.exact_is_out.set()

    writer.head = head
    with ThreadPoolExecutor(2) as executor:
        publisher = Publisher(
            model="m",
            writer=cast(ModelWriter, writer),
            executor=executor,
            install=install,
            **options,
        )
        try:
            yield publisher
        finally:
            publisher.close()


def test_a_quick_head_that_ends_after_the_exact_one_of_the_same_sums_is_dropped() -> None:
    async def scenario() -> list[Solved]:
        writer, heads = Writer(), list[Solved]()
        writer.learn()
        async with publisher_of(writer, SlowWhenQuick(), heads, hint=1.0) as publisher:
            publisher.touch()
            await publisher.settled({"a": 1}, timeout_s=60)
            await asyncio.sleep(0.1)
        return heads

    heads = asyncio.run(scenario())
    assert [head.exact for head in heads] == [True]
    assert heads[-1].memory_digest


def test_draining_does_not_wait_for_a_head_where_nothing_was_learned() -> None:
    async def scenario(*, touched: bool) -> float:
        async with publisher_of(Writer(), Ncm(), []) as publisher:
            if touched:
                publisher.touch()
            begun_s = time.monotonic()
            await publisher.settled({"a": 0}, timeout_s=60)
            return time.monotonic() - begun_s

    assert asyncio.run(scenario(touched=False)) < 30
    assert asyncio.run(scenario(touched=True)) < 30


def test_heads_follow_again_after_a_failure_that_nobody_foresaw() -> None:
    class Failing(Writer):
        failures = 1

        async def learned(self) -> tuple[Learned, dict[str, int]]:
            if self.failures:
                self.failures -= 1
                raise MemoryError
            return await super().learned()

    async def scenario() -> list[Solved]:
        writer, heads = Failing(), list[Solved]()
        async with publisher_of(writer, Ncm(), heads) as publisher:
            writer.learn()
            publisher.touch()
            await publisher.settled({"a": 1}, timeout_s=60)
            return list(heads)

    assert [head.exact for head in asyncio.run(scenario())] == [True]


def test_draining_waits_for_the_exact_head_of_what_was_learned() -> None:
    async def scenario() -> list[Solved]:
        writer, heads = Writer(), list[Solved]()
        async with publisher_of(writer, Ncm(), heads) as publisher:
            writer.learn()
            publisher.touch()
            await publisher.settled({"a": 1}, timeout_s=60)
            return list(heads)

    assert [head.exact for head in asyncio.run(scenario())] == [True]
