"""`inference.GRPCInferenceService`: the Open Inference Protocol v2 with Triton's extensions, so that tritonclient and
KServe's tools work unmodified. Where the protocol is silent this does what Triton does.

Handlers take raw bytes and parse themselves, so that a malformed message is answered with INVALID_ARGUMENT.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from everlearn.errors import InvalidError, NotFoundError, PreconditionError
from everlearn_protos.oip import SERVICE, message, service
from everlearn_server.engine.serving import Scored, Serving, Snapshot
from everlearn_server.rpc import status, wire
from everlearn_server.rpc.oip_description import config_message, metadata_message
from everlearn_server.rpc.oip_infer import build_response, read_outputs, read_timeout_s
from everlearn_server.rpc.oip_statistics import Statistics, statistics_message
from everlearn_server.rpc.oip_tensors import read_samples
from everlearn_server.rpc.oip_wire import parse_infer

EXTENSIONS = (
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)
"""Triton's extensions that this server has, as ServerMetadata tells them."""
NOT_OFFERED = {
    "SystemSharedMemory": "shared memory is not offered; send tensors in the message",
    "CudaSharedMemory": "shared memory is not offered; send tensors in the message",
    "TraceSetting": "trace settings are not offered here",
    "LogSettings": "log settings are not offered here",
}
"""Beginning of a method's name -> why it answers UNIMPLEMENTED."""
STREAM_WINDOW = 8
"""Requests of one stream that are worked on at once; the rest wait in the client, which is the back-pressure."""

Context = grpc.aio.ServicerContext[bytes, bytes]


class InferenceService:
    """Answers predictions out of `serving`. Make one and register `handler()` on a grpc.aio server."""

    def __init__(
        self,
        serving: Serving,
        *,
        server_name: str,
        server_version: str,
        max_message_bytes: int,
        clock: Callable[[], float],
    ) -> None:
        """`clock`: seconds since the epoch. `max_message_bytes`: of one request; gRPC's own limit must not be lower."""
        self._serving = serving
        self._server_name = server_name
        self._server_version = server_version
        self._max_bytes = max_message_bytes
        self._statistics = Statistics(clock)
        self._draining = False

    def drain(self) -> None:
        """From now on ServerReady and ModelReady answer false; requests are still served."""
        self._draining = True

    def handler(self) -> grpc.GenericRpcHandler:
        """All methods of the service."""
        answers: dict[str, Callable[[Any], Any]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        methods = {name: _unary(self._parsed(name, answer)) for name, answer in answers.items()}
        methods["ModelInfer"] = _unary(self._model_infer)
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            status.answered_stream(self._model_stream_infer)
        )
        for method in service().methods:
            for beginning, reason in NOT_OFFERED.items():
                if method.name.startswith(beginning):
                    methods[method.name] = _unary(_refusal(f"{method.name}: {reason}"))
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _parsed(self, method: str, answer: Callable[[Any], Any]) -> Callable[[bytes, Context], Awaitable[bytes]]:
        kind = message(service().methods_by_name[method].input_type.name)

        async def call(request: bytes, context: Context) -> bytes:
            response = answer(wire.parse(kind, request, max_bytes=self._max_bytes))
            serialised: bytes = response.SerializeToString()
            return serialised

        return call

    # --- the server

    def _server_live(self, request: Any) -> Any:
        return message("ServerLiveResponse")(live=True)

    def _server_ready(self, request: Any) -> Any:
        return message("ServerReadyResponse")(ready=not self._draining)

    def _server_metadata(self, request: Any) -> Any:
        return message("ServerMetadataResponse")(
            name=self._server_name, version=self._server_version, extensions=EXTENSIONS
        )

    # --- models

    def _model_ready(self, request: Any) -> Any:
        ready = not self._draining and isinstance(self._look_up(request.name, request.version), Snapshot)
        return message("ModelReadyResponse")(ready=ready)

    def _model_metadata(self, request: Any) -> Any:
        snapshot = self._serving.snapshot(request.name, request.version)
        return metadata_message(snapshot, self._serving.versions(request.name))

    def _model_config(self, request: Any) -> Any:
        return config_message(self._serving.snapshot(request.name, request.version))

    def _model_statistics(self, request: Any) -> Any:
        if request.name:
            # Raises where there is none; of a version that is given only by its alias it tells the number.
            number = self._serving.snapshot(request.name, request.version).version
            wanted = [number] if request.version else self._serving.versions(request.name)
            pairs = [(request.name, version) for version in wanted]
        else:
            pairs = [(model, version) for model in self._serving.models() for version in self._versions(model)]
        stats = [statistics_message(model, number, self._statistics.counters(model, number)) for model, number in pairs]
        return message("ModelStatisticsResponse")(model_stats=stats)

    # --- the repository

    def _repository_index(self, request: Any) -> Any:
        _refuse_repository(request)
        response = message("RepositoryIndexResponse")()
        for model in self._serving.models():
            found = self._look_up(model, "")
            if isinstance(found, Snapshot):
                for version in self._versions(model):
                    response.models.add(name=model, version=str(version), state="READY")
            elif isinstance(found, PreconditionError) and not request.ready:
                response.models.add(name=model, state="UNAVAILABLE", reason=found.message)
        return response

    def _load(self, request: Any) -> Any:
        _refuse_repository(request)
        if request.parameters:
            name = min(request.parameters)[:64]
            raise InvalidError(
                f"load parameter '{name}' is not taken; a model is declared through everlearn.v1.ModelService (apply)",
                field=f"parameters[{name}]",
            )
        self._serving.load(request.model_name)
        return message("RepositoryModelLoadResponse")()

    def _unload(self, request: Any) -> Any:
        _refuse_repository(request)
        unknown = sorted(set(request.parameters) - {"unload_dependents"})  # nothing depends on a model here
        if unknown:
            name = unknown[0][:64]
            raise InvalidError(
                f"unload parameter '{name}' is unknown; only 'unload_dependents' is", field=f"parameters[{name}]"
            )
        self._serving.unload(request.model_name)
        return message("RepositoryModelUnloadResponse")()

    def _look_up(self, model: str, version: str) -> Snapshot | NotFoundError | PreconditionError:
        try:
            return self._serving.snapshot(model, version)
        except (NotFoundError, PreconditionError) as error:
            return error

    def _versions(self, model: str) -> list[int]:
        # A model may be deleted, or not be ready, while all of them are listed.
        return self._serving.versions(model) if isinstance(self._look_up(model, ""), Snapshot) else []

    # --- inference

    async def _model_infer(self, request: bytes, context: Context) -> bytes:
        infer, raw = parse_infer(message("ModelInferRequest"), request, max_bytes=self._max_bytes)
        response = await self._infer(infer, raw, context)
        serialised: bytes = response.SerializeToString()
        return serialised

    async def _infer(self, request: Any, raw: list[memoryview], context: Context) -> Any:
        snapshot = self._serving.snapshot(request.model_name, request.model_version)
        with self._statistics.timing(snapshot) as timing:
            timeout_s = _earlier(read_timeout_s(request), context.time_remaining())
            outputs = read_outputs(request, snapshot)
            samples = read_samples(request, raw, snapshot)
            scored = await self._score(snapshot, samples, timeout_s)
            timing.scored(scored)
            return build_response(request.id, snapshot, outputs, scored.scores_BC, scored.novelty_B)

    async def _score(self, snapshot: Snapshot, samples: Any, timeout_s: float | None) -> Scored:
        try:
            return await self._serving.score(snapshot, samples, timeout_s=timeout_s)
        except InvalidError as error:
            # The engine names its own field, such as `samples.images[2]`; on this wire that is `inputs[0][2]`.
            field = f"inputs[0]{error.field[error.field.rindex('[') :]}" if error.field.endswith("]") else "inputs[0]"
            raise type(error)(error.message, field=field) from error

    async def _model_stream_infer(self, requests: AsyncIterator[bytes], context: Context) -> None:
        answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(STREAM_WINDOW)
        async with asyncio.TaskGroup() as group:

            async def read() -> None:
                async for request in requests:
                    await answers.put(group.create_task(self._stream_answer(request, context)))
                await answers.put(None)

            group.create_task(read())
            # In the order of the requests, as Triton answers models that are not decoupled.
            while (answer := await answers.get()) is not None:
                await context.write(await answer)

    async def _stream_answer(self, request: bytes, context: Context) -> bytes:
        response = message("ModelStreamInferResponse")()
        try:
            infer, raw = parse_infer(message("ModelInferRequest"), request, max_bytes=self._max_bytes)
            response.infer_response.id = infer.id
            response.infer_response.CopyFrom(await self._infer(infer, raw, context))
            # Every answer is the only one to its request; `triton_enable_empty_final_response` adds nothing.
            response.infer_response.parameters["triton_final_response"].bool_param = True
        except Exception as error:  # one request's error; the stream stays open
            response.error_message = status.to_status(error).message
        serialised: bytes = response.SerializeToString()
        return serialised


def _unary(behaviour: Callable[[bytes, Context], Awaitable[bytes]]) -> grpc.RpcMethodHandler[bytes, bytes]:
    return grpc.unary_unary_rpc_method_handler(status.answered(behaviour))


def _refusal(text: str) -> Callable[[bytes, Context], Awaitable[bytes]]:
    async def call(request: bytes, context: Context) -> bytes:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, text)
        raise AssertionError("abort always raises")

    return call


def _refuse_repository(request: Any) -> None:
    if request.repository_name:
        raise InvalidError(
            f"repository_name is '{request.repository_name[:64]}'; leave it empty, this server has one repository",
            field="repository_name",
        )


def _earlier(first_s: float | None, second_s: float | None) -> float | None:
    if first_s is None or second_s is None:
        return second_s if first_s is None else first_s
    return min(first_s, second_s)
