"""What passes between a learning stream and the single writer of its model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from everlearn.errors import EverlearnError, FencedError
from everlearn.metrics.record import Record
from everlearn.truth import Truth
from everlearn.values import FeaturesBd
from everlearn_server.engine.serving import Snapshot
from everlearn_server.store.models import MAC_BYTES
from everlearn_server.store.rows import RejectRow, StreamRow


@dataclass(kw_only=True, eq=False)
class Derived:
    """A batch after decode and trunk: features and labels, or the reason why it can have no effect."""

    client: str
    epoch: int
    sequence: int
    features_Bd: FeaturesBd
    labels: Truth
    step: str = ""
    """What it belongs to; empty where nobody says."""
    refusal: EverlearnError | None = None
    fingerprint: bytes = b""
    """Of its message, where batches may wait for long until they are durable; empty elsewhere (see Hold)."""
    wants_receipt: bool = False
    sample_ids: tuple[str, ...] | None = None
    """Where its samples were predicted before; their features are filled in when its turn comes."""

    def rejected(self, refusal: EverlearnError) -> RejectRow:
        """As it is stored where it is refused."""
        return RejectRow(client=self.client, sequence=self.sequence, code=refusal.reason, field=refusal.field)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one batch in RAM."""

    sequence: int
    samples: int = 0
    correct: int = 0
    duplicate: bool = False
    refusal: EverlearnError | None = None
    tested: int = 0
    total_correct: int = 0
    windowed_accuracy: float = 0.0
    window: int = 0
    classes_seen: int = 0
    regularization: float = 0.0
    tested_by_version: int = 0
    test_ms: float = 0.0
    integrate_ms: float = 0.0
    receipt: bytes = b""
    """Where its stream asked for receipts (see `engine.receipts`)."""


@dataclass(kw_only=True)
class Tail:
    """How far one client's stream has come."""

    epoch: int
    integrated: int
    """Last sequence whose effect is in RAM."""
    durable: int
    """Last sequence whose effect is committed."""
    samples: int = 0
    """Learned of this client, those in RAM included."""
    committed: int = 0
    """Of those, in the last commit."""
    fingerprints: dict[int, bytes] = field(default_factory=dict)
    """Sequence -> that of its message, of batches that are in RAM alone (see Hold)."""
    quarantined: bool = False
    """Nothing of it is learned any more."""
    mac: int | None = 0
    """Sum of what each of its batches that were learned adds (see `engine.receipts`); None where that is not known."""

    @classmethod
    def of(cls, row: StreamRow) -> Self:
        """As it is stored."""
        return cls(
            epoch=row.epoch,
            integrated=row.durable_sequence,
            durable=row.durable_sequence,
            samples=row.sample_count,
            committed=row.sample_count,
            quarantined=row.quarantined,
            mac=None if row.learned_mac is None else int.from_bytes(row.learned_mac),
        )

    def row(self) -> StreamRow:
        """As it will be stored with the next commit."""
        mac = None if self.mac is None else self.mac.to_bytes(MAC_BYTES)
        return StreamRow(epoch=self.epoch, durable_sequence=self.integrated, sample_count=self.samples, learned_mac=mac)

    def took(self, row: StreamRow) -> None:
        """What `row` says is committed."""
        self.durable, self.committed = row.durable_sequence, max(self.committed, row.sample_count)
        self.fingerprints = {at: mark for at, mark in self.fingerprints.items() if at > self.durable}


class StreamListener(Protocol):
    """One connection of a client. Called on the event loop; must not raise, or the writer ends the process."""

    def durable_up_to(self, sequence: int, commit_id: int) -> None:
        """Everything up to `sequence` is committed."""

    def over(self, error: EverlearnError) -> None:
        """Nothing more will come: a newer connection has taken over, or the model is being closed."""


Settled = Callable[[Outcome | EverlearnError], None]
"""Hears what became of a batch. Called on the event loop; must not raise, or the writer ends the process."""


@dataclass(kw_only=True)
class Pending:
    """A batch that waits for its turn."""

    batch: Derived
    settled: Settled


@dataclass(kw_only=True)
class Counters:
    """What a writer counts between and over commits."""

    commits: int = 0
    commit_s: float = 0.0


def fenced(epoch: int, client: str, present: int) -> FencedError:
    """What a connection is told whose epoch is over."""
    return FencedError(f"epoch {epoch} of client {client!r} is over; {present} is present", field="open.epoch")


def outcome_of(
    batch: Derived,
    prequential: Record,
    count_C: npt.NDArray[np.int64],
    live: Snapshot | None,
    *,
    duplicate: bool = False,
    correct: int = 0,
    took_s: tuple[float, float] = (0.0, 0.0),
    receipt: bytes = b"",
) -> Outcome:
    """What a stream is told of a batch. `count_C`: samples learned of each label; `live`: what it was tested by;
    `took_s`: the test, and learning it."""
    return Outcome(
        sequence=batch.sequence,
        samples=len(batch.labels),
        correct=correct,
        duplicate=duplicate,
        tested=prequential.tested,
        total_correct=prequential.correct,
        windowed_accuracy=prequential.window_accuracy,
        window=prequential.window,
        classes_seen=int(np.count_nonzero(count_C)),
        regularization=live.head.regularization if live else 0.0,
        tested_by_version=live.version if live and not duplicate else 0,
        test_ms=took_s[0] * 1e3,
        integrate_ms=took_s[1] * 1e3,
        receipt=receipt,
    )
