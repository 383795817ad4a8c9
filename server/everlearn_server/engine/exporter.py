"""Releases a version as files: composed, compared with the server, stored by digest."""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from everlearn.export.compose import Composer
from everlearn.export.parity import ParityReport, check_export, probe_images
from everlearn.inputs.samples import Images
from everlearn.values import Trunk
from everlearn_server.engine.live_model import LiveModel
from everlearn_server.engine.serving import Scored, Snapshot
from everlearn_server.engine.versions import Versioned
from everlearn_server.store.rows import ExportFile, ExportRow
from everlearn_server.store.store import Store

MODEL_FILE, CARD_FILE = "model.onnx", "README.md"
_SKELETONS = 4
"""Joined graphs kept, one per trunk and front; each is about the trunk's size."""

Score = Callable[[Snapshot, Images], Awaitable[Scored]]


class Exporter:
    """Composes on demand; the same version again is the same file."""

    def __init__(self, *, store: Store, score: Score, stored_trunk: Callable[[str], Awaitable[Trunk]]) -> None:
        self._store = store
        self._score = score
        self._stored_trunk = stored_trunk
        self._composers: OrderedDict[str, Composer] = OrderedDict()

    async def export(self, model: LiveModel, versioned: Versioned) -> ExportRow:
        """The export of a version, made now unless it has been. Raises ParityError: then nothing is released."""
        number = versioned.record.number
        for row in await self._store.catalog.exports(model.name):
            if row.version_number == number:
                return row
        await model.store_version(versioned)
        onnx = await self._compose(model, versioned)
        report = await self._check(onnx, versioned.snapshot, model.spec.spec.gate.parity)
        card = await asyncio.to_thread(_card, model, versioned, report, onnx)
        files = [
            ExportFile(file_name=name, size=len(data), sha256=await self._store.blobs.put(data))
            for name, data in ((MODEL_FILE, onnx), (CARD_FILE, card.encode()))
        ]
        row = ExportRow(
            model=model.name,
            version_number=number,
            files=tuple(files),
            parity=report.max_abs_diff,
            probes=report.probes,
            create_time_s=time.time(),
        )
        await self._store.catalog.put_export(row)
        await self.prune(model)
        return row

    async def prune(self, model: LiveModel) -> None:
        """Deletes the oldest exports beyond what the declaration retains."""
        rows = sorted(await self._store.catalog.exports(model.name), key=lambda row: row.version_number)
        for row in rows[: max(0, len(rows) - model.spec.spec.retention.exports)]:
            await self._store.catalog.delete_export(model.name, row.version_number)

    async def _compose(self, model: LiveModel, versioned: Versioned) -> bytes:
        snapshot, record = versioned.snapshot, versioned.record
        composer = await self._composer(snapshot)
        metadata = {
            "model": model.name,
            "version": str(record.number),
            "head": json.loads(record.metrics_json)["head"],
            "samples": str(record.sample_count),
            "memory_digest": record.memory_digest,
        }
        return await asyncio.to_thread(composer.compose, snapshot.head, metadata)

    async def _composer(self, snapshot: Snapshot) -> Composer:
        key = snapshot.feature_digest
        if key not in self._composers:
            trunk = await self._stored_trunk(snapshot.trunk.digest)
            self._composers[key] = await asyncio.to_thread(Composer, trunk)
            while len(self._composers) > _SKELETONS:
                self._composers.popitem(last=False)
        self._composers.move_to_end(key)
        return self._composers[key]

    async def _check(self, onnx: bytes, snapshot: Snapshot, tolerance: float) -> ParityReport:
        images = probe_images(snapshot.front)
        scored = [await self._score(snapshot, Images(image[None])) for image in images]
        return await asyncio.to_thread(
            check_export,
            onnx,
            images,
            [each.scores_BC[0] for each in scored],
            tolerance=tolerance,
            labels=snapshot.head.labels,
        )
