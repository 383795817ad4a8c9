"""Long-running work: named, observable, stored, and begun again after a crash (each kind is idempotent)."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import structlog

from everlearn.errors import EverlearnError, NotFoundError
from everlearn_server.store.rows import OperationRow
from everlearn_server.store.store import Store

_logger = structlog.get_logger(__name__)
_KEEP_DONE = 200


@dataclass(kw_only=True, eq=False)
class Operation:
    """One piece of work. Progress lives in memory; request and outcome are stored."""

    name: str
    """`operations/{id}`."""
    model: str
    kind: str
    """`apply`, `export` or `erase`."""
    request: Mapping[str, str]
    stage: str = "queued"
    bytes_done: int = 0
    bytes_total: int = 0
    done: bool = False
    result: Mapping[str, str] = field(default_factory=dict)
    error: EverlearnError | None = None
    create_time_s: float = field(default_factory=time.time)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def progress(self, stage: str, bytes_done: int = 0, bytes_total: int = 0) -> None:
        """Reports where it is; callable from any thread."""
        self.stage, self.bytes_done, self.bytes_total = stage, bytes_done, bytes_total


Runner = Callable[[Operation], Awaitable[Mapping[str, str]]]


class Operations:
    """All operations, by name. Event loop only."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._operations: dict[str, Operation] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self, kind: str, model: str, request: Mapping[str, str], runner: Runner) -> Operation:
        """Stores the request and begins."""
        operation = Operation(name=f"operations/{uuid.uuid4().hex}", model=model, kind=kind, request=request)
        await self._save(operation)
        self._begin(operation, runner)
        return operation

    async def resume(self, runners: Mapping[str, Runner]) -> None:
        """After a restart: knows the finished ones again and begins the others anew."""
        for row in await self._store.catalog.operations():
            operation = Operation(
                name=row.name,
                model=row.model,
                kind=row.kind,
                request=json.loads(row.request_json),
                stage=row.stage,
                done=row.done,
                result=json.loads(row.result_json or "{}"),
                error=_load_error(row.error_json),
                create_time_s=row.create_time_s,
            )
            if operation.done:
                self._operations[operation.name] = operation
                operation.changed.set()
            else:
                self._begin(operation, runners[operation.kind])

    def get(self, name: str) -> Operation:
        """Raises NotFoundError."""
        if name not in self._operations:
            raise NotFoundError(f"no operation {name[:60]!r}", field="name")
        return self._operations[name]

    def list(self) -> list[Operation]:
        """Newest first."""
        return sorted(self._operations.values(), key=lambda operation: -operation.create_time_s)

    def running(self, model: str, kind: str) -> Operation | None:
        """The unfinished one of a kind for a model."""
        for operation in self._operations.values():
            if operation.model == model and operation.kind == kind and not operation.done:
                return operation
        return None

    async def wait(self, name: str, timeout_s: float | None) -> Operation:
        """Until it is done or the time is over."""
        operation = self.get(name)
        try:
            async with asyncio.timeout(timeout_s):
                await operation.changed.wait()
        except TimeoutError:
            pass
        return operation

    async def forget(self, model: str) -> None:
        """Stops what is being done for a model that goes away, and drops its operations, as the store does."""
        gone = [operation for operation in self._operations.values() if operation.model == model]
        tasks = [self._tasks.pop(operation.name) for operation in gone if operation.name in self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for operation in gone:
            del self._operations[operation.name]
            if not operation.done:  # whoever waits for it hears why
                operation.error = NotFoundError(f"model {model!r} was deleted meanwhile", field="name")
                operation.done = True
            operation.changed.set()

    async def close(self) -> None:
        """Stops everything; unfinished operations begin anew at the next start."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _begin(self, operation: Operation, runner: Runner) -> None:
        self._operations[operation.name] = operation
        self._tasks[operation.name] = asyncio.create_task(self._run(operation, runner), name=operation.name)
        for name in [name for name, old in self._operations.items() if old.done][:-_KEEP_DONE]:
            del self._operations[name]

    async def _run(self, operation: Operation, runner: Runner) -> None:
        try:
            operation.result = await runner(operation)
        except EverlearnError as error:
            operation.error = error
        except asyncio.CancelledError:
            raise
        except Exception as error:
            _logger.exception("operation failed", operation=operation.name, kind=operation.kind)
            operation.error = EverlearnError(f"internal error: {type(error).__name__}")
        operation.done = True
        self._tasks.pop(operation.name, None)
        await self._save(operation)
        operation.changed.set()

    async def _save(self, operation: Operation) -> None:
        error = operation.error
        await self._store.catalog.put_operation(
            OperationRow(
                name=operation.name,
                model=operation.model,
                kind=operation.kind,
                request_json=json.dumps(dict(operation.request)),
                stage=operation.stage,
                done=operation.done,
                error_json=json.dumps(_dump_error(error)) if error else None,
                result_json=json.dumps(dict(operation.result)) if operation.done and not error else None,
                create_time_s=operation.create_time_s,
                update_time_s=time.time(),
            )
        )


def _dump_error(error: EverlearnError) -> dict[str, str]:
    return {"kind": type(error).__name__, "message": error.message, "field": error.field, "reason": error.reason}


def _load_error(text: str | None) -> EverlearnError | None:
    if not text:
        return None
    stored = json.loads(text)
    kinds = {kind.__name__: kind for kind in _all_kinds(EverlearnError)}
    kind = kinds.get(stored["kind"], EverlearnError)
    error = kind.__new__(kind)
    EverlearnError.__init__(error, stored["message"], field=stored["field"])
    error.reason = stored["reason"]
    return error


def _all_kinds(kind: type[EverlearnError]) -> list[type[EverlearnError]]:
    return [kind, *(deeper for sub in kind.__subclasses__() for deeper in _all_kinds(sub))]
