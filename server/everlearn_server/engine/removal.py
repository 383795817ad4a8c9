"""Takes out of a model what one client contributed, or a class: what is asked, what covers it, what is committed.

Receipts come one after the other and are summed up beside the model; the model itself is touched once, between two
batches, by one subtraction. So an erasure takes as much memory as the model's sums, however many receipts there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from everlearn.contribution import Contribution
from everlearn.errors import DataLossError, InputError, PreconditionError
from everlearn.learners.base import Learner
from everlearn.truth import LabelSets, Values
from everlearn_server.engine.hold import Hold
from everlearn_server.engine.integration import Integration
from everlearn_server.engine.receipts import MODULUS, Receipts

INCOMPLETE: Final = "RECEIPTS_INCOMPLETE"
BELOW_MINIMUM: Final = "BELOW_MINIMUM"
Ranges = list[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Before:
    """What was taken out of the model earlier."""

    erased: frozenset[int] = frozenset()
    """Sequences of this client."""
    refused: frozenset[int] = frozenset()
    """Sequences of this client that never had an effect, as far as they are still known."""
    classes: Mapping[str, int] = field(default_factory=dict)
    """Class -> this client's last sequence that was learned when it was taken out."""


class Presented:
    """The receipts of one client, as far as they have come. One thread at a time."""

    def __init__(self, client: str, receipts: Receipts, part: Learner, before: Before, *, durable: int) -> None:
        self.client = client
        self.part = part
        """What they add up to."""
        self.durable = durable
        self.samples = 0
        self.mac = 0
        self.unwitnessed = 0
        """Receipts of sequences that were sent again."""
        self.erased = 0
        self.not_durable = 0
        self.foreign = 0
        self.why_foreign = ""
        self._receipts = receipts
        self._before = before
        self._held: set[int] = set()

    def take(self, receipts: Sequence[tuple[int, bytes]], *, witnessed_only: bool) -> None:
        """Adds some: (sequence, sealed). What does not count is counted."""
        for sequence, sealed in receipts:
            if sequence in self._held or sequence in self._before.refused:
                continue
            if sequence in self._before.erased:
                self.erased += 1
                continue
            if sequence > self.durable:
                self.not_durable += 1
                continue
            self._take(sequence, sealed, witnessed_only)

    @property
    def receipts(self) -> int:
        """That count."""
        return len(self._held)

    @property
    def sequences(self) -> Ranges:
        """Of those."""
        return ranges_of(self._held)

    @property
    def missing(self) -> Ranges:
        """Durable sequences of which there is no receipt. Some may have been refused long ago."""
        known = self._held | self._before.erased | self._before.refused
        return ranges_of(sequence for sequence in range(1, self.durable + 1) if sequence not in known)

    def _take(self, sequence: int, sealed: bytes, witnessed_only: bool) -> None:
        try:
            receipt = self._receipts.open(self.client, sequence, sealed)
        except InputError as error:
            self.foreign, self.why_foreign = self.foreign + 1, error.message
            return
        if witnessed_only and not receipt.is_witnessed:
            self.unwitnessed += 1
            return
        gone = {label for label, last in self._before.classes.items() if sequence <= last}
        contribution = _without(receipt.contribution, gone)
        self.part.integrate(contribution.quantised_Bd, contribution.truth)
        self._held.add(sequence)
        self.samples += contribution.samples
        self.mac = (self.mac + receipt.mac) % MODULUS
        self.unwitnessed += not receipt.is_witnessed


def check_minimum(hold: Hold | None, work: Integration, client: str, samples: int, *, before: int) -> None:
    """Where steps must be of k samples of m clients, this one is what is taken out and what waits to be committed. And
    what came since the state before the client's first commit (of `before` samples, and still known) must be as much
    without it: that state and the one which is left differ by that alone.

    Raises PreconditionError (reason BELOW_MINIMUM).
    """
    if hold is None:
        return
    fresh = {name: tail.samples - tail.committed for name, tail in work.tails.items() if tail.samples > tail.committed}
    moved, clients = samples + sum(fresh.values()), len({client, *fresh})
    if moved < hold.samples or clients < hold.clients:
        raise PreconditionError(
            f"taking out what would change the model by {moved} samples of {clients} clients tells of them alone "
            f"(privacy: {hold.samples} samples of {hold.clients} clients in a step); ask again when samples of others "
            "wait to be committed with it",
            reason=BELOW_MINIMUM,
        )
    others = work.learner.samples - samples - before
    if 0 < others < hold.samples:
        raise PreconditionError(
            f"what others sent since the state before this client's first samples is {others} samples, and without "
            f"this client that would show (privacy: {hold.samples} samples in a step); ask again when "
            f"{hold.samples - others} more have come",
            reason=BELOW_MINIMUM,
        )


def incomplete_because(presented: Presented, work: Integration) -> str:
    """Why the receipts are not all that was learned of their client; empty where they are, which their sum proves."""
    tail = work.tails[presented.client]
    if tail.mac is None:
        return "the client began before this server accounted for what it learns: nothing proves what is all of it"
    if presented.mac == tail.mac:
        return ""
    missing = presented.missing
    if tail.integrated > presented.durable:
        return f"the client is learning now (batch {tail.integrated}, receipts up to {presented.durable}); stop it"
    if missing:
        count = sum(last - first + 1 for first, last in missing)
        return (
            f"{presented.samples} of {tail.samples} samples are covered; there is no receipt for {count} of "
            f"{presented.durable} batches ({told(missing)})"
        )
    return (
        "every batch has a receipt, and yet they do not add up to what was learned: one was given for a batch that was "
        "sent again and came out differently"
    )


def subtracted(work: Integration, presented: Presented, *, partial: bool) -> bool:
    """Between two batches: subtracts what was presented. Returns whether nothing of the client is left.

    Raises PreconditionError (reason RECEIPTS_INCOMPLETE) and what `Learner.subtract` raises; nothing has changed then.
    """
    because = incomplete_because(presented, work)
    if because and not partial:
        raise PreconditionError(
            f"{because}; find the other receipts, or take out what these cover with `partial`",
            field="receipts",
            reason=INCOMPLETE,
        )
    if not presented.receipts:
        raise PreconditionError(
            f"no receipt of client {presented.client!r} counts: nothing can be taken out",
            field="receipts",
            reason=INCOMPLETE,
        )
    work.learner.subtract(presented.part)
    tail = work.tails[presented.client]
    if tail.mac is not None:
        tail.mac = (tail.mac - presented.mac) % MODULUS
    taken = presented.samples if because else tail.samples
    tail.samples, tail.committed = max(tail.samples - taken, 0), max(tail.committed - taken, 0)
    if not because:
        work.prequential.forget_client(presented.client)
        work.fleet.forget(presented.client)
    return not because


def own_subtracted(work: Integration, client: str) -> int:
    """Between two batches: subtracts a client's own sums, which the server keeps; returns how many samples' they were.

    Raises DataLossError where they are damaged or not all that was learned of it; nothing has changed then.
    """
    assert work.parts is not None, "the model keeps them"
    tail, part = work.tails[client], work.parts.of(client, work.learner)
    if part.samples != tail.samples:
        raise DataLossError(
            f"the sums that are kept of client {client!r} are of {part.samples} samples, and {tail.samples} were "
            "learned of it: they are damaged; restore a backup"
        )
    work.learner.subtract(part)
    work.parts.erased(client)
    tail.samples, tail.committed, tail.mac = 0, 0, 0
    work.prequential.forget_client(client)
    work.fleet.forget(client)
    return part.samples


def dropped(work: Integration, client: str) -> int:
    """Between two batches: drops the single features that came from a client, and forgets its name."""
    gone = work.learner.forget_client(client)
    forgotten(work, client)
    return gone


def forgotten(work: Integration, client: str) -> None:
    """Beside the learner: nothing is known any more of what a client sent, but how far it has come."""
    tail = work.tails[client]
    tail.samples, tail.committed, tail.mac = 0, 0, 0
    work.prequential.forget_client(client)
    work.fleet.forget(client)


def ranges_of(sequences: Iterable[int]) -> Ranges:
    """First and last of each run of consecutive numbers.

    >>> ranges_of([3, 1, 2, 7])
    [(1, 3), (7, 7)]
    """
    found: Ranges = []
    for sequence in sorted(sequences):
        if found and sequence == found[-1][1] + 1:
            found[-1] = (found[-1][0], sequence)
        else:
            found.append((sequence, sequence))
    return found


def told(ranges: Ranges, *, most: int = 5) -> str:
    """For people: `1-3, 7, ...`."""
    texts = [f"{first}-{last}" if last > first else str(first) for first, last in ranges[:most]]
    return ", ".join([*texts, *(["..."] if len(ranges) > most else [])])


def _without(contribution: Contribution, gone: set[str]) -> Contribution:
    """Without the samples of classes that were taken out before."""
    truth = contribution.truth
    if not gone or isinstance(truth, LabelSets | Values):
        return contribution
    rows = [row for row, label in enumerate(truth) if label not in gone]
    return Contribution(quantised_Bd=contribution.quantised_Bd[rows], truth=tuple(truth[row] for row in rows))
