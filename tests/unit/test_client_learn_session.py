"""The learner's state machine against a simulated server that loses, repeats and forgets."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everlearn_client import Batch, DataLoss, Features, InvalidArgument, SequenceGap, TimelineChanged
from everlearn_client._learn import LearnSession
from everlearn_client.events import Rejected
from everlearn_protos.v1 import learn_pb2, models_pb2


@dataclass
class SimulatedServer:
    """Commits in groups, dies whenever it is told to, and counts every effect."""

    rng: random.Random
    credits: int
    durable: int = 0
    staged: list[learn_pb2.Batch] = field(default_factory=list)
    effects: Counter[str] = field(default_factory=Counter)
    reject_every: int = 0

    def open(self) -> learn_pb2.LearnResponse:
        self.staged = []
        opened = learn_pb2.Opened(epoch=1, durable_sequence=self.durable, timeline="t", credits=self.credits)
        return learn_pb2.LearnResponse(opened=opened)

    def take(self, batch: learn_pb2.Batch) -> learn_pb2.LearnResponse:
        tail = self.staged[-1].sequence if self.staged else self.durable
        assert batch.sequence <= tail + 1, "the client left a gap"
        duplicate = batch.sequence <= tail
        if not duplicate:
            self.staged.append(batch)
        if self.reject_every and batch.sequence % self.reject_every == 0:
            rejected = learn_pb2.Rejected(sequence=batch.sequence, code="INVALID_ARGUMENT", credits=self.credits)
            return learn_pb2.LearnResponse(rejected=rejected)
        received = learn_pb2.Received(sequence=batch.sequence, credits=self.credits, duplicate=duplicate)
        return learn_pb2.LearnResponse(received=received)

    def commit(self) -> learn_pb2.LearnResponse:
        for batch in self.staged:
            if not (self.reject_every and batch.sequence % self.reject_every == 0):
                self.effects.update(batch.labels)
            self.durable = batch.sequence
        self.staged = []
        return learn_pb2.LearnResponse(durable=learn_pb2.Durable(sequence=self.durable, commit_id=1, timeline="t"))


def batches_of(count: int) -> list[Batch]:
    return [Batch(Features(np.full((1, 2), i, np.float32)), [f"sample-{i}"]) for i in range(count)]


def stream(session: LearnSession, server: SimulatedServer, batches: list[Batch], *, crash: float) -> None:
    """Runs to the end; each step may be a crash, also right after a commit whose Durable then never arrives."""
    source, rng = iter(batches), server.rng
    while not session.complete:
        session.open_request()
        session.on_response(server.open())
        unanswered: list[learn_pb2.Batch] = []
        while not session.complete:
            if session.wants_batch:
                following = next(source, None)
                session.finish() if following is None else session.add(following)
            unanswered += [request.batch for request in session.next_messages()]
            assert len(unanswered) <= server.credits
            assert len(session._pending) <= session.window
            if rng.random() < crash:
                if rng.random() < 0.5:
                    server.commit()
                break
            if session.take_half_close() or (not unanswered and not session.wants_batch):
                for batch in unanswered:
                    session.on_response(server.take(batch))
                unanswered = []
                session.on_response(server.commit())
            elif unanswered:
                session.on_response(server.take(unanswered.pop(0)))
                if rng.random() < 0.3:
                    session.on_response(server.commit())


@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 30),
    window=st.integers(1, 8),
    credits=st.integers(1, 8),
    crash=st.sampled_from([0.0, 0.05, 0.3]),
)
@settings(deadline=None, max_examples=150)
def test_every_batch_has_its_effect_exactly_once_through_crashes(
    seed: int, count: int, window: int, credits: int, crash: float
) -> None:
    server = SimulatedServer(random.Random(seed), credits)
    session = LearnSession("m", "c", window=window)
    stream(session, server, batches_of(count), crash=crash)
    assert server.effects == Counter({f"sample-{i}": 1 for i in range(count)})
    report = session.report(0.0)
    assert report.durable_batches == report.sent_batches == report.durable_samples == count
    assert report.durable_sequence == server.durable == count


@given(seed=st.integers(0, 2**32 - 1), stop=st.integers(0, 12))
@settings(deadline=None, max_examples=60)
def test_with_first_sequence_a_restarted_caller_counts_nothing_twice(seed: int, stop: int) -> None:
    server = SimulatedServer(random.Random(seed), 4)
    stream(LearnSession("m", "c", first_sequence=1), server, batches_of(stop), crash=0.1)
    again = LearnSession("m", "c", first_sequence=1)
    stream(again, server, batches_of(12), crash=0.1)
    assert server.effects == Counter({f"sample-{i}": 1 for i in range(12)})
    assert again.report(0.0).skipped_batches == stop


def test_without_first_sequence_a_restarted_caller_counts_twice() -> None:
    """The control of the test above: it can fail."""
    server = SimulatedServer(random.Random(0), 4)
    for _ in range(2):
        stream(LearnSession("m", "c"), server, batches_of(3), crash=0.0)
    assert set(server.effects.values()) == {2}


def test_rejected_batches_are_reported_and_not_counted_as_learned() -> None:
    server = SimulatedServer(random.Random(1), 4, reject_every=3)
    session = LearnSession("m", "c")
    stream(session, server, batches_of(9), crash=0.0)
    report = session.report(1.0)
    assert (report.durable_batches, report.rejected_batches, report.rejected_samples) == (6, 3, 3)
    assert [r.sequence for r in report.rejected] == [3, 6, 9]
    assert isinstance(report.rejected[0], Rejected)


def opened(durable: int = 0, timeline: str = "t", credits: int = 4, max_samples: int = 0) -> learn_pb2.LearnResponse:
    contract = models_pb2.InputContract(max_batch_samples=max_samples)
    return learn_pb2.LearnResponse(
        opened=learn_pb2.Opened(epoch=7, durable_sequence=durable, timeline=timeline, credits=credits, input=contract)
    )


def test_a_reconnect_goes_on_with_its_epoch_and_timeline() -> None:
    session = LearnSession("m", "c", feature_digest="d")
    first = session.open_request().open
    assert (first.model, first.client, first.epoch, first.timeline, first.feature_digest) == (
        "models/m",
        "c",
        0,
        "",
        "d",
    )
    session.on_response(opened())
    again = session.open_request().open
    assert (again.epoch, again.timeline) == (7, "t")


def test_another_timeline_ends_the_session() -> None:
    session = LearnSession("m", "c", timeline="before")
    session.open_request()
    with pytest.raises(TimelineChanged, match="restored"):
        session.on_response(opened(timeline="after"))


def test_a_server_that_forgets_what_was_durable_is_data_loss() -> None:
    session = LearnSession("m", "c")
    session.open_request()
    session.on_response(opened(durable=5))
    session.open_request()
    with pytest.raises(DataLoss, match="up to 5"):
        session.on_response(opened(durable=4))


def test_a_first_sequence_beyond_the_watermark_is_a_gap() -> None:
    session = LearnSession("m", "c", first_sequence=4)
    session.open_request()
    with pytest.raises(SequenceGap) as caught:
        session.on_response(opened(durable=1))
    assert caught.value.expected == 2


def test_a_large_batch_is_split_and_the_parts_keep_their_labels() -> None:
    session = LearnSession("m", "c", window=100)
    session.open_request()
    session.on_response(opened(credits=100))
    labels = [str(i) for i in range(50)]
    session.add(Batch(np.arange(50, dtype=np.uint8).repeat(200 * 200 * 3).reshape(50, 200, 200, 3), labels))
    sent = [request.batch for request in session.next_messages()]
    assert len(sent) > 1
    assert all(batch.ByteSize() <= 2**20 for batch in sent)
    assert [batch.sequence for batch in sent] == list(range(1, len(sent) + 1))
    assert [label for batch in sent for label in batch.labels] == labels
    first_bytes = [batch.samples.images.data[0] for batch in sent]
    assert first_bytes == [int(batch.labels[0]) for batch in sent]


def test_the_servers_largest_batch_is_respected() -> None:
    session = LearnSession("m", "c")
    session.open_request()
    session.on_response(opened(credits=100, max_samples=4))
    session.add((Features(np.zeros((10, 2), np.float32)), ["a"] * 10))
    assert [len(r.batch.labels) for r in session.next_messages()] == [4, 4, 2]


def test_the_parts_of_a_large_batch_keep_to_the_window() -> None:
    session = LearnSession("m", "c", window=3)
    session.open_request()
    session.on_response(opened(credits=100, max_samples=1))
    session.add((Features(np.zeros((10, 2), np.float32)), ["a"] * 10))
    assert [r.batch.sequence for r in session.next_messages()] == [1, 2, 3]
    session.on_response(learn_pb2.LearnResponse(durable=learn_pb2.Durable(sequence=2, timeline="t")))
    assert [r.batch.sequence for r in session.next_messages()] == [4, 5]


def test_a_numbered_batch_is_never_split() -> None:
    session = LearnSession("m", "c", first_sequence=1)
    session.open_request()
    session.on_response(opened())
    session.add(Batch(np.zeros((50, 200, 200, 3), np.uint8), ["a"] * 50))
    assert isinstance(session.failure, InvalidArgument)
    assert "split_batch" in str(session.failure)


def test_credits_of_zero_do_not_stop_a_stream_for_good() -> None:
    session = LearnSession("m", "c")
    session.open_request()
    session.on_response(opened(credits=0))
    session.add(batches_of(1)[0])
    assert len(session.next_messages()) == 1


def test_an_empty_batch_is_sent_as_it_is() -> None:
    session = LearnSession("m", "c")
    session.open_request()
    session.on_response(opened())
    session.add(Batch(np.zeros((0, 8, 8, 3), np.uint8), []))
    (request,) = session.next_messages()
    assert list(request.batch.samples.images.shape) == [0, 8, 8, 3]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (Batch([b"x"], ["a", "b"]), "1 samples and 2 as labels"),
        (Batch([b"x"], "a"), "one str"),
        (Batch([b"x"], [3]), r"labels\[0\] is a int"),  # type: ignore[list-item]  # that is the mistake
        ([b"x"], "batches yields a list"),
        (Batch(["/nowhere/x.png"], ["a"]), "cannot be read"),
    ],
)
def test_a_wrong_batch_ends_the_batches_with_a_reason(batch: Batch, message: str) -> None:
    session = LearnSession("m", "c")
    session.open_request()
    session.on_response(opened())
    session.add(batch)
    session.next_messages()
    with pytest.raises(InvalidArgument, match=message):
        raise session.failure or AssertionError("accepted")


def test_arguments_are_checked_before_anything_is_sent() -> None:
    for arguments in ({"window": 0}, {"first_sequence": 0}):
        with pytest.raises(InvalidArgument):
            LearnSession("m", "c", **arguments)  # type: ignore[arg-type]  # a union of values
    with pytest.raises(InvalidArgument):
        LearnSession("m", "Not An Id")


def test_each_message_names_the_step_of_its_batch_also_when_it_is_sent_again() -> None:
    session = LearnSession("m", "c", step="winter")
    session.open_request()
    server = SimulatedServer(random.Random(0), credits=4)
    session.on_response(server.open())
    for batch in (*batches_of(1), Batch(Features(np.zeros((1, 2), np.float32)), ["x"], "summer")):
        session.add(batch)
    first = session.next_messages()
    assert [request.batch.step for request in first] == ["winter", "summer"]
    session.open_request()
    session.on_response(server.open())
    assert session.next_messages() == first


def test_a_name_that_is_none_of_a_step_ends_the_stream_before_it_is_sent() -> None:
    with pytest.raises(InvalidArgument, match="is not a step's name"):
        LearnSession("m", "c", step="The Kitchen")
    session = LearnSession("m", "c")
    session.add(Batch(Features(np.zeros((1, 2), np.float32)), ["x"], "ß"))
    assert isinstance(session.failure, InvalidArgument)
    assert session.failure.field == "step"
