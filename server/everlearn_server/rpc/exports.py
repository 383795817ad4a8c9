"""everlearn.v1.ExportService: one ONNX file of a version, composed, checked, downloaded in resumable chunks."""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator

import grpc
from google.protobuf.message import Message

from everlearn.errors import InvalidError, NotFoundError
from everlearn_protos.v1 import export_pb2
from everlearn_server.engine.engine import Engine
from everlearn_server.engine.precisions import sizes
from everlearn_server.rpc import names, wire
from everlearn_server.rpc.caller import client_of
from everlearn_server.rpc.messages import export_message, operation_message
from everlearn_server.store.blobs import DIGEST
from everlearn_server.store.rows import ExportFile, ExportRow

CHUNK_BYTES = 256 * 1024
DELTA_CHUNK_BYTES = 4 * 1024
"""What a line of 16 kbit/s carries in two seconds: so much is lost at most where it breaks."""


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
                "PlanUpdate": wire.unary(p.PlanUpdateRequest, self.plan_update),
                "DownloadDelta": wire.server_stream(p.DownloadDeltaRequest, self.download_delta),
            },
        )

    async def create(self, request: export_pb2.CreateExportRequest, context: wire.Context) -> Message:
        """Begins; the operation's response is the Export."""
        client_of(context)
        name, version = names.version_of(request.version, field="version")
        operation = await self._engine.start_export(name, version, student=request.student, precision=request.precision)
        message: Message = operation_message(operation)
        return message

    async def get(self, request: export_pb2.GetExportRequest, _: wire.Context) -> export_pb2.Export:
        """One export."""
        return export_message(await self._find(request.name), self._engine)

    async def list(self, request: export_pb2.ListExportsRequest, _: wire.Context) -> export_pb2.ListExportsResponse:
        """Newest first."""
        rows = await self._engine.exports(names.model_of(request.parent, field="parent"))
        some, token = names.page(rows, request.page_size, request.page_token)
        return export_pb2.ListExportsResponse(
            exports=[export_message(row, self._engine) for row in some], next_page_token=token
        )

    async def download(
        self, request: export_pb2.DownloadExportRequest, context: wire.Context
    ) -> AsyncGenerator[export_pb2.DownloadExportResponse, None]:
        """Chunks of a file from an offset on; an empty rest is one empty chunk, which still carries size and digest.

        Whose it is from now on is written down before the first byte of a model leaves.
        """
        client = client_of(context)
        row = await self._find(request.name)
        file = _file(row, request.file_name)
        if not 0 <= request.offset <= file.size:
            raise InvalidError(f"offset {request.offset} is outside of 0..{file.size}", field="offset")
        await self._engine.verify_export(row, file.sha256)
        await self._engine.note_download(row, file.file_name, client)
        offset = request.offset
        while True:
            data = await self._engine.read_export(file.sha256, offset, CHUNK_BYTES)
            yield export_pb2.DownloadExportResponse(
                offset=offset, data=data, crc32=zlib.crc32(data), size_bytes=file.size, sha256=file.sha256
            )
            offset += len(data)
            if offset >= file.size:
                return

    async def plan_update(
        self, request: export_pb2.PlanUpdateRequest, _: wire.Context
    ) -> export_pb2.PlanUpdateResponse:
        """Differences that are worth it."""
        row = await self._find(request.name)
        file = _file(row, request.file_name)
        if request.have_sha256 and not DIGEST.fullmatch(request.have_sha256):
            raise InvalidError("not a digest; it has 64 lower-case hexadecimal digits", field="have_sha256")
        stored = await self._stored(row.model, file.file_name)
        of_another_precision = [
            each for each in await self._engine.exports(row.model) if each.precision != row.precision
        ]
        if request.have_sha256 in sizes(of_another_precision, file.file_name):
            return export_pb2.PlanUpdateResponse()  # no weight of one is near a weight of the other
        steps = await self._engine.updates.plan(row.model, stored, request.have_sha256, file.sha256)
        return export_pb2.PlanUpdateResponse(
            steps=[
                export_pb2.DeltaStep(
                    base_sha256=step.base_sha256,
                    target_sha256=step.target_sha256,
                    target_size_bytes=step.target_size,
                    size_bytes=step.size,
                    sha256=step.sha256,
                )
                for step in steps
            ]
        )

    async def download_delta(
        self, request: export_pb2.DownloadDeltaRequest, context: wire.Context
    ) -> AsyncGenerator[export_pb2.DownloadExportResponse, None]:
        """As `download`; a difference leads to the whole file."""
        client = client_of(context)
        row = await self._find(request.name)
        file = _file(row, request.file_name)
        stored = await self._stored(row.model, file.file_name)
        delta = await self._engine.updates.delta(row.model, stored, request.base_sha256, request.target_sha256)
        if not 0 <= request.offset <= delta.size:
            raise InvalidError(f"offset {request.offset} is outside of 0..{delta.size}", field="offset")
        await self._engine.note_download(row, file.file_name, client)
        sha256 = delta.sha256
        for offset in range(request.offset, max(delta.size, request.offset + 1), DELTA_CHUNK_BYTES):
            data = delta.data[offset : offset + DELTA_CHUNK_BYTES]
            yield export_pb2.DownloadExportResponse(
                offset=offset, data=data, crc32=zlib.crc32(data), size_bytes=delta.size, sha256=sha256
            )
            sha256 = ""  # the first tells it

    async def _stored(self, model: str, file_name: str) -> dict[str, int]:
        return sizes(await self._engine.exports(model), file_name)

    async def _find(self, name: str) -> ExportRow:
        model, number, precision = names.export_of(name)
        for row in await self._engine.exports(model):
            if (row.version_number, row.precision) == (number, precision):
                return row
        raise NotFoundError(f"model {model!r} has no {precision} export of version {number}; create one", field="name")


def _file(row: ExportRow, file_name: str) -> ExportFile:
    for file in row.files:
        if file.file_name == file_name:
            return file
    known = ", ".join(file.file_name for file in row.files)
    raise NotFoundError(f"the export has no file {file_name[:60]!r}; it has {known}", field="file_name")
