"""A learning stream whose client does not read: what waits for it stays bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests import tiny
from tests.engine_parts import DIM, SCALE, features_of, until_durable, writer_of

from everlearn.errors import InputError, OverloadedError
from everlearn.inputs.samples import Features
from everlearn.spec.load import parse
from everlearn_server.engine.learning import CREDITS, LearnBatch, LearnStream
from everlearn_server.engine.live_model import LiveModel
from everlearn_server.engine.outbox import DurableUpTo, Event, Received
from everlearn_server.engine.trunks import LiveTrunk
from everlearn_server.engine.work_queue import WorkQueue
from everlearn_server.engine.writer import ModelWriter
from everlearn_server.store.store import Store

Opened = tuple[LearnStream, ModelWriter]


@asynccontextmanager
async def opened(store: Store, folder: Path, *, durable_only: bool = False) -> AsyncIterator[Opened]:
    """A stream of features to a real writer; no trunk runs and no head is solved."""
    trunk = LiveTrunk(
        digest="t" * 64,
        feature_dim=DIM,
        feature_digest="f" * 64,
        session=cast(Any, None),
        front=tiny.FRONT,
        scale=SCALE,
        provenance={},
        parity_max_rel_diff=0.0,
    )
    spec = parse(tiny.declaration(tiny.write_backbone(folder)))
    async with writer_of(store) as writer:
        book = SimpleNamespace(latest=None)
        model = SimpleNamespace(writer=writer, ready_trunk=trunk, spec=spec, book=book, beside=None)
        queue = cast(WorkQueue, SimpleNamespace(images=None))
        stream = LearnStream(
            cast(LiveModel, model), queue, client="a", feature_digest=trunk.feature_digest, durable_only=durable_only
        )
        await stream.open(epoch=0, timeline="", present_timeline=store.timeline)
        try:
            yield stream, writer
        finally:
            await stream.close()


def run(
    folder: Path,
    scenario: Callable[[LearnStream, ModelWriter], Coroutine[Any, Any, None]],
    *,
    durable_only: bool = False,
) -> None:
    async def on_a_stream(store: Store) -> None:
        async with opened(store, folder, durable_only=durable_only) as (stream, writer):
            await scenario(stream, writer)

    with Store.open(folder / "data") as store:
        asyncio.run(asyncio.wait_for(on_a_stream(store), 240))


def send(stream: LearnStream, sequence: int) -> None:
    features_Bd, labels = features_of("a", sequence)
    stream.accept(LearnBatch(sequence=sequence, labels=labels, samples=Features(features_Bd)))


async def heard(stream: LearnStream, count: int) -> list[Event]:
    events = stream.events()
    return [await anext(events) for _ in range(count)]


def test_a_credit_comes_back_only_when_the_answer_is_taken(tmp_path: Path) -> None:
    async def scenario(stream: LearnStream, writer: ModelWriter) -> None:
        for sequence in range(1, CREDITS + 1):
            send(stream, sequence)
        await until_durable(writer, "a", CREDITS)
        with pytest.raises(OverloadedError):
            send(stream, CREDITS + 1)
        events = stream.events()
        while not isinstance(await anext(events), Received):
            pass
        send(stream, CREDITS + 1)
        with pytest.raises(OverloadedError):
            send(stream, CREDITS + 2)

    run(tmp_path, scenario)


def test_of_the_watermarks_that_wait_the_oldest_and_the_newest_are_told(tmp_path: Path) -> None:
    async def scenario(stream: LearnStream, writer: ModelWriter) -> None:
        for sequence in range(1, 1001):
            stream.durable_up_to(sequence, sequence)
        stream.fail(EOFError())
        told = await heard(stream, 2)
        assert [event.sequence for event in told if isinstance(event, DurableUpTo)] == [1, 1000]
        with pytest.raises(EOFError):
            await heard(stream, 1)

    run(tmp_path, scenario)


def test_a_watermark_comes_after_the_answers_that_it_covers(tmp_path: Path) -> None:
    async def scenario(stream: LearnStream, writer: ModelWriter) -> None:
        for sequence in range(1, CREDITS + 1):
            send(stream, sequence)
            await until_durable(writer, "a", sequence)
        answered = 0
        async for event in stream.events():
            if isinstance(event, Received):
                answered = event.outcome.sequence
                continue
            assert event.sequence <= answered
            if event.sequence == CREDITS:
                return

    run(tmp_path, scenario)


def test_who_asks_for_what_is_durable_alone_hears_that_and_what_was_refused(tmp_path: Path) -> None:
    async def scenario(stream: LearnStream, writer: ModelWriter) -> None:
        last = 3 * CREDITS  # more than may be in flight: what is learned makes room, though nobody is told
        for sequence in range(1, last + 1):
            refusal = InputError("not an image", field="batch.samples") if sequence == CREDITS else None
            batch = features_of("a", sequence)
            samples = None if refusal else Features(batch[0])
            stream.accept(LearnBatch(sequence=sequence, labels=batch[1], samples=samples, refusal=refusal))
            await until_durable(writer, "a", sequence)
        told = []
        async for event in stream.events():
            told.append(event)
            if isinstance(event, DurableUpTo) and event.sequence == last:
                break
        answers = [event for event in told if isinstance(event, Received)]
        assert [answer.outcome.sequence for answer in answers] == [CREDITS]
        assert answers[0].outcome.refusal is not None
        assert len(told) == 3, "the oldest watermark, the refusal, the newest watermark"

    run(tmp_path, scenario, durable_only=True)


def test_batches_that_are_not_learned_yet_count_against_the_credits_of_who_is_told_little(tmp_path: Path) -> None:
    async def scenario(stream: LearnStream, writer: ModelWriter) -> None:
        for sequence in range(1, CREDITS + 1):  # nothing is awaited, so the writer has had no turn
            send(stream, sequence)
        with pytest.raises(OverloadedError):
            send(stream, CREDITS + 1)

    run(tmp_path, scenario, durable_only=True)
