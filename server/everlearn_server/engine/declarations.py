"""What an administrator declares becomes what runs: plan, apply, delete. Every step may be repeated after a crash."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from everlearn.errors import ConflictError, EverlearnError
from everlearn.spec.load import dump, parse
from everlearn.spec.model import Model
from everlearn.spec.plan import Plan, StoredCounts, check_consent
from everlearn_server.engine.applier import Applier, Current, calibrated_name, derived_key
from everlearn_server.engine.beside import forget
from everlearn_server.engine.conditions import conditions_json
from everlearn_server.engine.exporter import Exporter
from everlearn_server.engine.fleet import FAILED, PREPARING, READY, Fleet
from everlearn_server.engine.int8 import ranges_key
from everlearn_server.engine.live_model import LiveModel
from everlearn_server.engine.operations import Operation, Operations
from everlearn_server.engine.students import checkpoint_key
from everlearn_server.store.rows import ModelRow
from everlearn_server.store.store import Store


class Declarations:
    """Changes the fleet, one change of a model at a time."""

    def __init__(
        self, *, store: Store, fleet: Fleet, applier: Applier, operations: Operations, exporter: Exporter
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._applier = applier
        self._operations = operations
        self._exporter = exporter
        # Names that nobody holds any more go by themselves: a caller may ask for any number of them.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def plan(self, text: str) -> Plan:
        """What applying would do; changes no model. Raises SpecError, HubError, BackboneError."""
        plan, _ = await self._applier.plan(text, self._current)
        return plan

    async def lock(self, text: str) -> tuple[str, Mapping[str, str]]:
        """The declaration pinned."""
        return await self._applier.lock(text)

    async def apply(
        self, text: str, *, plan_id: str = "", allow_replace: bool = False, allow_loosen_retention: bool = False
    ) -> tuple[Plan, Operation | None]:
        """Plans and does it. An operation is returned where a trunk has to be made ready.

        Raises ConflictError for a stale plan, NeedsConsentError, DiskFullError, and what `plan` raises.
        """
        self._store.room.require()
        name = parse(text).metadata.name
        async with self._lock(name):
            plan, lock = await self._applier.plan(text, self._current)
            if plan_id and plan_id != plan.id:
                raise ConflictError(
                    f"plan {plan_id} is stale: the model, the file or its source has changed; plan again",
                    field="plan_id",
                )
            check_consent(plan, allow_replace=allow_replace, allow_loosen_retention=allow_loosen_retention)
            self._refuse_while_applying(name)
            return plan, await self._do(plan, lock)

    async def plan_for(self, text: str) -> tuple[Plan, Mapping[str, str]]:
        """As `plan`, with the lock it is bound to."""
        return await self._applier.plan(text, self._current)

    @asynccontextmanager
    async def changing(self, name: str) -> AsyncIterator[None]:
        """Nobody else changes the model meanwhile. Raises ConflictError while a declaration is being applied."""
        async with self._lock(name):
            self._refuse_while_applying(name)
            yield

    async def delete(self, name: str, etag: str) -> None:
        """Deletes a model with everything learned. Raises NotFoundError, ConflictError."""
        async with self._lock(name):
            model = self._fleet.get(name)
            check_etag(model, etag)
            await self._operations.forget(name)
            await model.stop(commit=False)
            await self._store.catalog.delete_model(name)
            for key in (checkpoint_key, ranges_key):
                await forget(self._store, key(model.row.uid))
            for lineage in range(1, model.row.lineage + 1):
                await forget(self._store, derived_key(calibrated_name(model.row.uid, lineage)))
            self._fleet.dismiss(model)

    async def run(self, operation: Operation) -> Mapping[str, str]:
        """Makes a declaration's trunk ready and takes it up; after a crash, goes on wherever it was."""
        model = self._fleet.get(operation.model)
        result = {"name": f"models/{operation.model}"}
        spec = parse(operation.request["declaration"])
        if model.is_started and model.spec == spec:
            return result
        try:
            lineage = int(operation.request["lineage"])
            trunk, lock = await self._applier.trunk_of_lineage(spec, model.row, lineage, operation.progress)
            student_lock = await self._applier.student(spec, operation.progress)
            session = self._fleet.trunks.find(trunk.digest)
            if session is None:  # opened before the old model stops: where that fails, it goes on
                session = await asyncio.to_thread(self._fleet.open_session, trunk)
            await model.stop()
            row = await model.update_row(
                declaration=dump(spec),
                # Decided when the plan was made, not now: a second run must not begin a second lineage.
                generation=int(operation.request["generation"]),
                lineage=lineage,
                state=READY,
                conditions_json=conditions_json(None),
                lock_json=json.dumps({**lock, **student_lock}),
                trunk_digest=trunk.digest,
            )
            successor = self._fleet.enlist(row, spec)
            await self._fleet.begin(successor, trunk, session)
            self._fleet.release(model)
        except EverlearnError as error:
            await self._fail(self._fleet.get(operation.model), error)
            raise
        operation.progress("ready")
        return result

    # -- inside -------------------------------------------------------------------------------------------------

    def _refuse_while_applying(self, name: str) -> None:
        running = self._operations.running(name, "apply")
        if running is not None:
            raise ConflictError(f"{running.name} is applying model {name!r}; wait for it", field="declaration")

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def _do(self, plan: Plan, lock: Mapping[str, str]) -> Operation | None:
        spec = plan.declaration
        name = spec.metadata.name
        if plan.action == "create":
            row = await self._create(spec, lock)
        elif plan.replaces or not self._fleet.get(name).is_started or _changes_beside(plan):
            row = self._fleet.get(name).row
        elif plan.action == "none":
            return None
        else:
            model = self._fleet.get(name)
            await model.revise(spec)
            await self._exporter.prune(model)
            return None
        request = {
            "declaration": dump(spec),
            "generation": str(row.generation + (plan.action == "change")),
            "lineage": str(row.lineage + (1 if plan.replaces else 0)),
        }
        return await self._operations.start("apply", name, request, self.run)

    async def _current(self, name: str) -> Current | None:
        model = self._fleet.find(name)
        if model is None or model.row.trunk_digest is None:
            return None
        learner = model.writer.learner if model.is_started else None
        shown = model.writer.held.shown if model.is_started else None
        state = await self._store.ledger.state(name)
        return Current(
            spec=model.spec,
            etag=f"{model.row.uid}:{model.row.generation}",
            stored=StoredCounts(
                samples=shown.samples if shown else state.sample_count if state else 0,
                classes=len(shown.labels) if shown else 0,
                versions=len(model.book.stored),
                exports=len(await self._store.catalog.exports(name)),
            ),
            labels=tuple(learner.labels) if learner else (),
            feature_dim=model.trunk.feature_dim if model.trunk and not model.trunk.observes else None,
        )

    async def _create(self, spec: Model, lock: Mapping[str, str]) -> ModelRow:
        """The row of a new model, or of one whose first trunk could not be made: neither has learned anything."""
        known = self._fleet.find(spec.metadata.name)
        if known is not None:
            row = await known.update_row(
                declaration=dump(spec),
                generation=known.row.generation + 1,
                state=PREPARING,
                conditions_json=conditions_json(None),
                lock_json=json.dumps(dict(lock)),
            )
            self._fleet.enlist(row, spec)
            return row
        now_s = time.time()
        row = ModelRow(
            name=spec.metadata.name,
            uid=uuid.uuid4().hex,
            lineage=1,
            declaration=dump(spec),
            generation=1,
            state=PREPARING,
            conditions_json=conditions_json(None),
            lock_json=json.dumps(dict(lock)),
            trunk_digest=None,
            promotion_paused=False,
            create_time_s=now_s,
            update_time_s=now_s,
        )
        row = await self._store.catalog.put_model(row, expected_etag=None)
        self._fleet.enlist(row, spec)
        return row

    async def _fail(self, model: LiveModel, error: EverlearnError) -> None:
        self._fleet.tell_failure(model, error)
        if model.row.trunk_digest is None:  # nothing to take up at the next start: that it failed is all there is
            await model.update_row(state=FAILED)


def _changes_beside(plan: Plan) -> bool:
    """What learns beside a model is made ready as its trunk is; what the model has learned stays."""
    return any(change.field in ("spec.distill_to", "spec.int8_export") for change in plan.changes)


def check_etag(model: LiveModel, etag: str) -> None:
    """Raises ConflictError where the caller names another etag than the present one (AIP-154)."""
    if etag and etag != model.row.etag:
        raise ConflictError(f"etag {etag[:40]!r} is stale; get the model again", field="etag")
