"""Makes a model's trunk in 8 bits once enough images have come, and starts the model anew on it.

    observing trunk --the first images--> a sketch of ranges --> graph --> blob, trunk row --> model row --> learns

Until the model's row names the trunk nothing of it counts: killed before, the server calibrates again on what clients
send again; killed after, it finds the trunk by its digest. A lineage has one trunk for good: what has been learned on
it is never met by another. Streams that are open are told to come back, with all that they have sent.
"""

from __future__ import annotations

import asyncio

import structlog

from everlearn.errors import ConflictError, DataLossError, EverlearnError
from everlearn.export.int8_trunk import OBSERVES, calibrated
from everlearn.export.ranges import RangeSketch
from everlearn.learners.calibration import Calibration
from everlearn.values import Trunk
from everlearn_server.engine.applier import Applier, calibrated_name
from everlearn_server.engine.declarations import Declarations
from everlearn_server.engine.fleet import Fleet
from everlearn_server.engine.integration import Integration
from everlearn_server.engine.live_model import LiveModel
from everlearn_server.store.store import Store

_logger = structlog.get_logger(__name__)


class Calibrations:
    """Of all models; event loop only. A model's calibration begins by itself, and none begins twice."""

    def __init__(self, *, store: Store, fleet: Fleet, applier: Applier, declarations: Declarations) -> None:
        self._store, self._fleet, self._applier, self._declarations = store, fleet, applier, declarations
        self._under_way: dict[LiveModel, asyncio.Task[None]] = {}
        self._closed = False

    def begin(self, model: LiveModel) -> None:
        """Enough has come: makes the trunk, unless that is under way. May be called with every batch."""
        if self._closed or model in self._under_way:
            return
        task = asyncio.get_running_loop().create_task(self._run(model), name=f"calibrate-{model.name}")
        self._under_way[model] = task
        task.add_done_callback(lambda _: self._under_way.pop(model, None))

    async def close(self) -> None:
        """What has begun comes to its end; nothing begins any more."""
        self._closed = True
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)

    async def _run(self, model: LiveModel) -> None:
        try:
            async with self._declarations.changing(model.name):
                if self._fleet.find(model.name) is model and model.is_started:
                    await self._calibrate(model)
        except ConflictError:  # a declaration is being applied: it starts the model anew, and this with it
            return
        except Exception as error:  # nothing is learned on a trunk that could not be made
            told = error if isinstance(error, EverlearnError) else DataLossError(f"{type(error).__name__}: see the log")
            _logger.exception("a trunk in 8 bits could not be made", model=model.name)
            await model.stop(commit=False)
            self._fleet.tell_failure(model, told)
            self._fleet.tell_ready(model)

    async def _calibrate(self, model: LiveModel) -> None:
        sketch = await model.writer.look(_sketch)
        trunk = await self._made(model, sketch)
        key = calibrated_name(model.row.uid, model.row.lineage)
        await self._applier.put_trunk(key, trunk, trunk.provenance.get("source", ""))
        await model.stop(commit=False)
        await model.update_row(trunk_digest=trunk.digest)  # from here on the model is one in 8 bits
        successor = self._fleet.make(model.row, model.spec)
        try:
            await self._fleet.begin(successor, trunk)
        except EverlearnError as error:  # it is made, and the next start takes it up
            self._fleet.tell_failure(successor, error)
            raise
        finally:
            self._fleet.take(successor)
            self._fleet.release(model)
        _logger.info("calibrated", model=model.name, trunk=trunk.digest, images=sketch.samples)

    async def _made(self, model: LiveModel, sketch: RangeSketch) -> Trunk:
        live, bits = model.ready_trunk, model.spec.spec.memory.bits
        source = await self._applier.stored_trunk(
            live.provenance[OBSERVES], lambda trunk: trunk.front == live.front and trunk.scale.bits == bits
        )
        return await asyncio.to_thread(calibrated, source, sketch)


def _sketch(work: Integration) -> RangeSketch:
    assert isinstance(work.learner, Calibration), "its trunk observes"
    return RangeSketch.from_bytes(work.learner.sketch.to_bytes())
