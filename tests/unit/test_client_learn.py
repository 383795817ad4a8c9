"""Learning over a real connection: what breaks, and what is counted all the same. Sync and asyncio alike."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from tests.fake_server import FakeServer

from everlearn_client import (
    AsyncClient,
    Batch,
    Client,
    EverlearnClientError,
    FailedPrecondition,
    Features,
    Fenced,
    InvalidArgument,
    LearnReport,
    NotFound,
    Received,
    Reconnecting,
    Rejected,
    ServerBug,
    TimelineChanged,
    Unavailable,
)

Learn = Callable[..., LearnReport]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        running.ready_model()
        yield running


@pytest.fixture(params=["sync", "async"])
def learn(request: pytest.FixtureRequest, server: FakeServer) -> Learn:
    """`Client.learn` and `AsyncClient.learn` behind one face."""

    def in_thread(*args: Any, **options: Any) -> LearnReport:
        with Client(server.target) as client:
            return client.learn(*args, **options)

    def in_loop(*args: Any, **options: Any) -> LearnReport:
        async def run() -> LearnReport:
            async with AsyncClient(server.target) as client:
                return await client.learn(*args, **options)

        return asyncio.run(run())

    return in_thread if request.param == "sync" else in_loop


def batches_of(count: int, *, first: int = 0) -> Iterable[Batch]:
    return (Batch(Features(np.full((2, 4), i, np.float32)), [f"s{i}", "x"]) for i in range(first, count))


def assert_counted_once(server: FakeServer, client_id: str, count: int) -> None:
    assert dict(server.committed) == {(client_id, sequence): 1 for sequence in range(1, count + 1)}


def test_an_undisturbed_stream_is_durable_to_the_last_batch(learn: Learn, server: FakeServer) -> None:
    report = learn("digits", batches_of(21), client_id="a")
    assert_counted_once(server, "a", 21)
    assert (report.sent_batches, report.durable_batches, report.durable_samples) == (21, 21, 42)
    assert (report.reconnects, report.duplicates, report.version, report.timeline) == (0, 0, 1, "t1")
    assert report.last is not None
    assert report.last.prequential.accuracy == 1.0
    assert report.last.times.trunk_ms == 1.5


def test_dropped_connections_lose_and_double_nothing(learn: Learn, server: FakeServer) -> None:
    server.faults.drop_after = [3, 0, 7, 5, 1]
    report = learn("digits", batches_of(30), client_id="a")
    assert_counted_once(server, "a", 30)
    assert report.reconnects == 5
    assert report.durable_batches == 30
    assert [opening.epoch for opening in server.opens] == [0, 1, 1, 1, 1, 1]


def test_lost_acknowledgements_are_not_sent_again(learn: Learn, server: FakeServer) -> None:
    server.faults.lose_durables = 3
    report = learn("digits", batches_of(20), client_id="a")
    assert_counted_once(server, "a", 20)
    assert (report.reconnects, report.durable_batches) == (3, 20)


def test_resending_under_new_sequences_would_count_twice(server: FakeServer) -> None:
    """The control of the two tests above: the counter shows a naive client's mistake."""
    server.faults.lose_durables = 1
    for _ in range(2):
        with Client(server.target) as client:
            client.learn("digits", batches_of(4), client_id="a")
    assert server.labels["s0"] == 2


def test_a_server_that_restarts_in_mid_stream_is_found_again(learn: Learn, server: FakeServer) -> None:
    def batches() -> Iterator[Batch]:
        for i, batch in enumerate(batches_of(24)):
            if i in (9, 17):
                server.restart()
            yield batch

    report = learn("digits", batches(), client_id="a")
    assert_counted_once(server, "a", 24)
    assert report.reconnects >= 2


def test_window_and_credits_are_never_exceeded(learn: Learn, server: FakeServer) -> None:
    server.faults.answer_delay_s, server.faults.credits = 0.004, 3
    learn("digits", batches_of(20))
    assert 1 < server.max_in_flight <= 3
    server.max_in_flight, server.faults.credits, server.faults.commit_every = 0, 16, 2
    learn("digits", batches_of(20), window=2)
    assert server.max_in_flight <= 2


def test_a_larger_credit_is_used(server: FakeServer) -> None:
    """The control of the test above: the server's gauge can exceed 3."""
    server.faults.answer_delay_s, server.faults.credits = 0.004, 16
    with Client(server.target) as client:
        client.learn("digits", batches_of(20))
    assert server.max_in_flight > 3


def test_the_source_is_not_drained_ahead_of_the_window(learn: Learn, server: FakeServer) -> None:
    server.faults.commit_every = 4
    taken: list[int] = []

    def batches() -> Iterator[Batch]:
        for i, batch in enumerate(batches_of(40)):
            durable = max((sequence for _, sequence in server.committed), default=0)
            taken.append(i - durable)
            yield batch

    learn("digits", batches(), window=6)
    # The client may not know yet of the newest commit, so the true distance is at most the window.
    assert max(taken) <= 6


def test_large_batches_arrive_whole_in_small_messages(learn: Learn, server: FakeServer) -> None:
    images = np.zeros((60, 150, 150, 3), np.uint8)
    report = learn("digits", [(images, [f"l{i}" for i in range(60)])])
    assert server.max_message_bytes <= 2**20
    assert report.durable_samples == 60
    assert all(count == 1 for count in server.labels.values())
    assert len(server.labels) == 60


def test_a_sample_above_the_limit_is_refused_here_and_what_came_before_stays(learn: Learn, server: FakeServer) -> None:
    too_large = (np.zeros((1, 1200, 1200, 3), np.uint8), ["x"])
    with pytest.raises(InvalidArgument, match="one message holds") as caught:
        learn("digits", [*batches_of(3), too_large], client_id="a")
    assert caught.value.field == "samples[0]"
    assert_counted_once(server, "a", 3)
    assert "up to sequence 3" in caught.value.__notes__[0]


def test_an_error_of_the_callers_iterable_surfaces_after_the_rest_is_durable(learn: Learn, server: FakeServer) -> None:
    def batches() -> Iterator[Batch]:
        yield from batches_of(5)
        raise RuntimeError("the camera fell down")

    with pytest.raises(RuntimeError, match="camera"):
        learn("digits", batches(), client_id="a")
    assert_counted_once(server, "a", 5)


def test_rejected_batches_are_collected_and_the_stream_goes_on(learn: Learn, server: FakeServer) -> None:
    server.faults.reject = {2, 5}
    heard: list[object] = []
    report = learn("digits", batches_of(8), on_event=heard.append)
    assert (report.durable_batches, report.rejected_batches, report.rejected_samples) == (6, 2, 4)
    assert report.rejected[0] == Rejected(
        2, "INVALID_ARGUMENT", "batch.samples.encoded_images.images[0]", "not an image"
    )
    assert sum(isinstance(event, Rejected) for event in heard) == 2
    assert sum(isinstance(event, Received) for event in heard) == 6


def test_first_sequence_makes_a_restarted_caller_exact(learn: Learn, server: FakeServer) -> None:
    learn("digits", batches_of(7), client_id="a", first_sequence=1)
    report = learn("digits", batches_of(12), client_id="a", first_sequence=1)
    assert_counted_once(server, "a", 12)
    assert (report.skipped_batches, report.sent_batches) == (7, 5)
    tail = learn("digits", batches_of(14, first=10), client_id="a", first_sequence=11)
    assert_counted_once(server, "a", 14)
    assert (tail.skipped_batches, tail.sent_batches) == (2, 2)


def test_an_empty_stream_is_complete(learn: Learn, server: FakeServer) -> None:
    assert learn("digits", []).durable_sequence == 0


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        ("ABORTED", "FENCED", Fenced),
        ("ABORTED", "TIMELINE_CHANGED", TimelineChanged),
        ("INVALID_ARGUMENT", "INVALID_INPUT", InvalidArgument),
        ("FAILED_PRECONDITION", "MODEL_NOT_READY", FailedPrecondition),
        ("INTERNAL", "ERROR", ServerBug),
    ],
)
def test_errors_that_do_not_pass_end_the_stream_at_once(
    learn: Learn, server: FakeServer, status: str, reason: str, kind: type[EverlearnClientError]
) -> None:
    server.faults.end_with = (status, reason)
    heard: list[object] = []
    with pytest.raises(kind) as caught:
        learn("digits", batches_of(3), on_event=heard.append)
    assert caught.value.reason == reason
    # grpc.aio may lose the status of a call that ends while it writes (grpc#36066); asking again brings it back.
    assert all("Internal error from Core" in str(e.error) for e in heard if isinstance(e, Reconnecting))


def test_a_second_learner_of_the_same_name_fences_the_first(server: FakeServer) -> None:
    both_open = threading.Event()

    def slow() -> Iterator[Batch]:
        yield from batches_of(2)
        both_open.wait(120)
        yield from batches_of(4, first=2)

    failures: list[BaseException] = []

    def first() -> None:
        with Client(server.target) as client:
            try:
                client.learn("digits", slow(), client_id="a")
            except Fenced as error:
                failures.append(error)

    older = threading.Thread(target=first)
    older.start()
    with Client(server.target) as client:
        while not server.connections:
            both_open.wait(0.01)
        client.learn("digits", batches_of(3), client_id="a")
    both_open.set()
    older.join(120)
    assert len(failures) == 1
    assert server.opens[-1].epoch == 0


def test_a_busy_server_is_asked_again_when_it_says_so(learn: Learn, server: FakeServer) -> None:
    server.faults.busy_opens = 2
    heard: list[object] = []
    report = learn("digits", batches_of(3), on_event=heard.append)
    assert report.durable_batches == 3
    delays = [event.delay_s for event in heard if isinstance(event, Reconnecting)]
    assert len(delays) == 2
    assert min(delays) >= 0.05


def test_a_server_that_never_comes_back_is_given_up(learn: Learn, server: FakeServer) -> None:
    server.stop()
    with pytest.raises(Unavailable) as caught:
        learn("digits", batches_of(3), retry_for_s=0.3)
    assert any("gave up after" in note for note in caught.value.__notes__)


def test_an_unknown_model_is_named(learn: Learn) -> None:
    with pytest.raises(NotFound) as caught:
        learn("letters", batches_of(1))
    assert caught.value.field == "open.model"


def test_an_async_iterable_feeds_the_async_client(server: FakeServer) -> None:
    async def batches() -> AsyncIterator[Batch]:
        for batch in batches_of(9):
            await asyncio.sleep(0)
            yield batch

    async def run() -> LearnReport:
        async with AsyncClient(server.target, client_id="a") as client:
            return await client.learn("digits", batches())

    server.faults.drop_after = [2]
    assert asyncio.run(run()).durable_batches == 9
    assert_counted_once(server, "a", 9)


def test_cancelling_an_async_learner_ends_it(server: FakeServer) -> None:
    async def forever() -> AsyncIterator[Batch]:
        yield next(iter(batches_of(1)))
        await asyncio.Event().wait()

    async def run() -> None:
        async with AsyncClient(server.target) as client:
            heard = asyncio.Event()
            task = asyncio.create_task(client.learn("digits", forever(), on_event=lambda _: heard.set()))
            await asyncio.wait_for(heard.wait(), 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())


def test_no_thread_outlives_a_learner(server: FakeServer) -> None:
    with Client(server.target) as client:
        client.learn("digits", batches_of(3))
        assert not [thread for thread in threading.enumerate() if thread.name == "everlearn-learn"]
