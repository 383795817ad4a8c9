"""What becomes of one batch: counted before, refused, or tested and learned. Synchronous; the writer calls it.

Deduplication happens here, at the point where an effect enters the memory, and nowhere else: checking on receipt
counts batches twice when a client reconnects while its batches are staged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from everlearn.contribution import Contribution
from everlearn.errors import EverlearnError, PreconditionError, SequenceGapError, UnlearnableError
from everlearn.learners.base import Learner
from everlearn.learners.calibration import Calibration
from everlearn.memories.base import Origin
from everlearn.metrics.fleet import FleetTally
from everlearn.metrics.record import Record
from everlearn.spec.model import ModelSpec
from everlearn.truth import LabelSets, Values
from everlearn.values import FeaturesBd, FeatureScale, QuantisedBd
from everlearn_server.engine.batches import Derived, Outcome, Pending, Tail, fenced, outcome_of
from everlearn_server.engine.client_parts import ClientParts
from everlearn_server.engine.guards import Guard
from everlearn_server.engine.hold import Shown, reused
from everlearn_server.engine.limits import ClientLimits, guards_of
from everlearn_server.engine.receipts import MODULUS, Receipts
from everlearn_server.engine.rewinding import keeping_of
from everlearn_server.engine.serving import Snapshot
from everlearn_server.engine.stacking import Stack, stacks
from everlearn_server.engine.waiting_room import WaitingRoom, room_for, seated
from everlearn_server.store.rows import Keeping, RejectRow, StreamRow

_HOP_S = 0.1


class Integration:
    """Owns the learner, the record of its tests and how far each client has come. One worker thread at a time."""

    def __init__(
        self,
        *,
        learner: Learner,
        scale: FeatureScale,
        prequential: Record,
        streams: Mapping[str, StreamRow],
        live: Callable[[], Snapshot | None],
        guards: Sequence[Guard] = (),
        limits: ClientLimits | None = None,
    ) -> None:
        self.learner = learner
        self.prequential = prequential
        self.fleet = limits.fleet if limits is not None else FleetTally()
        """What each client's batches showed lately."""
        self.tails = {client: Tail.of(row) for client, row in streams.items()}
        self.rejects: list[RejectRow] = []
        """Since the last commit took them."""
        self.changes = 0
        """Raised with every batch that was learned, and by whoever changes the learner otherwise."""
        self.saturated_values = 0
        """Feature values beyond the fixed-point scale since the start: many mean that the trunk meets what it was not
        probed with."""
        self.shown: Shown | None = None
        """What may be said of all that was learned, where that is not everything (see Hold)."""
        self._scale = scale
        self._live = live
        self._own_guards = tuple(guards)
        self._guards = self._own_guards
        self.receipts: Receipts | None = None
        """Set where what is learned is accounted for."""
        self.parts: ClientParts | None = None
        """Set where each client's own sums are kept."""
        self.keeping: Keeping | None = None
        """How earlier moments of it are kept, where it may have to go back."""
        self.room: WaitingRoom | None = None
        """Where predicted samples wait for their labels."""
        self._counts_labels = True
        if limits is not None:
            self.limit(limits.spec)

    def limit(self, spec: ModelSpec) -> None:
        """The declared limits hold from the next batch on."""
        self.keeping = keeping_of(spec)
        self.room = room_for(spec.late_labels, self._scale, self.room)
        self._counts_labels = spec.privacy.tier == "no_raw"
        if not self._counts_labels:  # the other tiers tell nothing of single clients' samples
            self.fleet.forget_labels()
        declared = guards_of(spec, scale=self._scale, tails=self.tails, fleet=self.fleet, learner=self.learner)
        # What is only counted for a trunk in 8 bits moves no head: limits hold once it is learned.
        self._guards = (*self._own_guards, *(declared if not isinstance(self.learner, Calibration) else ()))

    def take_some(self, group: Sequence[Pending]) -> list[Outcome | EverlearnError]:
        """Of the first ones, as many as a hop is worth: heads and commits are not to wait for slow batches."""
        end_s, results = time.monotonic() + _HOP_S, list[Outcome | EverlearnError]()
        for batches in stacks([pending.batch for pending in group], self._scale):
            stack = self._stack(batches)
            for batch in batches:
                results.append(self.take(batch, stack))
                if time.monotonic() >= end_s:
                    return results
        return results

    def take(self, batch: Derived, stack: Stack | None = None) -> Outcome | EverlearnError:
        """What became of it; an error ends its stream, and the sequence is not spent. `stack`: one that has it."""
        tail = self.tails[batch.client]
        if batch.epoch != tail.epoch:
            return fenced(batch.epoch, batch.client, tail.epoch)
        if batch.sequence <= tail.integrated:
            is_another = tail.fingerprints.get(batch.sequence, batch.fingerprint) != batch.fingerprint
            if is_another and not isinstance(self.learner, Calibration):
                return reused(batch.sequence, tail)
            if is_another:  # nobody was told that the other one is held: a client may have begun anew
                tail.integrated = batch.sequence - 1
                return self.take(batch, stack)
            return outcome_of(batch, *self._told, self._live(), duplicate=True, receipt=self._receipt_again(batch))
        expected = tail.integrated + 1
        if batch.sequence > expected:
            return SequenceGapError(f"sequence {batch.sequence} leaves a gap; send {expected}", expected=expected)
        # Only here: which step is one too many depends on the batches before.
        refusal = quarantined(batch, tail) or batch.refusal or self.prequential.steps.refusal(batch.step)
        refusal = refusal or seated(self.room, batch)
        if refusal is None:
            result = self._learn(batch, tail, stack or self._stack([batch]))
        else:
            result = self._refuse(batch, tail, refusal)
        if batch.fingerprint and tail.integrated == batch.sequence:
            tail.fingerprints[batch.sequence] = batch.fingerprint
        return result

    def _stack(self, batches: Sequence[Derived]) -> Stack:
        return Stack(batches, self._scale, self._live() if self.prequential.is_kept else None)

    @property
    def _told(self) -> tuple[Record, npt.NDArray[np.int64]]:
        if self.shown is not None:
            return self.shown.record, self.shown.count_C
        return self.prequential, self.learner.count_C

    def _refuse(self, batch: Derived, tail: Tail, refusal: EverlearnError) -> Outcome:
        self.rejects.append(batch.rejected(refusal))
        self.fleet.note(batch.client, rejected=1)
        tail.integrated = batch.sequence
        return Outcome(sequence=batch.sequence, refusal=refusal)

    def _learn(self, batch: Derived, tail: Tail, stack: Stack) -> Outcome | EverlearnError:
        begun_s = time.perf_counter()
        live, scores_BC = stack.live, stack.scores(batch)
        tested_s = time.perf_counter()
        for guard in self._guards:
            refusal = guard.refusal(batch, scores_BC)
            if refusal is not None:  # tested all the same: by that its client may be learned from again
                self._count(batch, scores_BC, stack)
                return self._refuse(batch, tail, refusal)
        try:
            quantised_Bd, restored_Bd = stack.quantised(batch, self._admitted(batch))
            self.learner.integrate(quantised_Bd, batch.labels, origin=Origin(client=batch.client, time_s=time.time()))
        except UnlearnableError as error:
            return self._refuse(batch, tail, error)
        except EverlearnError as error:  # a full memory: nothing was added, the sequence is not spent
            return error
        if self.prequential.is_kept:  # else what samples are like is told to nobody
            self.saturated_values += int(np.count_nonzero(np.abs(quantised_Bd) == self._scale.limit))
        before = self.prequential.correct
        known = live.head.labels if live else ()
        self.prequential.test(
            batch.labels, batch.client, scores_BC=scores_BC, known=known, features_Bd=restored_Bd, step=batch.step
        )
        self._count(batch, scores_BC, stack)
        correct = self.prequential.correct - before
        tail.integrated = batch.sequence
        tail.samples += len(batch.labels)
        receipt = self._accounted(batch, tail, quantised_Bd)
        if self.parts is not None:
            self.parts.add(batch.client, quantised_Bd, batch.labels, self.learner)
        for guard in self._guards:
            guard.took(batch)
        if self.room is not None and batch.sample_ids is not None:
            self.room.joined(batch.sample_ids, batch.labels)
        self.changes += 1
        took_s = tested_s - begun_s, time.perf_counter() - tested_s
        tested_by = (live or self._live()) if self.prequential.is_kept else None
        return outcome_of(batch, *self._told, tested_by, correct=correct, took_s=took_s, receipt=receipt)

    def _admitted(self, batch: Derived) -> FeaturesBd:
        """What of its features is learned: those themselves where no guard shortens them."""
        features_Bd = batch.features_Bd
        for guard in self._guards:
            features_Bd = guard.admitted(batch, features_Bd)
        return features_Bd

    def _accounted(self, batch: Derived, tail: Tail, quantised_Bd: QuantisedBd) -> bytes:
        """Adds the batch to what is known to have been learned of its client; its receipt, where one is wanted."""
        if self.receipts is None or self.learner.inseparable_because:
            return b""
        contribution = Contribution(quantised_Bd=quantised_Bd, truth=batch.labels)
        if tail.mac is not None:
            tail.mac = (tail.mac + self.receipts.mac(batch.client, batch.sequence, contribution)) % MODULUS
        return self.receipts.seal(batch.client, batch.sequence, contribution) if batch.wants_receipt else b""

    def _receipt_again(self, batch: Derived) -> bytes:
        """Of a batch that comes once more: its client may never have got the first one."""
        if self.receipts is None or not batch.wants_receipt or batch.refusal or self.learner.inseparable_because:
            return b""
        if batch.sample_ids is not None:  # what it was made of has left the room
            return b""
        contribution = Contribution(quantised_Bd=self._scale.quantise(self._admitted(batch)), truth=batch.labels)
        return self.receipts.seal(batch.client, batch.sequence, contribution, again=True)

    def _count(self, batch: Derived, scores_BC: npt.NDArray[np.float32] | None, stack: Stack) -> None:
        live = stack.live
        if not self._counts_labels or live is None or isinstance(batch.labels, LabelSets | Values):
            return
        self.fleet.count(batch.client, batch.labels, scores_BC, live.head.labels)
        novelty_B = stack.novelty(batch)
        if novelty_B is not None:
            self.fleet.watch(batch.client, novelty_B)


def quarantined(batch: Derived, tail: Tail) -> EverlearnError | None:
    """What a client is told of which nothing is learned any more; None where that is not so."""
    if not tail.quarantined:
        return None
    return PreconditionError(
        f"client {batch.client!r} is in quarantine: nothing of it is learned. Who runs the server can end that "
        "(`everlearn quarantine MODEL CLIENT --undo`); then send it again, as a new batch",
        field="open.client",
        reason="QUARANTINED",
    )
