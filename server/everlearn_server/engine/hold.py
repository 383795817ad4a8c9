"""Tier `aggregate`: nothing is persisted or served until it describes enough samples of enough clients.

Batches are integrated in RAM as ever; the commit is what waits. Whoever asks meanwhile (heads, figures, digests) gets
the state of the last commit, a *boundary*: so any two states that were persisted or served are the same, or are at
least k samples of m clients apart. What waits is lost with the process, which is why none of it was acknowledged as
durable: clients keep it and send it again. How far apart two states are follows from what is committed with them (the
samples of each stream), so the rule is the same after a crash.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from everlearn.errors import PreconditionError
from everlearn.learners.base import Learned
from everlearn.learners.closed_form import LearnedSums
from everlearn.learners.masked import Masked
from everlearn.metrics.minimum import Coarse
from everlearn.metrics.record import Record
from everlearn.spec.model import ModelSpec
from everlearn.sums import Sums
from everlearn.values import Task
from everlearn_server.engine.batches import Tail

HELD: Final = "HELD"
"""Reason of the error that ends a stream whose last batches wait for more."""
REUSED: Final = "SEQUENCE_REUSED"
"""Reason of the error where a sequence that waits comes again with another content."""
GRACE_S: Final = 3.0
"""So long a stream that has been half-closed waits for samples of others before it is told to keep its own."""


@dataclass(frozen=True, kw_only=True)
class Shortfall:
    """What waits, and what is missing until it may be committed."""

    samples: int
    clients: int
    missing_samples: int
    missing_clients: int

    def told(self) -> str:
        """In words: `48 samples of 1 client wait for 16 more`."""
        wanted = []
        if self.missing_samples:
            wanted.append(f"{self.missing_samples} more")
        if self.missing_clients:
            wanted.append(f"samples of {_plural(self.missing_clients, 'more client', 'more clients')}")
        waiting = f"{_plural(self.samples, 'sample', 'samples')} of {_plural(self.clients, 'client', 'clients')}"
        return f"{waiting} wait for {' and '.join(wanted)}"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What may be said of what has been learned."""

    labels: Sequence[str]
    count_C: npt.NDArray[np.int64]
    """Of each of those."""
    samples: int
    """Of all classes, those that are not shown included."""
    record: Record


@dataclass(frozen=True, kw_only=True, eq=False)
class Boundary:
    """What had been learned at a commit."""

    learned: Masked
    told: Mapping[str, Any]
    """The record of its tests."""
    tails: Mapping[str, int]
    """Client -> the last sequence that is in it."""
    shown: Shown

    @property
    def inner(self) -> Learned:
        """Of all classes."""
        return self.learned.inner

    @property
    def sums(self) -> Sums:
        """Of all classes. Raises PreconditionError (reason NO_SUMS)."""
        inner = self.inner
        if not isinstance(inner, LearnedSums):
            raise PreconditionError("this model keeps no sums of single labels", reason="NO_SUMS")
        return inner.sums


class Fingerprints:
    """Tell whether a batch that waits in RAM comes again as another one under its number."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def fingerprint(self, message: bytes) -> bytes:
        """Of a batch that waits. Keyed with what dies with the process: a plain digest of data that can be guessed
        would confirm the guess."""
        return hashlib.blake2b(message, key=self._secret, digest_size=16).digest()


class Hold(Fingerprints):
    """The minima of one model."""

    def __init__(self, *, samples: int, clients: int, class_samples: int, task: Task = "classification") -> None:
        super().__init__()
        self.samples = samples
        """k: in any step from one persisted or served state to the next."""
        self.clients = clients
        """m: whose samples these are."""
        self.class_samples = class_samples
        """Below which no class is served."""
        self._task: Task = task

    @classmethod
    def of(cls, spec: ModelSpec) -> Self | None:
        """None where the tier sets no minima."""
        privacy = spec.privacy
        if privacy.min_samples is None:
            return None
        assert privacy.min_clients is not None, "a tier fills in all of its options"
        assert privacy.min_class_samples is not None, "likewise"
        return cls(
            samples=privacy.min_samples,
            clients=privacy.min_clients,
            class_samples=privacy.min_class_samples,
            task=spec.task,
        )

    def shortfall(self, tails: Iterable[Tail]) -> Shortfall | None:
        """What is missing until all that is in RAM may be persisted; None where it may.

        A group of rejections alone brings no sample, and may.
        """
        fresh = [tail.samples - tail.committed for tail in tails if tail.samples > tail.committed]
        short = Shortfall(
            samples=sum(fresh),
            clients=len(fresh),
            missing_samples=max(self.samples - sum(fresh), 0),
            missing_clients=max(self.clients - len(fresh), 0),
        )
        return short if fresh and (short.missing_samples or short.missing_clients) else None

    def boundary(self, learned: Learned, told: Mapping[str, Any], tails: Mapping[str, int]) -> Boundary:
        """A state as one that may be shown. `told`: its record as `Record.to_dict` gives it; `tails`: the last sequence
        of each client that is in it."""
        masked = Masked(learned, self.class_samples)
        record = Coarse(
            told,
            self._task,
            class_samples=self.class_samples,
            # What one client's samples showed is said of one client: where m of them hide each other, not at all.
            client_samples=self.samples if self.clients == 1 else None,
        )
        shown = Shown(labels=masked.labels, count_C=masked.count_C, samples=masked.samples, record=record)
        return Boundary(learned=masked, told=told, tails=tails, shown=shown)


def held(waits: str, *, first: int, last: int) -> PreconditionError:
    """What a client is told whose batches were received and are not durable. `waits`: for what, in words."""
    which = f"sequence {first}" if first == last else f"sequences {first} to {last}"
    return PreconditionError(
        f"{which} are held, not durable: {waits}; keep them, and send them again with what comes next",
        reason=HELD,
    )


def reused(sequence: int, tail: Tail) -> PreconditionError:
    """What a client is told that gives another batch a number which waits."""
    return PreconditionError(
        f"sequence {sequence} is held with another content than this; send again what it had, or go on with "
        f"{tail.integrated + 1}",
        field="batch.sequence",
        reason=REUSED,
    )


def _plural(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"
