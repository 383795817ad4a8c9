"""What a learner hears while it streams, and what is left to say at the end. Plain values, safe to keep."""

from __future__ import annotations

from dataclasses import dataclass

from everlearn_client.errors import EverlearnClientError
from everlearn_protos.v1 import learn_pb2, models_pb2


@dataclass(frozen=True)
class Prequential:
    """Test-then-train accuracy: each sample was predicted right before it was learned."""

    tested: int
    correct: int
    accuracy: float
    windowed_accuracy: float
    window: int

    @classmethod
    def of(cls, message: models_pb2.Prequential) -> Prequential:
        """From the wire."""
        return cls(message.tested, message.correct, message.accuracy, message.windowed_accuracy, message.window)


@dataclass(frozen=True)
class StageTimes:
    """Milliseconds each stage of a batch took on the server."""

    decode_ms: float
    queue_ms: float
    trunk_ms: float
    test_ms: float
    integrate_ms: float


@dataclass(frozen=True)
class Opened:
    """A connection stands. Everything up to `durable_sequence` needs no resending."""

    epoch: int
    durable_sequence: int
    timeline: str
    credits: int
    held_sequence: int = 0
    """Last sequence that waits in the server's RAM for other learners, where it is above `durable_sequence`."""


@dataclass(frozen=True)
class Received:
    """The server has tested and learned a batch in RAM; only `Durable` is final."""

    sequence: int
    samples: int
    correct: int
    prequential: Prequential
    classes_seen: int
    regularization: float
    times: StageTimes
    tested_by_version: int
    duplicate: bool

    @classmethod
    def of(cls, message: learn_pb2.Received) -> Received:
        """From the wire."""
        t = message.times
        return cls(
            sequence=message.sequence,
            samples=message.samples,
            correct=message.correct,
            prequential=Prequential.of(message.prequential),
            classes_seen=message.classes_seen,
            regularization=message.regularization,
            times=StageTimes(t.decode_ms, t.queue_ms, t.trunk_ms, t.test_ms, t.integrate_ms),
            tested_by_version=message.tested_by_version,
            duplicate=message.duplicate,
        )


@dataclass(frozen=True)
class Rejected:
    """A batch has no effect: what was wrong with it. Its sequence is spent."""

    sequence: int
    code: str
    field: str
    message: str
    reason: str = ""
    """Machine-readable, e.g. `INVALID_INPUT`, or for limits of one client `CLIENT_SHARE`, `CLIENT_GATE`,
    `CLIENT_LABELS`, `QUARANTINED`."""


@dataclass(frozen=True)
class Durable:
    """Every batch up to `sequence` is committed, once; `version` is the one that knows them, 0 until it is solved."""

    sequence: int
    commit_id: int
    timeline: str
    version: int


@dataclass(frozen=True)
class Reconnecting:
    """The connection broke; the next attempt starts in `delay_s`."""

    attempt: int
    delay_s: float
    error: EverlearnClientError


LearnEvent = Opened | Received | Rejected | Durable | Reconnecting


@dataclass(frozen=True)
class LearnReport:
    """What became of one call of `learn`. A batch is what travels as one message: large ones were split."""

    model: str
    client_id: str
    sent_batches: int
    """Batches taken from the caller and put on the wire, each counted once however often it was resent."""
    sent_samples: int
    durable_batches: int
    """Of those, committed with effect."""
    durable_samples: int
    durable_sequence: int
    """The server's watermark for this learner; resume with `first_sequence` at or below the next one."""
    skipped_batches: int
    """Already durable when this call began (only with `first_sequence`); not sent."""
    duplicates: int
    """Batches the server had already counted when they were resent."""
    rejected_batches: int
    rejected_samples: int
    rejected: tuple[Rejected, ...]
    """The first hundred."""
    reconnects: int
    last: Received | None
    """Prequential accuracy, classes, regularization and times at the end."""
    commit_id: int
    version: int
    epoch: int
    timeline: str
    seconds: float
