"""The engine: every model of this server, and what they share (trunks, queue, store). Event loop only."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from everlearn.errors import ConflictError, EverlearnError, NotFoundError, PreconditionError
from everlearn.hubs.base import HubSettings
from everlearn.inputs.samples import Features, Samples
from everlearn.runtime.session import TrunkSession
from everlearn.spec.load import dump, parse
from everlearn.spec.model import Model
from everlearn.spec.plan import Plan, StoredCounts, check_consent
from everlearn.values import Trunk
from everlearn_server.engine.applier import Applier, Current
from everlearn_server.engine.conditions import conditions_json
from everlearn_server.engine.decode import Decoder
from everlearn_server.engine.exporter import Exporter
from everlearn_server.engine.live_model import LiveModel
from everlearn_server.engine.operations import Operation, Operations
from everlearn_server.engine.serving import Scored, Snapshot
from everlearn_server.engine.trunks import LiveTrunk, TrunkPool
from everlearn_server.engine.versions import Versioned
from everlearn_server.engine.work_queue import WorkQueue
from everlearn_server.store.rows import ExportRow, ModelRow
from everlearn_server.store.store import Store

_logger = structlog.get_logger(__name__)
PREPARING, READY, FAILED = "PREPARING", "READY", "FAILED"


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What the composition root decides."""

    hubs: HubSettings
    work_dir: Path
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    workers: int = 2
    """Threads that run trunks."""
    queue_images: int = 256
    """Images that may wait, per lane."""
    max_batch: int = 1
    """Images in one trunk pass; above 1 only where batching gains (a GPU)."""
    commit_share: float = 0.1
    """Share of the time that group commits may keep the disk busy."""


class Engine:
    """Everything behind the services. Implements `engine.serving.Serving`."""

    def __init__(self, store: Store, settings: EngineSettings) -> None:
        self._store = store
        self._settings = settings
        self._models: dict[str, LiveModel] = {}
        self._executor = ThreadPoolExecutor(max_workers=max(2, settings.workers), thread_name_prefix="sums")
        # Apart, so that integrating a batch never waits for a head that is being solved.
        self._solvers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="heads")
        self._trunks = TrunkPool(self._open_session)
        self._applier = Applier(store=store, hubs=settings.hubs, work_dir=settings.work_dir)
        self._exporter = Exporter(store=store, stored_trunk=self._applier.stored_trunk)
        self._apply_lock = asyncio.Lock()
        self.operations = Operations(store)
        self.queue = WorkQueue(
            workers=settings.workers, capacity_images=settings.queue_images, max_batch=settings.max_batch
        )
        self.ready_changed: Callable[[str, bool], None] = lambda model, ready: None
        """Called when a model begins or ceases to serve (health)."""

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Takes up every stored model; one that cannot be taken up is FAILED and says why, the others serve."""
        for row in await self._store.catalog.models():
            model = self._make(row, parse(row.declaration))
            self._models[row.name] = model
            if row.trunk_digest is None:
                continue
            try:
                await self._begin(model, await self._applier.trunk_of(model.spec, row.trunk_digest))
            except EverlearnError as error:
                await self._mark(model, FAILED, error)
        await self.operations.resume({"apply": self._run_apply, "export": self._run_export})

    async def close(self) -> None:
        """Commits everything and stops."""
        await self.operations.close()
        await asyncio.gather(*(model.stop() for model in self._models.values()))
        self.queue.close()
        self._executor.shutdown()
        self._solvers.shutdown()

    @property
    def timeline(self) -> str:
        """Identity of the data folder's history."""
        return self._store.timeline

    def trunk_users(self) -> dict[str, int]:
        """digest -> models that share the session."""
        return self._trunks.users()

    # -- reading ------------------------------------------------------------------------------------------------

    def model(self, name: str, *, field: str = "name") -> LiveModel:
        """Raises NotFoundError that names the caller's field."""
        if name not in self._models:
            known = ", ".join(sorted(self._models)[:5]) or "none yet"
            raise NotFoundError(f"no model {name!r}; there are: {known}", field=field)
        return self._models[name]

    def models(self) -> list[str]:
        """Names, sorted."""
        return sorted(self._models)

    def snapshot(self, model: str, version: str = "") -> Snapshot:
        """See Serving."""
        live = self.model(model)
        if live.unloaded:
            raise PreconditionError(f"model {model!r} is unloaded; load it again", reason="MODEL_NOT_READY")
        return live.book.find(version).snapshot

    def versions(self, model: str) -> list[int]:
        """See Serving."""
        return self.model(model).book.numbers()

    def load(self, model: str) -> None:
        """See Serving."""
        self.model(model).unloaded = False
        self.ready_changed(model, self.model(model).book.stable is not None)

    def unload(self, model: str) -> None:
        """See Serving."""
        self.model(model).unloaded = True
        self.ready_changed(model, False)

    async def score(self, snapshot: Snapshot, samples: Samples, *, timeout_s: float | None) -> Scored:
        """See Serving."""
        trunk = snapshot.trunk
        assert isinstance(trunk, LiveTrunk)
        decoder = Decoder(trunk, snapshot.input)
        decoder.check(samples, field="samples")
        decode_ms = queue_ms = trunk_ms = 0.0
        if isinstance(samples, Features):
            features_Bd = samples.features_Bd
        else:
            pixels_of = decoder.pixels_of(samples, field="samples")
            work = await self.queue.predict(trunk.session, pixels_of, len(samples), trunk.feature_dim, timeout_s)
            features_Bd = work.features_Bd
            decode_ms, trunk_ms = work.decode_s * 1e3, work.trunk_s * 1e3
            queue_ms = max(0.0, work.started_s - work.enqueued_s) * 1e3
        begun_s = time.perf_counter()
        scores_BC = snapshot.head.scores(features_Bd)
        return Scored(
            scores_BC=scores_BC,
            features_Bd=features_Bd,
            decode_ms=decode_ms,
            queue_ms=queue_ms,
            trunk_ms=trunk_ms,
            head_ms=(time.perf_counter() - begun_s) * 1e3,
        )

    async def bytes_at_rest(self, name: str) -> dict[str, int]:
        """What a model keeps on disk, by kind."""
        state = await self._store.ledger.state(name)
        exports = await self._store.catalog.exports(name)
        return {
            "memory": state.size if state else 0,
            "versions": sum(len(record.head) for record in self.model(name).book.records()),
            "exports": sum(file.size for row in exports for file in row.files),
        }

    # -- declaring ----------------------------------------------------------------------------------------------

    async def plan(self, text: str) -> Plan:
        """What applying would do; no side effect. Raises SpecError, HubError, BackboneError."""
        plan, _ = await self._applier.plan(text, self._current)
        return plan

    async def lock(self, text: str) -> tuple[str, Mapping[str, str]]:
        """The declaration pinned."""
        return await self._applier.lock(text)

    async def apply(
        self, text: str, *, plan_id: str = "", allow_replace: bool = False, allow_loosen_retention: bool = False
    ) -> tuple[Plan, Operation | None]:
        """Plans and does it. An operation is returned where a trunk has to be made ready.

        Raises ConflictError for a stale plan, NeedsConsentError, and what `plan` raises.
        """
        async with self._apply_lock:
            plan, lock = await self._applier.plan(text, self._current)
            if plan_id and plan_id != plan.id:
                raise ConflictError(
                    f"plan {plan_id} is stale: the model, the file or its source has changed; plan again",
                    field="plan_id",
                )
            check_consent(plan, allow_replace=allow_replace, allow_loosen_retention=allow_loosen_retention)
            name = plan.declaration.metadata.name
            running = self.operations.running(name, "apply")
            if running is not None:
                raise ConflictError(f"{running.name} is applying model {name!r}; wait for it", field="declaration")
            if plan.action == "none":
                return plan, None
            if plan.action == "create":
                await self._create(plan.declaration, lock)
            elif not plan.replaces:
                await self._revise(plan.declaration)
                return plan, None
            request = {"declaration": dump(plan.declaration)}
            return plan, await self.operations.start("apply", name, request, self._run_apply)

    async def delete(self, name: str, etag: str) -> None:
        """Deletes a model with everything learned. Raises NotFoundError, ConflictError."""
        async with self._apply_lock:
            model = self.model(name)
            check_etag(model, etag)
            await self.operations.forget(name)
            await model.stop(commit=False)
            await self._store.catalog.delete_model(name)
            del self._models[name]
            self._release(model)
            self.ready_changed(name, False)

    # -- versions and exports -----------------------------------------------------------------------------------

    async def promote(self, name: str, version: str, etag: str) -> LiveModel:
        """Points `stable` at a version. Raises GateError, NotFoundError, ConflictError."""
        model = self.model(name)
        check_etag(model, etag)
        await model.point_stable(model.book.promote(version), "promoted")
        self.ready_changed(name, True)
        return model

    async def roll_back(self, name: str, number: int, etag: str) -> LiveModel:
        """Points `stable` back and pauses automatic promotion. Raises NotFoundError, PreconditionError."""
        model = self.model(name)
        check_etag(model, etag)
        await model.point_stable(model.book.roll_back(number), "rolled back")
        return model

    async def start_export(self, name: str, version: str) -> Operation:
        """Begins an export; the version that the name means now is the one exported."""
        versioned = self.model(name).book.find(version)
        await self.model(name).store_version(versioned)
        request = {"version": str(versioned.record.number)}
        return await self.operations.start("export", name, request, self._run_export)

    async def exports(self, name: str) -> list[ExportRow]:
        """Newest first. Raises NotFoundError."""
        rows = await self._store.catalog.exports(self.model(name).name)
        return sorted(rows, key=lambda row: -row.version_number)

    async def read_export(self, sha256: str, offset: int, size: int) -> bytes:
        """A part of an exported file."""
        return await self._store.blobs.open_range(sha256, offset, size)

    # -- inside -------------------------------------------------------------------------------------------------

    def _open_session(self, onnx: bytes) -> TrunkSession:
        return TrunkSession(onnx, providers=self._settings.providers)

    def _make(self, row: ModelRow, spec: Model) -> LiveModel:
        return LiveModel(
            row=row,
            spec=spec,
            store=self._store,
            executor=self._executor,
            solvers=self._solvers,
            commit_share=self._settings.commit_share,
            on_first_stable=lambda name: self.ready_changed(name, not self.model(name).unloaded),
        )

    async def _current(self, name: str) -> Current | None:
        model = self._models.get(name)
        if model is None or model.row.trunk_digest is None or model.row.state == FAILED:
            return None  # applying begins from the start; what was learned is taken up again
        memory = model.writer.memory.sums if model.is_started else None
        return Current(
            spec=model.spec,
            etag=f"{model.row.uid}:{model.row.generation}",
            stored=StoredCounts(
                samples=memory.samples if memory else 0,
                classes=len(memory.labels) if memory else 0,
                versions=len(model.book.stored),
                exports=len(await self._store.catalog.exports(name)),
            ),
            labels=tuple(memory.labels) if memory else (),
            feature_dim=model.trunk.feature_dim if model.trunk else None,
        )

    async def _create(self, spec: Model, lock: Mapping[str, str]) -> None:
        now_s = time.time()
        known = self._models.get(spec.metadata.name)
        row = ModelRow(
            name=spec.metadata.name,
            uid=known.row.uid if known else uuid.uuid4().hex,
            lineage=known.row.lineage if known else 1,
            declaration=dump(spec),
            generation=known.row.generation + 1 if known else 1,
            state=PREPARING,
            conditions_json=conditions_json(None),
            lock_json=json.dumps(dict(lock)),
            trunk_digest=None,
            promotion_paused=False,
            create_time_s=known.row.create_time_s if known else now_s,
            update_time_s=now_s,
        )
        row = await self._store.catalog.put_model(row, expected_etag=known.row.etag if known else None)
        self._models[row.name] = self._make(row, spec)

    async def _revise(self, spec: Model) -> None:
        model = self.model(spec.metadata.name)
        row = replace(model.row, declaration=dump(spec), generation=model.row.generation + 1, update_time_s=time.time())
        row = await self._store.catalog.put_model(row, expected_etag=model.row.etag)
        await model.revise(spec, row)
        await model.prune()
        await self._exporter.prune(model)

    async def _run_apply(self, operation: Operation) -> Mapping[str, str]:
        spec = parse(operation.request["declaration"])
        model = self.model(operation.model)
        try:
            trunk, lock = await self._applier.trunk(spec, operation.progress)
            session = await asyncio.to_thread(self._open_session, trunk.onnx)
            await self._take_up(model, spec, trunk, session, lock)
        except EverlearnError as error:
            await self._mark(model, FAILED if model.trunk is None else model.row.state, error)
            raise
        operation.progress("ready")
        return {"name": f"models/{operation.model}"}

    async def _take_up(
        self, model: LiveModel, spec: Model, trunk: Trunk, session: TrunkSession, lock: Mapping[str, str]
    ) -> None:
        """Makes the declaration the one in force; a replaced lineage's stable version serves on until a gate passes."""
        replaces = model.row.trunk_digest is not None
        if replaces:
            await model.stop()
        row = replace(
            model.row,
            declaration=dump(spec),
            generation=model.row.generation + (1 if replaces else 0),
            lineage=model.row.lineage + (1 if replaces else 0),
            state=READY,
            conditions_json=conditions_json(None),
            lock_json=json.dumps(dict(lock)),
            trunk_digest=trunk.digest,
            update_time_s=time.time(),
        )
        row = await self._store.catalog.put_model(row, expected_etag=model.row.etag)
        successor = self._make(row, spec)
        live = self._trunks.acquire(trunk, session)
        self._models[row.name] = successor
        await successor.start(live, self._trunk_of)
        self._release(model)
        self.ready_changed(row.name, successor.book.stable is not None)

    async def _begin(self, model: LiveModel, trunk: Trunk) -> None:
        await model.start(self._trunks.acquire(trunk), self._trunk_of)
        self.ready_changed(model.name, model.book.stable is not None)

    def _release(self, model: LiveModel) -> None:
        for trunk in (model.trunk, *model.earlier_trunks.values()):
            if trunk is not None:
                self._trunks.release(trunk)

    async def _trunk_of(self, digest: str, features: str) -> LiveTrunk | None:
        try:
            trunk = await self._applier.stored_trunk(digest, lambda trunk: trunk.feature_digest == features)
            return self._trunks.acquire(trunk)
        except EverlearnError as error:
            _logger.warning("an earlier version cannot serve", digest=digest, reason=error.reason)
            return None

    async def _mark(self, model: LiveModel, state: str, error: EverlearnError) -> None:
        _logger.warning("model is not as declared", model=model.name, reason=error.reason, message=error.message)
        row = replace(model.row, state=state, conditions_json=conditions_json(error), update_time_s=time.time())
        model.row = await self._store.catalog.put_model(row, expected_etag=model.row.etag)

    async def _run_export(self, operation: Operation) -> Mapping[str, str]:
        model = self.model(operation.model)
        versioned: Versioned = model.book.find(operation.request["version"])
        operation.progress("compose")
        row = await self._exporter.export(model, versioned)
        return {"name": f"models/{row.model}/exports/{row.version_number}"}


def check_etag(model: LiveModel, etag: str) -> None:
    """Raises ConflictError where the caller names another etag than the present one (AIP-154)."""
    if etag and etag != model.row.etag:
        raise ConflictError(f"etag {etag[:40]!r} is stale; get the model again", field="etag")
