"""As `_downloading`, awaited: disk and arithmetic run in threads, so that the event loop goes on."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from everlearn_client._download import DownloadCallback, PartFile
from everlearn_client._downloading import PLANS, applied, check_plan, codec, delta_request, part_of
from everlearn_client._retry import Retry, is_passing
from everlearn_client.errors import DataLoss, EverlearnClientError, NotFound, from_rpc_error
from everlearn_client.results import ExportFile, ExportInfo
from everlearn_protos.v1 import export_pb2, export_pb2_grpc

if TYPE_CHECKING:
    from everlearn_client.aio import AsyncClient

logger = logging.getLogger(__name__)


class AsyncDownloads:
    """Of one client. Each file goes on where an earlier attempt stopped, also one of an earlier process."""

    def __init__(self, client: AsyncClient, stub: export_pb2_grpc.ExportServiceAsyncStub) -> None:
        self._client, self._stub = client, stub

    async def fetch(
        self,
        export: ExportInfo,
        folder: Path,
        *,
        base: Path | None,
        on_progress: DownloadCallback | None,
        retry_for_s: float,
    ) -> list[Path]:
        """See AsyncClient.download."""
        return [await self._file(export, file, folder, base, on_progress, retry_for_s) for file in export.files]

    async def _file(
        self,
        export: ExportInfo,
        file: ExportFile,
        folder: Path,
        base: Path | None,
        on_progress: DownloadCallback | None,
        retry_for_s: float,
    ) -> Path:
        part = await asyncio.to_thread(PartFile, file, folder)
        if await asyncio.to_thread(lambda: part.is_here):
            return part.path
        # A download of the whole that has begun goes on.
        if base is not None and not part.offset and (base / file.file_name).is_file():
            have = await asyncio.to_thread((base / file.file_name).read_bytes)
            data = await self._updated(export, file, folder, have, on_progress, retry_for_s)
            if data is not None:
                return await asyncio.to_thread(part.complete, data)
        request = export_pb2.DownloadExportRequest(name=export.name, file_name=file.file_name)

        def stream(offset: int) -> Any:
            request.offset = offset
            return self._stub.DownloadExport(request, metadata=self._client.metadata)

        return await _received(part, stream, on_progress, retry_for_s)

    async def _updated(
        self,
        export: ExportInfo,
        file: ExportFile,
        folder: Path,
        have: bytes,
        on_progress: DownloadCallback | None,
        retry_for_s: float,
    ) -> bytes | None:
        """The file, made from what was there before; None where it is to be downloaded whole."""
        wanted, name = export_pb2.PlanUpdateRequest(name=export.name, file_name=file.file_name), file.file_name
        delta, wanted.have_sha256 = codec(), (await asyncio.to_thread(hashlib.sha256, have)).hexdigest()
        for _ in range(PLANS):
            steps = (await self._client.call(self._stub.PlanUpdate, wanted)).steps
            if not steps:
                return None
            check_plan(steps, wanted.have_sha256, file)
            parts = [await asyncio.to_thread(part_of, step, file, folder, number) for number, step in enumerate(steps)]
            try:
                for step, part in zip(steps, parts, strict=True):
                    await _received(part, self._stream_of(export, name, step), on_progress, retry_for_s)
            except NotFound:  # forgotten since it was planned
                continue
            try:
                return await asyncio.to_thread(applied, delta, have, steps, parts)
            except DataLoss as error:
                logger.warning("%s is downloaded whole: %s", name, error)
                return None
            finally:
                for part in parts:
                    part.path.unlink(missing_ok=True)
        return None

    def _stream_of(self, export: ExportInfo, name: str, step: export_pb2.DeltaStep) -> Callable[[int], Any]:
        request = delta_request(export, name, step)

        def stream(offset: int) -> Any:
            request.offset = offset
            return self._stub.DownloadDelta(request, metadata=self._client.metadata)

        return stream


async def _received(
    part: PartFile, stream: Callable[[int], Any], on_progress: DownloadCallback | None, retry_for_s: float
) -> Path:
    """The whole of a file, through as many streams as it takes."""
    retry = Retry(give_up_after_s=retry_for_s)
    if await asyncio.to_thread(lambda: part.is_here):
        return part.path
    while not part.is_complete:
        try:
            async with aclosing(_chunks(stream(part.offset))) as chunks:
                async for chunk in chunks:
                    await asyncio.to_thread(part.append, chunk)
                    retry.progress()
                    if on_progress is not None:
                        on_progress(part.progress)
            if not part.is_complete:
                raise part.ended_early()
        except EverlearnClientError as error:
            if not is_passing(error):
                raise
            await asyncio.sleep(retry.delay_s(error))
    return await asyncio.to_thread(part.finish)


async def _chunks(call: Any) -> AsyncGenerator[export_pb2.DownloadExportResponse, None]:
    try:
        async for chunk in call:
            yield chunk
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None
    finally:
        call.cancel()
