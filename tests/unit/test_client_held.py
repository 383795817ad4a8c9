"""What a learner does where the model's tier holds batches back until enough have come."""

from __future__ import annotations

import numpy as np

from everlearn_client import Batch, Features, Held
from everlearn_client._learn import LearnSession
from everlearn_client.errors import ERROR_OF_REASON
from everlearn_protos.v1 import learn_pb2


def opened(
    session: LearnSession, *, durable: int = 0, held: int = 0, samples: int = 0, clients: int = 0
) -> LearnSession:
    """A new connection, as the server answers."""
    session.open_request()
    told = learn_pb2.Opened(
        epoch=1,
        durable_sequence=durable,
        timeline="t",
        credits=16,
        min_samples=samples,
        min_clients=clients,
        held_sequence=held,
    )
    session.on_response(learn_pb2.LearnResponse(opened=told))
    return session


def send(session: LearnSession, rows: int) -> int:
    """One batch; returns its sequence."""
    session.add(Batch(Features(np.zeros((rows, 2), np.float32)), ["a"] * rows))
    (request,) = session.next_messages()
    return int(request.batch.sequence)


def hear(session: LearnSession, sequence: int, *, rejected: bool = False) -> None:
    if rejected:
        answer = learn_pb2.LearnResponse(rejected=learn_pb2.Rejected(sequence=sequence, code="INTERNAL", credits=16))
    else:
        answer = learn_pb2.LearnResponse(received=learn_pb2.Received(sequence=sequence, credits=16))
    session.on_response(answer)


def test_a_window_grows_until_it_holds_what_the_server_waits_for_and_no_further() -> None:
    session = opened(LearnSession("m", "c", window=2), samples=64, clients=1)
    for _ in range(6):
        assert session.wants_batch
        hear(session, send(session, 10))
    hear(session, send(session, 10), rejected=True)  # a rejected batch brings nothing of what is waited for
    assert session.wants_batch
    hear(session, send(session, 10))
    assert not session.wants_batch
    assert not session.take_half_close()  # 70 samples of its own are enough: a commit is on its way
    without = opened(LearnSession("m", "c", window=2))
    for _ in range(2):
        hear(without, send(without, 10))
    assert not without.wants_batch


def test_a_full_window_that_waits_for_others_asks_the_server_to_say_so() -> None:
    session = opened(LearnSession("m", "c", window=2), samples=20, clients=2)
    for _ in range(2):
        hear(session, send(session, 10))
    assert not session.wants_batch
    assert session.take_half_close()
    assert not session.take_half_close()
    session.on_response(learn_pb2.LearnResponse(durable=learn_pb2.Durable(sequence=2, timeline="t")))
    assert not session.wants_batch, "nothing more goes out on a half-closed stream"
    assert session.on_end() is not None, "it goes on with another connection"
    assert opened(session, durable=2, samples=20, clients=2).wants_batch


def test_what_was_to_be_kept_is_sent_again_before_all_else_under_its_numbers() -> None:
    first = opened(LearnSession("m", "c"), samples=64, clients=1)
    hear(first, send(first, 10))
    hear(first, send(first, 20))
    second = LearnSession("m", "c")
    second.keep_from(first)
    opened(second, held=2, samples=64, clients=1)
    assert [request.batch.sequence for request in second.next_messages()] == [1, 2]
    assert send(second, 40) == 3
    second.finish()
    second.on_response(learn_pb2.LearnResponse(durable=learn_pb2.Durable(sequence=3, timeline="t")))
    assert second.complete
    report = second.report(1.0)
    assert (report.sent_samples, report.durable_samples) == (70, 70)


def test_who_kept_nothing_goes_on_behind_what_is_held_and_who_numbers_batches_brings_them_again() -> None:
    assert send(opened(LearnSession("m", "c"), durable=3, held=5, samples=64), 4) == 6
    first = opened(LearnSession("m", "c"), samples=64)
    hear(first, send(first, 10))
    numbered = LearnSession("m", "c", first_sequence=1)
    numbered.keep_from(first)
    assert send(opened(numbered, held=1, samples=64), 10) == 1


def test_the_error_has_a_kind_of_its_own() -> None:
    assert ERROR_OF_REASON["HELD"] is Held
