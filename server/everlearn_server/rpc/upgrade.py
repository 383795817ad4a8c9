"""The wire side of ModelService.UpgradeBackbone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress

from everlearn.errors import InvalidError
from everlearn_protos.v1 import models_pb2
from everlearn_server.engine.engine import Engine
from everlearn_server.engine.upgrade import Upgrade, Upgraded
from everlearn_server.engine.upgrade_gate import Terms
from everlearn_server.rpc import names, wire
from everlearn_server.rpc.samples import samples_of

_LOOK_EVERY_S = 0.1
_NAMED = 100
Response = models_pb2.UpgradeBackboneResponse


async def upgrade(engine: Engine, requests: AsyncIterator[bytes]) -> AsyncGenerator[Response, None]:
    """Open, samples, and after the half-close the report."""
    first = await anext(aiter(requests), None)
    message = wire.parse(models_pb2.UpgradeBackboneRequest, first or b"")
    if message.WhichOneof("request") != "open":
        raise InvalidError("a stream begins with `open`", field="open")
    name, terms = names.model_of(message.open.name, field="open.name"), _terms(message.open)
    stages: asyncio.Queue[tuple[str, int, int]] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def progress(stage: str, done: int, total: int) -> None:
        loop.call_soon_threadsafe(stages.put_nowait, (stage, done, total))

    beginning = asyncio.create_task(engine.upgrades.begin(name, message.open.declaration, terms, progress))
    under_way: Upgrade | None = None
    try:
        while not beginning.done() or not stages.empty():
            with suppress(TimeoutError):
                stage = await asyncio.wait_for(stages.get(), _LOOK_EVERY_S)
                yield _progress(name, *stage)
        under_way = await beginning
        yield Response(fed=0)
        async for data in requests:
            part = wire.parse(models_pb2.UpgradeBackboneRequest, data)
            if part.WhichOneof("request") != "samples":
                raise InvalidError("after `open` a stream carries `samples` only", field="samples")
            yield Response(fed=await under_way.feed(samples_of(part.samples, field="samples")))
        yield Response(report=_report(name, await under_way.finish()))
    finally:
        if under_way is None:
            beginning.cancel()
            await asyncio.gather(beginning, return_exceptions=True)
            if not beginning.cancelled() and beginning.exception() is None:
                under_way = beginning.result()
        if under_way is not None:
            under_way.close()


def _terms(opening: models_pb2.UpgradeOpen) -> Terms:
    """Raises InvalidError."""
    given = {field: getattr(opening, field) for field in ("max_drop", "min_agreement") if opening.HasField(field)}
    for field, value in given.items():
        if not 0 <= value <= 1:
            raise InvalidError(f"{value:g} is no share; write 0 to 1", field=f"open.{field}")
    if opening.max_unseen_classes < 0:
        raise InvalidError(f"{opening.max_unseen_classes} is negative", field="open.max_unseen_classes")
    return Terms(max_unseen_classes=opening.max_unseen_classes, dry_run=opening.dry_run, **given)


def _progress(name: str, stage: str, done: int, total: int) -> Response:
    step = models_pb2.ApplyProgress(model=f"models/{name}", stage=stage, bytes_done=done, bytes_total=total)
    return Response(progress=step)


def _report(name: str, upgraded: Upgraded) -> models_pb2.UpgradeReport:
    judged = upgraded.judged
    return models_pb2.UpgradeReport(
        name=f"models/{name}",
        live=upgraded.live,
        gate_passed=judged.passed,
        gate_reason=judged.reason,
        samples=judged.samples,
        held_out=judged.agreed.samples,
        unexplained=judged.unexplained,
        regularization=judged.to.alpha,
        agreement=judged.agreed.share,
        expected_drop=judged.agreed.drop,
        drop_bound=judged.agreed.drop_bound,
        windowed_accuracy=judged.windowed_accuracy,
        accuracy_bound=judged.accuracy_bound,
        classes=judged.classes,
        unseen_classes=len(judged.unseen),
        unseen=judged.unseen[:_NAMED],
    )
