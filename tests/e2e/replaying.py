"""Somebody between a device and its server who keeps what the server answers, and offers it again later."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import grpc
from tests.ports import free_port

KEPT = ("GetModel", "CheckIn", "CreateExport", "GetOperation")
"""Answers that say which version is wanted, and what it is. The files themselves are let through: they are what was
asked for."""


class Replaying:
    """with Replaying(server.address) as between: ... a client of between.address ...; between.replays = True"""

    def __init__(self, target: str) -> None:
        self._upstream = grpc.insecure_channel(target)
        self._server = grpc.server(ThreadPoolExecutor(8))
        self._server.add_generic_rpc_handlers((_Everything(self),))
        self.address = f"127.0.0.1:{free_port()}"
        self._kept: dict[str, list[bytes]] = {}
        self.replays = False
        """From now on, for good: what was answered last."""
        self.replayed = 0

    def __enter__(self) -> Self:
        self._server.add_insecure_port(self.address)
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(None).wait()
        self._upstream.close()

    def answer(self, method: str, metadata: Any, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """One call of any method, as bytes."""
        name = method.rpartition("/")[2]
        if self.replays and name in KEPT:
            self.replayed += 1
            yield from self._kept[name]
            return
        passed: list[bytes] = []
        try:
            for each in self._upstream.unary_stream(method)(request, metadata=metadata):
                passed.append(each)
                yield each
        except grpc.RpcError as error:
            context.set_trailing_metadata(error.trailing_metadata())
            context.abort(error.code(), error.details())
        if not self.replays:
            self._kept[name] = passed


class _Everything(grpc.GenericRpcHandler):  # type: ignore[misc]  # untyped
    """On the wire a call with one answer is one with a stream of them that ends after the first."""

    def __init__(self, between: Replaying) -> None:
        self._between = between

    def service(self, handler_call_details: Any) -> Any:
        """A handler for whatever is called."""
        method = handler_call_details.method
        told = [
            (key, value)
            for key, value in handler_call_details.invocation_metadata
            if not key.startswith(("grpc-", ":")) and key != "user-agent"
        ]
        return grpc.unary_stream_rpc_method_handler(
            lambda request, context: self._between.answer(method, told, request, context)
        )
