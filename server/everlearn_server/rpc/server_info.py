"""everlearn.v1.ServerInfoService."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import time
from collections.abc import Mapping

import grpc

import everlearn
import everlearn.backbones
import everlearn.heads
import everlearn.hubs
import everlearn.memories
from everlearn import plugins
from everlearn.spec.schema import json_schema
from everlearn_protos.v1 import server_info_pb2
from everlearn_server.engine.engine import Engine
from everlearn_server.rpc import wire
from everlearn_server.rpc.messages import rotation_messages
from everlearn_server.rpc.moments import timestamp

_LIBRARIES = ("grpcio", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "protobuf", "timm", "torch")


class ServerInfoService:
    """What this server is and can do."""

    NAME = "everlearn.v1.ServerInfoService"

    def __init__(self, engine: Engine, *, providers: tuple[str, ...], protection: Mapping[str, str]) -> None:
        """`providers`: ONNX Runtime's execution providers that are in use, not those that were asked for; `protection`:
        what keeps raw data from staying behind."""
        self._engine = engine
        self._providers = providers
        self._protection = protection
        self._started_s = time.time()

    def handler(self) -> grpc.GenericRpcHandler:
        """To register with the server."""
        methods = {"GetServerInfo": wire.unary(server_info_pb2.GetServerInfoRequest, self.get)}
        return wire.service(self.NAME, methods)

    async def get(self, _: server_info_pb2.GetServerInfoRequest, __: wire.Context) -> server_info_pb2.ServerInfo:
        """Versions, plug-ins, limits, schema."""
        return server_info_pb2.ServerInfo(
            version=everlearn.__version__,
            timeline=self._engine.timeline,
            start_time=timestamp(self._started_s),
            execution_providers=self._providers,
            torch_available=importlib.util.find_spec("torch") is not None,
            hubs=plugins.kinds(everlearn.hubs),
            loaders=plugins.kinds(everlearn.backbones),
            heads=plugins.kinds(everlearn.heads),
            memories=plugins.kinds(everlearn.memories),
            max_message_bytes=wire.MAX_MESSAGE_BYTES,
            declaration_schema=json.dumps(json_schema()),
            libraries=_versions(),
            trunks=self._engine.trunk_users(),
            public_key=self._engine.erasures.public_key.hex(),
            key_rotations=rotation_messages(self._engine.keys),
            protection={**self._protection, "image_decoding": self._engine.queue.images.walls},
        )


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
