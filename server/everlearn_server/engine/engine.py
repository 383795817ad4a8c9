"""The engine: everything behind the services, as they see it. Event loop only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import structlog

from everlearn.errors import DataLossError, PreconditionError
from everlearn.export.precision import precision_of
from everlearn.inputs.decoding import DecodingApart, DecodingHere, ImageDecoding
from everlearn.inputs.samples import Features, Samples
from everlearn_server.engine.applier import Applier
from everlearn_server.engine.calibrations import Calibrations
from everlearn_server.engine.declarations import Declarations, check_etag
from everlearn_server.engine.decode import Decoder
from everlearn_server.engine.embedding import Embedded, embed
from everlearn_server.engine.erasures import KIND as ERASE
from everlearn_server.engine.erasures import Erasures
from everlearn_server.engine.exporter import MODEL_FILE, Exporter, is_in_8_bits, precision_for
from everlearn_server.engine.fleet import EngineSettings, Fleet
from everlearn_server.engine.int8 import released_by
from everlearn_server.engine.live_model import LiveModel
from everlearn_server.engine.manifest import manifest, pointer
from everlearn_server.engine.operations import Operation, Operations
from everlearn_server.engine.precisions import export_id, exports_of
from everlearn_server.engine.probe import Probe, probe
from everlearn_server.engine.serving import Scored, Snapshot, answers_of
from everlearn_server.engine.student_release import release_student
from everlearn_server.engine.trunks import LiveTrunk
from everlearn_server.engine.updates import Updates
from everlearn_server.engine.upgrade import Upgrades
from everlearn_server.engine.versions import ALIASES, Versioned
from everlearn_server.engine.waiting_room import best_labels
from everlearn_server.engine.work_queue import WorkQueue
from everlearn_server.store.keys import Keys
from everlearn_server.store.rows import DownloadRow, ExportRow
from everlearn_server.store.store import Store

_logger = structlog.get_logger(__name__)
_KEPT_ON_THE_LOOP = 65_536
"""Features that are quantised where everyone waits; more go to a thread."""
__all__ = ["Engine", "EngineSettings", "check_etag"]


class Engine:
    """Everything behind the services. Implements `engine.serving.Serving`."""

    def __init__(self, store: Store, settings: EngineSettings) -> None:
        self._store = store
        applier = Applier(store=store, hubs=settings.hubs, work_dir=settings.work_dir)
        self._fleet = Fleet(store, settings, applier)
        self.damages = self._fleet.damages
        self._exporter = Exporter(store=store, stored_trunk=applier.stored_trunk, damages=self.damages)
        self.updates = Updates(store.blobs)
        self.operations = Operations(store)
        self.declarations = Declarations(
            store=store, fleet=self._fleet, applier=applier, operations=self.operations, exporter=self._exporter
        )
        self.queue = WorkQueue(
            workers=settings.workers,
            capacity_images=settings.queue_images,
            max_batch=settings.max_batch,
            images=_decoding(settings),
        )
        self.erasures = Erasures(store, self.model, self._fleet.tell_ready, self.operations)
        self._calibrations = Calibrations(
            store=store, fleet=self._fleet, applier=applier, declarations=self.declarations
        )
        self._fleet.calibrate = self._calibrations.begin
        self.upgrades = Upgrades(
            store=store, fleet=self._fleet, applier=applier, declarations=self.declarations, queue=self.queue
        )

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Takes up every stored model, then goes on with what was under way."""
        await self._fleet.start()
        runners = {"apply": self.declarations.run, "export": self._run_export, ERASE: self.erasures.run}
        await self.operations.resume(runners)

    async def drain(self) -> None:
        """Commits everything and stops learning; open learning streams are told. Predictions are still answered."""
        await self.upgrades.close()
        await self._calibrations.close()
        await self.operations.close()
        await self._fleet.stop()

    async def close(self) -> None:
        """Drains, and stops."""
        await self.drain()
        self.queue.close()
        self._fleet.close()

    def on_ready(self, tell: Callable[[str, bool], None]) -> None:
        """`tell` is called when a model begins or ceases to serve (health)."""
        self._fleet.ready_changed = tell

    @property
    def timeline(self) -> str:
        """Identity of the data folder's history."""
        return self._store.timeline

    def require_room(self) -> None:
        """Raises DiskFullError where nothing may be taken in."""
        self._store.room.require()

    def trunk_users(self) -> dict[str, int]:
        """digest -> models that share the session."""
        return self._fleet.trunks.users()

    # -- reading ------------------------------------------------------------------------------------------------

    def model(self, name: str, *, field: str = "name") -> LiveModel:
        """Raises NotFoundError that names the caller's field."""
        return self._fleet.get(name, field=field)

    def models(self) -> list[str]:
        """Names, sorted."""
        return self._fleet.names()

    def snapshot(self, model: str, version: str = "") -> Snapshot:
        """See Serving."""
        live = self.model(model)
        if live.unloaded:
            raise PreconditionError(f"model {model!r} is unloaded; load it again", reason="MODEL_NOT_READY")
        if live.book.latest is None and live.book.stable is None and (damaged := self.damages.of(model)):
            raise DataLossError(f"model {model!r} cannot serve: {damaged[0].message}")
        return live.book.find(version).snapshot

    def versions(self, model: str) -> list[int]:
        """See Serving."""
        return self.model(model).book.numbers()

    def load(self, model: str) -> None:
        """See Serving."""
        self.model(model).unloaded = False
        self._fleet.tell_ready(self.model(model))

    def unload(self, model: str) -> None:
        """See Serving."""
        self.model(model).unloaded = True
        self._fleet.tell_ready(self.model(model))

    async def score(self, snapshot: Snapshot, samples: Samples, *, timeout_s: float | None) -> Scored:
        """See Serving."""
        trunk = snapshot.trunk
        assert isinstance(trunk, LiveTrunk)
        decoder = Decoder(trunk, snapshot.input, self.queue.images)
        decoder.check(samples, field="samples")
        if (live := self._fleet.find(snapshot.model)) is not None:
            live.ask()
        decode_ms = queue_ms = trunk_ms = 0.0
        if isinstance(samples, Features):
            features_Bd = samples.features_Bd
        else:
            pixels_of = decoder.pixels_of(samples, field="samples")
            work = await self.queue.predict(trunk.session, pixels_of, len(samples), trunk.feature_dim, timeout_s)
            features_Bd = work.features_Bd
            decode_ms, trunk_ms = work.decode_s * 1e3, work.trunk_s * 1e3
            queue_ms = max(0.0, work.started_s - work.enqueued_s) * 1e3
        decoder.check_features(features_Bd, samples, field="samples")
        begun_s = time.perf_counter()
        answers = await answers_of(snapshot, features_Bd)
        return Scored(
            scores_BC=answers.scores_BC,
            novelty_B=answers.novelty_B,
            features_Bd=features_Bd,
            decode_ms=decode_ms,
            queue_ms=queue_ms,
            trunk_ms=trunk_ms,
            head_ms=(time.perf_counter() - begun_s) * 1e3,
        )

    async def keep(self, snapshot: Snapshot, scored: Scored, *, caller: Callable[[], str]) -> list[str]:
        """See Serving."""
        live = self._fleet.find(snapshot.model)
        if live is None or not live.is_started or (room := live.writer.work.room) is None:
            return []
        if snapshot.feature_digest != live.ready_trunk.feature_digest:  # of a version on an earlier backbone
            return []
        values = snapshot.head.task == "regression"
        count = len(scored.features_Bd)
        told = [""] * count if values else best_labels(scored.scores_BC, snapshot.head.labels)
        give = partial(room.give, scored.features_Bd, told, client=caller())
        ids = give() if scored.features_Bd.size <= _KEPT_ON_THE_LOOP else await asyncio.to_thread(give)
        room.tend()
        return ids

    async def probe(self, name: str) -> Probe:
        """How well the model's backbone fits. Raises NotFoundError, PreconditionError."""
        return await probe(self.model(name), self.queue.times)

    async def embed(self, models: Sequence[LiveModel], samples: Samples) -> Embedded:
        """Features of samples for several models. Raises InputError, PreconditionError."""
        return await embed(models, samples, self.queue)

    async def bytes_at_rest(self, name: str) -> dict[str, int]:
        """What a model keeps on disk, by kind."""
        exports = await self._store.catalog.exports(name)
        return {
            **await self._store.ledger.sizes(name),
            "versions": self.model(name).book.stored_bytes,
            "exports": sum(file.size for row in exports for file in row.files),
        }

    # -- versions and exports -----------------------------------------------------------------------------------

    async def promote(self, name: str, version: str, etag: str) -> LiveModel:
        """Points `stable` at a version. Raises GateError, NotFoundError, ConflictError."""
        model = self.model(name)
        check_etag(model, etag)
        await self._point_stable(model, lambda: model.book.promote(version), "promoted")
        model.rollout.judge_soon()
        self._fleet.tell_ready(model)
        return model

    async def roll_back(self, name: str, number: int, etag: str) -> LiveModel:
        """Points `stable` back and pauses automatic promotion. Raises NotFoundError, PreconditionError."""
        model = self.model(name)
        check_etag(model, etag)
        await self._point_stable(model, lambda: model.book.roll_back(number), "rolled back")
        return model

    async def withdraw_canary(self, name: str, etag: str) -> LiveModel:
        """No device is to run the canary any more; `stable` stays. Raises PreconditionError (NO_CANARY)."""
        model = self.model(name)
        check_etag(model, etag)
        await model.rollout.withdraw_canary()
        return model

    async def _point_stable(self, model: LiveModel, point: Callable[[], Versioned], reason: str) -> None:
        async with model.rollout.lock:
            before = model.book.stable, model.book.promotion_paused
            versioned = point()
            try:
                await model.rollout.point_stable(versioned, reason)
            except DataLossError as error:  # its weights were read only now: what served before goes on
                model.book.stable, model.book.promotion_paused = before
                self.damages.found("version", model.name, error, name=str(versioned.record.number))
                raise
            await model.rollout.moved_by_hand(before[0].record.number if before[0] is not None else 0)

    async def start_export(self, name: str, version: str, *, student: bool = False, precision: str = "") -> Operation:
        """Begins an export; the version that the name means now is the one exported, or its student as it is now.

        Raises as `release_student`, `precision_for` and, for `int8`, `released_by`; and DiskFullError.
        """
        self.require_room()
        versioned = self.model(name).book.find(version)
        chosen = precision_for(versioned.snapshot, precision)
        if chosen == "int8" and not is_in_8_bits(versioned.snapshot):  # who asks hears at once what is missing
            released_by(self.model(name).beside, name, versioned.snapshot.feature_digest)
        if student:
            versioned = await release_student(self.model(name), versioned)
        pointed = {}
        if version in ALIASES and not student:
            versioned, moved = await self.model(name).rollout.pointed(version)
            pointed = {"alias": version, "moved": str(moved)}
        else:
            await self.model(name).store_version(versioned)
        request = {"version": str(versioned.record.number), "precision": chosen, **pointed}
        return await self.operations.start("export", name, request, self._run_export)

    async def exports(self, name: str) -> list[ExportRow]:
        """Newest version first, each precision a row of its own. Raises NotFoundError."""
        rows = await exports_of(await self._store.catalog.exports(self.model(name).name), self._store.blobs)
        return sorted(rows, key=lambda row: -row.version_number)

    async def verify_export(self, row: ExportRow, sha256: str) -> None:
        """Before a file of it is read: nothing that is damaged leaves. Raises DataLossError."""
        await self._exporter.verify(row, sha256)

    async def note_download(self, row: ExportRow, file_name: str, client: str) -> None:
        """Before the bytes of a file leave to a client, empty where it gives no name: durable, for receipts of
        erasures. Of files that hold no weights nothing is written. Raises NotFoundError (withdrawn meanwhile)."""
        if file_name == MODEL_FILE:
            await self._store.catalog.note_download(row.model, client, row.version_number)

    async def downloads(self, name: str) -> tuple[DownloadRow, ...]:
        """What each client downloaded last."""
        return await self._store.catalog.downloads(self.model(name).name)

    async def read_export(self, sha256: str, offset: int, size: int) -> bytes:
        """A part of an exported file."""
        return await self._store.blobs.open_range(sha256, offset, size)

    def signed_manifest(self, row: ExportRow) -> tuple[bytes, bytes]:
        """What an export is, and the signature of it."""
        told = manifest(row)
        return told, self._store.keys.sign(told)

    def signed_pointer(self, row: ExportRow, operation: Operation) -> tuple[bytes, bytes]:
        """Which alias named the version of this export when it was asked for by that name, and the signature; both
        empty where it was asked for by number."""
        if "alias" not in operation.request:
            return b"", b""
        told = pointer(row, operation.request["alias"], int(operation.request["moved"]))
        return told, self._store.keys.sign(told)

    @property
    def keys(self) -> Keys:
        """What this server signs with."""
        return self._store.keys

    async def _run_export(self, operation: Operation) -> Mapping[str, str]:
        model = self.model(operation.model)
        versioned = model.book.find(operation.request["version"])
        operation.progress("compose")
        # One that was asked for before this release names none.
        row = await self._exporter.export(model, versioned, precision_of(operation.request.get("precision", "")))
        return {"name": f"models/{row.model}/exports/{export_id(row)}"}


def _decoding(settings: EngineSettings) -> ImageDecoding:
    if settings.image_decoding == "here":
        return DecodingHere()
    return DecodingApart(settings.workers, tell=lambda walls: _logger.info("image files are read apart", behind=walls))
