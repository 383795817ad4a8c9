"""everlearn.v1.ExportService: one ONNX file of a version, composed, checked, downloaded in resumable chunks."""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator

import grpc
from google.protobuf.message import Message

from everlearn.errors import InvalidError, NotFoundError
from everlearn_protos.v1 import export_pb2
from everlearn_server.engine.engine import Engine
from everlearn_server.rpc import names, wire
from everlearn_server.rpc.messages import export_message, operation_message
from everlearn_server.store.rows import ExportFile, ExportRow

CHUNK_BYTES = 256 * 1024


class ExportService:
    """Translates; the engine's exporter does the work."""

    NAME = "everlearn.v1.ExportService"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def handler(self) -> grpc.GenericRpcHandler:
        """To register with the server."""
        p = export_pb2
        return wire.service(
            self.NAME,
            {
                "CreateExport": wire.unary(p.CreateExportRequest, self.create),
                "GetExport": wire.unary(p.GetExportRequest, self.get),
                "ListExports": wire.unary(p.ListExportsRequest, self.list),
                "DownloadExport": wire.server_stream(p.DownloadExportRequest, self.download),
            },
        )

    async def create(self, request: export_pb2.CreateExportRequest, _: wire.Context) -> Message:
        """Begins; the operation's response is the Export."""
        name, version = names.version_of(request.version, field="version")
        operation = await self._engine.start_export(name, version, student=request.student)
        message: Message = operation_message(operation)
        return message

    async def get(self, request: export_pb2.GetExportRequest, _: wire.Context) -> export_pb2.Export:
        """One export."""
        return export_message(await self._find(request.name))

    async def list(self, request: export_pb2.ListExportsRequest, _: wire.Context) -> export_pb2.ListExportsResponse:
        """Newest first."""
        rows = await self._engine.exports(names.model_of(request.parent, field="parent"))
        some, token = names.page(rows, request.page_size, request.page_token)
        return export_pb2.ListExportsResponse(exports=[export_message(row) for row in some], next_page_token=token)

    async def download(
        self, request: export_pb2.DownloadExportRequest, _: wire.Context
    ) -> AsyncGenerator[export_pb2.DownloadExportResponse, None]:
        """Chunks of a file from an offset on; an empty rest is one empty chunk, which still carries size and digest."""
        file = _file(await self._find(request.name), request.file_name)
        if not 0 <= request.offset <= file.size:
            raise InvalidError(f"offset {request.offset} is outside of 0..{file.size}", field="offset")
        offset = request.offset
        while True:
            data = await self._engine.read_export(file.sha256, offset, CHUNK_BYTES)
            yield export_pb2.DownloadExportResponse(
                offset=offset, data=data, crc32=zlib.crc32(data), size_bytes=file.size, sha256=file.sha256
            )
            offset += len(data)
            if offset >= file.size:
                return

    async def _find(self, name: str) -> ExportRow:
        model, number = names.export_of(name)
        for row in await self._engine.exports(model):
            if row.version_number == number:
                return row
        raise NotFoundError(f"model {model!r} has no export of version {number}; create one", field="name")


def _file(row: ExportRow, file_name: str) -> ExportFile:
    for file in row.files:
        if file.file_name == file_name:
            return file
    known = ", ".join(file.file_name for file in row.files)
    raise NotFoundError(f"the export has no file {file_name[:60]!r}; it has {known}", field="file_name")
