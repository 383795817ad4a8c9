"""google.longrunning.Operations over the engine's operations (AIP-151)."""

from __future__ import annotations

from typing import Any

import grpc
from google.longrunning import operations_pb2
from google.protobuf import empty_pb2

from everlearn.errors import UnavailableError
from everlearn_server.engine.engine import Engine
from everlearn_server.rpc import names, wire
from everlearn_server.rpc.messages import finished_message

_MAX_WAIT_S = 60.0


class OperationsService:
    """Get, list, wait. Results are looked up when asked for, so they are never stale."""

    NAME = "google.longrunning.Operations"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def handler(self) -> grpc.GenericRpcHandler:
        """To register with the server."""
        p = operations_pb2
        return wire.service(
            self.NAME,
            {
                "GetOperation": wire.unary(p.GetOperationRequest, self.get),
                "ListOperations": wire.unary(p.ListOperationsRequest, self.list),
                "WaitOperation": wire.unary(p.WaitOperationRequest, self.wait),
                "CancelOperation": wire.unary(p.CancelOperationRequest, self.cancel),
                "DeleteOperation": wire.unary(p.DeleteOperationRequest, self.cancel),
            },
        )

    async def get(self, request: Any, _: wire.Context) -> Any:
        """Where an operation is."""
        operation = self._engine.operations.get(request.name)
        return await finished_message(operation, self._engine)

    async def list(self, request: Any, _: wire.Context) -> Any:
        """Newest first."""
        some, token = names.page(self._engine.operations.list(), request.page_size, request.page_token)
        messages = [await finished_message(operation, self._engine) for operation in some]
        return operations_pb2.ListOperationsResponse(operations=messages, next_page_token=token)

    async def wait(self, request: Any, context: wire.Context) -> Any:
        """Until it is done, the given time is over, or the call's deadline is near."""
        asked_s = request.timeout.ToNanoseconds() / 1e9 or _MAX_WAIT_S
        remaining_s = context.time_remaining()
        if remaining_s is not None:
            asked_s = min(asked_s, max(0.0, remaining_s - 0.2))
        operation = await self._engine.operations.wait(request.name, min(asked_s, _MAX_WAIT_S))
        return await finished_message(operation, self._engine)

    async def cancel(self, request: Any, _: wire.Context) -> Any:
        """Operations are short and idempotent; a finished one needs no cancelling, another is refused."""
        if not self._engine.operations.get(request.name).done:
            raise UnavailableError(
                f"{request.name} is running and cannot be stopped half-way; delete its model instead"
            )
        return empty_pb2.Empty()
