"""Every model of this server, and the trunk sessions and threads they share. Event loop only."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from everlearn.errors import DataLossError, EverlearnError, NotFoundError
from everlearn.export.int8_trunk import calibrated_on, observes
from everlearn.hubs.base import HubSettings
from everlearn.learners.trainer import TrainerSettings
from everlearn.runtime.session import TrunkSession
from everlearn.spec.load import parse
from everlearn.spec.model import Model
from everlearn.values import Trunk
from everlearn_server.engine.applier import Applier
from everlearn_server.engine.beside import forget
from everlearn_server.engine.conditions import conditions_json
from everlearn_server.engine.damages import Damages
from everlearn_server.engine.head_pages import HeadPages
from everlearn_server.engine.int8 import LiveInt8, ranges_key
from everlearn_server.engine.live_model import LiveModel
from everlearn_server.engine.publisher import Solved
from everlearn_server.engine.students import LiveStudent, checkpoint_key
from everlearn_server.engine.trunks import LiveTrunk, TrunkPool
from everlearn_server.engine.working_set import WorkingSet
from everlearn_server.store.rows import ModelRow
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
    trainer: TrainerSettings = TrainerSettings()  # noqa: RUF009  # frozen
    """Where gradient steps are made."""
    image_decoding: str = "apart"
    """Where image files are read: `apart`, in confined processes, or `here`."""
    working_set_bytes: int = 2**30
    """Of what models have learned, kept in RAM while they rest."""
    commit_share: float = 0.08
    """Share of the time that group commits may keep the disk busy; below the promised tenth, because each pause is set
    by the commit before it."""


class Fleet:
    """All models by name, live or not."""

    def __init__(self, store: Store, settings: EngineSettings, applier: Applier) -> None:
        self._store = store
        self._settings = settings
        self._applier = applier
        self._models: dict[str, LiveModel] = {}
        self._executor = ThreadPoolExecutor(max_workers=max(2, settings.workers), thread_name_prefix="sums")
        # Apart, so that integrating a batch never waits for a head that is being solved.
        self._solvers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="heads")
        self.trunks = TrunkPool(self.open_session)
        self.damages = Damages()
        self._pages = HeadPages(lambda model, number: store.catalog.version_now(model, number).head)
        self._working_set = WorkingSet(self.models, store.ledger, capacity_bytes=settings.working_set_bytes)
        self.ready_changed: Callable[[str, bool], None] = lambda model, ready: None
        """Called when a model begins or ceases to serve (health)."""
        self.calibrate: Callable[[LiveModel], None] = lambda model: None
        """Called, again and again, once enough has come for a model's trunk in 8 bits."""

    # -- who there is -------------------------------------------------------------------------------------------

    def get(self, name: str, *, field: str = "name") -> LiveModel:
        """Raises NotFoundError that names the caller's field."""
        if name not in self._models:
            known = ", ".join(sorted(self._models)[:5]) or "none yet"
            raise NotFoundError(f"no model {name!r}; there are: {known}", field=field)
        return self._models[name]

    def find(self, name: str) -> LiveModel | None:
        """None where there is none."""
        return self._models.get(name)

    def names(self) -> list[str]:
        """Sorted."""
        return sorted(self._models)

    def models(self) -> list[LiveModel]:
        """In no order."""
        return list(self._models.values())

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Takes up every stored model; one that cannot be taken up says why, keeps what it has, and others serve."""
        for row in await self._store.catalog.models():
            model = self.enlist(row, parse(row.declaration))
            if row.trunk_digest is None:
                continue
            try:
                await self.begin(model, await self._stored_trunk(model, row.trunk_digest))
            except EverlearnError as error:
                # In memory only: what is stored is right, and the next start may well succeed (a GPU that is back).
                self.tell_failure(model, error)
                self.tell_ready(model)
            await self._working_set.tend()
        self._applier.forget_loaded()
        self._working_set.start()

    async def stop(self) -> None:
        """Every model commits what is staged and stops learning; what is published goes on serving."""
        await self._working_set.close()
        await asyncio.gather(*(model.stop() for model in self.models()))

    def close(self) -> None:
        """Ends the threads."""
        self._executor.shutdown()
        self._solvers.shutdown()

    # -- coming and going ---------------------------------------------------------------------------------------

    def enlist(self, row: ModelRow, spec: Model) -> LiveModel:
        """A model that does not learn yet takes its name's place. A predecessor must have been stopped."""
        self.take(model := self.make(row, spec))
        return model

    def take(self, model: LiveModel) -> None:
        """A model takes its name's place. A predecessor must have been stopped."""
        present = self._models.get(model.name)
        assert present is None or not present.is_started, "two writers on one memory would overwrite each other"
        self._models[model.name] = model

    def make(self, row: ModelRow, spec: Model) -> LiveModel:
        """A model that nobody can ask for yet."""
        return LiveModel(
            row=row,
            spec=spec,
            store=self._store,
            executor=self._executor,
            solvers=self._solvers,
            release_trunk=self.trunks.release,
            pages=self._pages,
            commit_share=self._settings.commit_share,
            trainer=self._settings.trainer,
            on_first_stable=lambda name: self.tell_ready(self.get(name)),
            on_calibrated=lambda model: self.calibrate(model),
            damages=self.damages,
        )

    async def begin(
        self, model: LiveModel, trunk: Trunk, session: TrunkSession | None = None, first: Solved | None = None
    ) -> None:
        """Makes an enlisted model learn and serve, at once with the head `first` where there is one."""
        live = self.trunks.acquire(trunk, session, await self._applier.stored_tail(trunk.digest))
        beside = await self._int8_of(model, trunk) or await self._student_of(model, live)
        try:
            await model.start(live, self._trunk_of, first, beside)
        except EverlearnError:
            if model.book.stable is None:
                self.release(model)
            self.tell_ready(model)  # what was published before goes on serving
            raise
        except BaseException:
            self.release(model)
            raise
        for kind in ("memory", "trunk"):
            self.damages.gone(model.name, kind=kind)
        if model.row.state != READY:  # it could not be taken up before, and now it can
            await model.update_row(state=READY, conditions_json=conditions_json(None))
        self.tell_ready(model)

    def dismiss(self, model: LiveModel) -> None:
        """Forgets a stopped model."""
        if self._models.get(model.name) is model:
            del self._models[model.name]
        self.release(model)
        self.damages.gone(model.name)
        self.ready_changed(model.name, False)

    def release(self, model: LiveModel) -> None:
        """Lets go of a stopped model's trunks."""
        for trunk in model.let_go():
            self.trunks.release(trunk)

    def tell_ready(self, model: LiveModel) -> None:
        """Health follows what a caller would meet."""
        self.ready_changed(model.name, model.book.stable is not None and not model.unloaded)

    def tell_failure(self, model: LiveModel, error: EverlearnError) -> None:
        """The model says that it does not work and why, until it does."""
        _logger.warning("model is not as declared", model=model.name, reason=error.reason, message=error.message)
        state = model.row.state if model.is_started else FAILED
        model.row = replace(model.row, state=state, conditions_json=conditions_json(error), update_time_s=time.time())

    def open_session(self, trunk: Trunk) -> TrunkSession:
        """Of a trunk in 8 bits on the CPU, beside a GPU too: that would round in other places than devices do. Raises
        UnavailableError, BackboneError."""
        if observes(trunk.provenance) or calibrated_on(trunk.provenance):
            return TrunkSession(trunk.onnx, arena=False)
        return TrunkSession(trunk.onnx, providers=self._settings.providers)

    async def _stored_trunk(self, model: LiveModel, digest: str) -> Trunk:
        try:
            return await self._applier.trunk_of(model.spec, digest)
        except DataLossError as error:
            told = DataLossError(f"{error.message}; apply the declaration again, and its trunk is built anew")
            self.damages.found("trunk", model.name, told)
            raise told from error

    async def _student_of(self, model: LiveModel, teacher: LiveTrunk) -> LiveStudent | None:
        """The declared student. A model learns without, where that is lost."""
        declared = model.spec.spec.distill_to
        if declared is None:
            await forget(self._store, checkpoint_key(model.row.uid))
            return None
        try:
            trunk = await self._applier.stored_student(model.spec, json.loads(model.row.lock_json))
            student = LiveStudent(
                model=model.name,
                uid=model.row.uid,
                lineage=model.row.lineage,
                declared=declared,
                trunk=self.trunks.acquire(trunk, None, await self._applier.stored_tail(trunk.digest)),
                teacher=teacher,
                store=self._store,
                settings=self._settings.trainer,
            )
            await student.start()
            return student
        except EverlearnError as error:
            _logger.warning("a student cannot learn", model=model.name, reason=error.reason, message=error.message)
            return None

    async def _int8_of(self, model: LiveModel, trunk: Trunk) -> LiveInt8 | None:
        """What prepares exports in 8 bits, where they are declared. A model learns without, where that cannot be."""
        declared = model.spec.spec.int8_export
        if declared is None:
            await forget(self._store, ranges_key(model.row.uid))
            return None
        book = model.book
        prepared = LiveInt8(
            model=model.name,
            uid=model.row.uid,
            lineage=model.row.lineage,
            declared=declared,
            of=trunk,
            live=lambda: book.latest.snapshot if book.latest is not None else None,
            store=self._store,
        )
        try:
            await prepared.start()
        except EverlearnError as error:
            prepared.problem = error.message
            _logger.warning("int8 cannot be prepared", model=model.name, reason=error.reason, message=error.message)
        return prepared

    async def _trunk_of(self, digest: str, features: str) -> LiveTrunk | None:
        try:
            trunk = await self._applier.stored_trunk(digest, lambda trunk: trunk.feature_digest == features)
            return self.trunks.acquire(trunk, None, await self._applier.stored_tail(digest))
        except EverlearnError as error:
            _logger.warning("an earlier version cannot serve", digest=digest, reason=error.reason)
            return None
