"""Erasures: from what is asked to a signed receipt. Event loop only."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import structlog

from everlearn.errors import NotFoundError, PreconditionError
from everlearn.learners.calibration import NOT_OF_INT8
from everlearn.spec.model import ModelSpec
from everlearn_server.engine.erasure_receipt import SAID, Asked, Told, receipt_of, told_by
from everlearn_server.engine.integration import Integration
from everlearn_server.engine.live_model import LiveModel
from everlearn_server.engine.operations import Operation, Operations
from everlearn_server.engine.removal import (
    Before,
    Presented,
    check_minimum,
    dropped,
    forgotten,
    incomplete_because,
    own_subtracted,
    subtracted,
)
from everlearn_server.engine.rewinding import Rewound, Target, rewind, target_of
from everlearn_server.store.rows import DownloadRow, Erasing, ErasureRow
from everlearn_server.store.store import Store

_logger = structlog.get_logger(__name__)
NOT_ERASABLE: Final = "NOT_ERASABLE"
KIND: Final = "erase"
"""Of an operation."""


class Erasure:
    """One that is under way: `feed` receipts, then `finish`."""

    def __init__(self, model: LiveModel, store: Store, asked: Asked) -> None:
        self._model = model
        self._store = store
        self.asked = asked
        self._presented: Presented | None = None
        self._samples_learned = 0
        self._rewound: Rewound | None = None

    @property
    def goes_back(self) -> bool:
        """Whether weights are set back and learn again, which may take as long as learning did."""
        return bool(self.asked.client) and self._model.spec.spec.by_gradient

    async def begin(self) -> None:
        """Raises NotFoundError (no such client), PreconditionError (reason NOT_ERASABLE, NOT_SEPARABLE)."""
        spec, work = self._model.spec.spec, self._model.writer.work
        _check(spec, self.asked)
        client, label = self.asked.client, self.asked.label
        if label and label not in work.learner.labels:
            raise NotFoundError(f"model {self._model.name!r} has no class {label[:80]!r}", field="open.label")
        if not client:
            return
        if client not in work.tails:
            raise NotFoundError(f"model {self._model.name!r} has never met a client {client!r}", field="open.client")
        self._samples_learned = work.tails[client].samples
        if spec.memory.kind == "latents" or spec.by_gradient or work.parts is not None:
            return
        assert work.receipts is not None
        part = await asyncio.to_thread(work.learner.alone)
        before = await self._before(client)
        self._presented = Presented(client, work.receipts, part, before, durable=self._model.writer.durable(client))

    async def feed(self, receipts: Sequence[tuple[int, bytes]]) -> int:
        """Adds some, (sequence, sealed); returns how many count so far. Raises PreconditionError where none are asked
        for."""
        if self._presented is None:
            raise PreconditionError(
                "this erasure takes no receipts: what is kept names its clients, or a class goes as a whole; leave "
                "them out",
                field="receipts",
                reason=NOT_ERASABLE,
            )
        await asyncio.to_thread(self._presented.take, receipts, witnessed_only=self.asked.partial)
        return self._presented.receipts

    async def finish(self) -> Told:
        """Does it, or says what it would do. What was taken out before is said again, with its receipt.

        Raises PreconditionError (reason RECEIPTS_INCOMPLETE), InvalidError where the receipts cannot be a part of what
        the model has learned; nothing was changed then.
        """
        if (again := await self.told_before()) is not None:
            return replace(again, row=None) if self.asked.dry_run else again
        return await (self._plan() if self.asked.dry_run else self._carry_out())

    async def told_before(self) -> Told | None:
        """What was told when all of it was taken out; None where something is left."""
        return await self.again() if await self._is_done() else None

    async def _plan(self) -> Told:
        if self.goes_back:
            target = await asyncio.to_thread(self._target)
            learned = self._model.writer.learner.samples
            self._rewound = Rewound(commit_id=target.commit_id, because=target.because, samples_before=learned)
        since = await self._since()
        versions = await self._store.ledger.knowing(self._model.name, since)
        exports = [row.version_number for row in await self._store.catalog.exports(self._model.name)]
        gone = [number for number in exports if number in versions]
        told = self._told(self._because(), versions=versions, exports=gone)
        return replace(told, copies=await self._store.ledger.holding(self._model.name, since))

    async def _carry_out(self) -> Told:
        model, asked = self._model, self.asked
        since, told = await self._since(), list[Told]()
        samples_before = await self._store.ledger.samples_before(model.name, since)
        exports = [row.version_number for row in await self._store.catalog.exports(model.name)]

        def take_out(work: Integration) -> Erasing:
            before, samples = work.learner.learned().digest(), work.learner.samples
            because, is_whole, taken, less = "", True, 0, None
            if asked.label:
                work.learner.forget_class(asked.label)
                taken = samples - work.learner.samples
                sequences: Any = sorted((client, tail.integrated) for client, tail in work.tails.items())
            elif self.goes_back:
                taken = work.tails[asked.client].samples
                self._rewound = rewind(work, asked.client, self._target())
                forgotten(work, asked.client)
                less = samples - work.learner.samples  # with those of others that were not kept
                sequences = [(1, work.tails[asked.client].integrated)]
            elif self._presented is None:
                taken = (own_subtracted if work.parts is not None else dropped)(work, asked.client)
                sequences = [(1, work.tails[asked.client].integrated)]
            else:
                samples_out = self._presented.samples
                check_minimum(model.writer.held.hold, work, asked.client, samples_out, before=samples_before)
                because = incomplete_because(self._presented, work)
                is_whole = subtracted(work, self._presented, partial=asked.partial)
                taken = samples_out
                sequences = [(1, self._presented.durable)] if is_whole else self._presented.sequences
            after = work.learner.learned().digest()
            stream = work.tails[asked.client].row() if asked.client else None
            if asked.client and work.room is not None:
                work.room.forget(asked.client)

            def attest(commit_id: int, versions: Sequence[int], copies: Sequence[DownloadRow]) -> tuple[str, bytes]:
                gone = [number for number in exports if number in versions]
                told.append(replace(self._told(because, versions=versions, exports=gone, samples=taken), copies=copies))
                return self._attested(told[-1], sequences, commit_id, (before, after))

            return Erasing(
                client=asked.client,
                label=asked.label,
                sample_count=taken if less is None else less,
                sequences=sequences,
                stream=stream,
                is_whole=is_whole,
                since_commit=since,
                attest=attest,
            )

        receipt = await model.erase(take_out)
        assert receipt.erased is not None
        _log(model.name, told[-1], receipt.erased)
        return _with(told[-1], receipt.erased, model)

    def _attested(self, told: Told, sequences: Any, commit_id: int, digests: tuple[str, str]) -> tuple[str, bytes]:
        asked = self.asked
        about = {
            **({"client": asked.client, "sequences": sequences} if asked.client else {"class": asked.label}),
            "commit": commit_id,
            "state_before": digests[0],
            "state_after": digests[1],
        }
        text = receipt_of(told, self._model.row, self._store.timeline, about)
        return text, self._store.keys.sign(text.encode())

    def _told(
        self, because: str, *, versions: Sequence[int], exports: Sequence[int], samples: int | None = None
    ) -> Told:
        presented, learned = self._presented, self._samples_learned
        if presented is None:
            how = self._how_unpresented
            if samples is None and how == "own sums subtracted":
                samples = learned
            if samples is None and self.asked.label:
                learner = self._model.writer.work.learner
                samples = int(learner.count_C[list(learner.labels).index(self.asked.label)])
            return Told(
                how=how,
                statement=SAID[how],
                rewound=self._rewound,
                exact=how in ("class subtracted", "own sums subtracted"),
                samples=samples or 0,
                samples_learned=learned,
                versions=versions,
                exports=exports,
            )
        how = "subtracted in part" if because else "subtracted"
        return Told(
            how=how,
            statement=SAID[how],
            exact=not because,
            samples=presented.samples,
            samples_learned=learned,
            durable_sequence=presented.durable,
            receipts=presented.receipts,
            unwitnessed=presented.unwitnessed,
            erased_before=presented.erased,
            not_durable=presented.not_durable,
            foreign=presented.foreign,
            why_foreign=presented.why_foreign,
            missing=presented.missing if because else [],
            incomplete_because=because,
            versions=versions,
            exports=exports,
        )

    @property
    def _how_unpresented(self) -> str:
        """A key of `SAID`: what is done where no receipts are asked for."""
        if self.asked.label:
            return "class subtracted"
        if self._model.writer.work.parts is not None:
            return "own sums subtracted"
        if self._rewound is not None:
            return "rewound" if self._rewound.commit_id else "relearned"
        return "dropped"

    def _target(self) -> Target:
        return target_of(self._store.moments, self._model.name, self.asked.client)

    def _because(self) -> str:
        return incomplete_because(self._presented, self._model.writer.work) if self._presented is not None else ""

    async def _since(self) -> int | None:
        """The first commit with the client's data; None: since ever."""
        if not self.asked.client:
            return None
        return (await self._store.ledger.streams(self._model.name))[self.asked.client].first_commit or None

    async def _before(self, client: str) -> Before:
        erased: set[int] = set()
        classes: dict[str, int] = {}
        for row in await self._store.ledger.erasures(self._model.name):
            ranges = json.loads(row.sequences_json)
            if row.client == client:
                erased.update(sequence for first, last in ranges for sequence in range(first, last + 1))
            elif row.label:
                classes[row.label] = dict(ranges).get(client, 0)
        refused = await self._store.ledger.rejected(self._model.name, client)
        return Before(erased=frozenset(erased), refused=refused, classes=classes)

    async def again(self, *, first: bool = False) -> Told | None:
        """What was told of this client's last erasure, with its receipt; None where there is none. `first`: it has not
        been told yet."""
        rows = [row for row in await self._store.ledger.erasures(self._model.name) if row.client == self.asked.client]
        if not rows:
            return None
        told = replace(self._told("", versions=(), exports=()), **told_by(rows[-1].receipt_json))
        if first:
            return _with(told, rows[-1], self._model, samples_learned=told.samples)
        known = told.erased_before or self._model.writer.work.tails[self.asked.client].integrated
        return _with(told, rows[-1], self._model, samples=0, erased_before=known)

    async def _is_done(self) -> bool:
        """Whether nothing of it is left that could be taken out; no receipts prove it, but none is there either."""
        if self._presented is not None:
            return not self._presented.receipts and self._presented.erased > 0
        client = self.asked.client
        if not client or self._model.writer.work.tails[client].samples:
            return False
        return any(row.client == client for row in await self._store.ledger.erasures(self._model.name))


class Erasures:
    """Of all models."""

    def __init__(
        self,
        store: Store,
        model_of: Callable[[str], LiveModel],
        tell_ready: Callable[[LiveModel], None],
        operations: Operations,
    ) -> None:
        self._store = store
        self._model_of = model_of
        self._tell_ready = tell_ready
        self._operations = operations

    async def begin(self, name: str, asked: Asked) -> Erasure:
        """See Erasure.begin."""
        erasure = Erasure(self._model_of(name), self._store, asked)
        await erasure.begin()
        return erasure

    async def finish(self, name: str, erasure: Erasure) -> Told:
        """See Erasure.finish. What may take long is stored as an operation first: it goes on without its caller, and
        after a crash of the server."""
        if erasure.goes_back and not erasure.asked.dry_run:
            return await self._in_an_operation(name, erasure)
        told = await erasure.finish()
        self._tell_ready(self._model_of(name))
        return told

    async def run(self, operation: Operation) -> Mapping[str, str]:
        """What an operation does, from its beginning: where it was done before a crash, that is found."""
        erasure = await self.begin(operation.model, Asked(client=operation.request["client"]))
        operation.progress("setting weights back")
        told = await erasure.finish()
        self._tell_ready(self._model_of(operation.model))
        operation.progress(told.how)
        assert told.row is not None, "this was no dry run"
        return {"erasure": str(told.row.id)}

    async def _in_an_operation(self, name: str, erasure: Erasure) -> Told:
        if (done := await erasure.told_before()) is not None:
            return done
        client = erasure.asked.client
        running = self._operations.running(name, KIND)
        if running is None or running.request["client"] != client:
            running = await self._operations.start(KIND, name, {"client": client}, self.run)
        operation = await self._operations.wait(running.name, None)
        if operation.error is not None:
            raise operation.error
        told = await erasure.again(first=True)
        assert told is not None, "its receipt is stored with it"
        return told

    async def listed(self, name: str) -> tuple[ErasureRow, ...]:
        """Of a model, oldest first."""
        return await self._store.ledger.erasures(self._model_of(name).name)

    @property
    def public_key(self) -> bytes:
        """Checks what is signed from now on."""
        return self._store.keys.public_key

    def signer(self, row: ErasureRow) -> bytes:
        """The public key that checks this receipt's signature; the present one, or one before it."""
        return self._store.keys.signer(row.receipt_json.encode(), row.signature)


def _check(spec: ModelSpec, asked: Asked) -> None:
    """Raises PreconditionError where nothing can be taken out of such a model, and says why."""
    if spec.privacy.tier == "dp":
        raise _refused(
            "noise was added to what was learned, so that no part of it can be subtracted; the budget bounds "
            "what the model tells of any client"
        )
    if spec.distill_to is not None:
        raise _refused(
            "its student has learned by gradient steps from the same samples, and nothing can be taken out "
            "of that; remove distill_to from the declaration first, which forgets the student"
        )
    if spec.int8_export is not None:
        raise _refused(
            "ranges of activations have been counted over the same samples, and exports in 8 bits carry them; remove "
            "int8_export from the declaration first, which forgets them"
        )
    if spec.int8_trunk is not None:
        raise _refused(f"{NOT_OF_INT8}; replace the model")
    if asked.label and spec.memory.kind != "per_class_statistics":
        raise _refused(f"memory {spec.memory.kind} adds all classes up; per_class_statistics keeps them apart")
    if spec.adapt.kind == "first_session":
        raise _refused(
            "its blocks were fitted to the first samples, and nothing can be taken out of that; replace the model"
        )
    if spec.by_gradient and (spec.memory.kind not in ("latents", "none") or spec.task != "classification"):
        raise _refused(
            f"its weights were learned by gradient steps, and its memory ({spec.memory.kind}, task {spec.task}) names "
            "no client, so that it cannot learn again from the others; replace the model"
        )


def _refused(because: str) -> PreconditionError:
    return PreconditionError(f"nothing can be erased from this model: {because}", reason=NOT_ERASABLE)


def _with(told: Told, row: ErasureRow, model: LiveModel, **changes: Any) -> Told:
    stable = model.book.stable
    return replace(told, row=row, stable=stable.record.number if stable else 0, **changes)


def _log(model: str, told: Told, row: ErasureRow) -> None:
    _logger.warning(
        "erased",
        model=model,
        how=told.how,
        samples=row.sample_count,
        commit=row.commit_id,
        versions=len(told.versions),
        erasure=row.id,
    )
