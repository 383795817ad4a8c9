"""Files of an export come to a folder: whole, or as differences to the files of an earlier version."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc

from everlearn_client._download import DownloadCallback, PartFile
from everlearn_client._retry import Retry, is_passing
from everlearn_client.errors import DataLoss, EverlearnClientError, InvalidArgument, NotFound, from_rpc_error
from everlearn_client.results import ExportFile, ExportInfo
from everlearn_protos.v1 import export_pb2, export_pb2_grpc

if TYPE_CHECKING:
    from everlearn_client.client import Client

MAX_STEPS: Final = 3
PLANS: Final = 3
"""Asked for, where the server forgets a difference between two questions."""

logger = logging.getLogger(__name__)


class Downloads:
    """Of one client. Each file goes on where an earlier attempt stopped, also one of an earlier process."""

    def __init__(self, client: Client, stub: export_pb2_grpc.ExportServiceStub) -> None:
        self._client, self._stub = client, stub

    def fetch(
        self,
        export: ExportInfo,
        folder: Path,
        *,
        base: Path | None,
        on_progress: DownloadCallback | None,
        retry_for_s: float,
    ) -> list[Path]:
        """See Client.download."""
        return [self._file(export, file, folder, base, on_progress, retry_for_s) for file in export.files]

    def _file(
        self,
        export: ExportInfo,
        file: ExportFile,
        folder: Path,
        base: Path | None,
        on_progress: DownloadCallback | None,
        retry_for_s: float,
    ) -> Path:
        part = PartFile(file, folder)
        if part.is_here:
            return part.path
        # A download of the whole that has begun goes on.
        if base is not None and not part.offset and (base / file.file_name).is_file():
            data = self._updated(export, file, folder, (base / file.file_name).read_bytes(), on_progress, retry_for_s)
            if data is not None:
                return part.complete(data)
        request = export_pb2.DownloadExportRequest(name=export.name, file_name=file.file_name)

        def stream(offset: int) -> Any:
            request.offset = offset
            return self._stub.DownloadExport(request, metadata=self._client.metadata)

        return _received(part, stream, on_progress, retry_for_s)

    def _updated(
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
        delta, wanted.have_sha256 = codec(), hashlib.sha256(have).hexdigest()
        for _ in range(PLANS):
            steps = self._client.call(self._stub.PlanUpdate, wanted).steps
            if not steps:
                return None
            check_plan(steps, wanted.have_sha256, file)
            parts = [part_of(step, file, folder, number) for number, step in enumerate(steps)]
            try:
                for step, part in zip(steps, parts, strict=True):
                    _received(part, self._stream_of(export, name, step), on_progress, retry_for_s)
            except NotFound:  # forgotten since it was planned
                continue
            try:
                return applied(delta, have, steps, parts)
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


def _received(
    part: PartFile, stream: Callable[[int], Any], on_progress: DownloadCallback | None, retry_for_s: float
) -> Path:
    """The whole of a file, through as many streams as it takes."""
    retry = Retry(give_up_after_s=retry_for_s)
    if part.is_here:
        return part.path
    while not part.is_complete:
        try:
            with closing(_chunks(stream(part.offset))) as chunks:
                for chunk in chunks:
                    part.append(chunk)
                    retry.progress()
                    if on_progress is not None:
                        on_progress(part.progress)
            if not part.is_complete:
                raise part.ended_early()
        except EverlearnClientError as error:
            if not is_passing(error):
                raise
            time.sleep(retry.delay_s(error))
    return part.finish()


def _chunks(call: Any) -> Generator[export_pb2.DownloadExportResponse, None, None]:
    try:
        yield from call
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None
    finally:
        call.cancel()


def delta_request(export: ExportInfo, name: str, step: export_pb2.DeltaStep) -> export_pb2.DownloadDeltaRequest:
    """Asks for one step of a plan for the file of this name."""
    return export_pb2.DownloadDeltaRequest(
        name=export.name, file_name=name, base_sha256=step.base_sha256, target_sha256=step.target_sha256
    )


def part_of(step: export_pb2.DeltaStep, file: ExportFile, folder: Path, number: int) -> PartFile:
    """Where a step of a plan arrives, beside its file."""
    name = f"{file.file_name}.{file.sha256[:16]}.{number}.delta"
    return PartFile(ExportFile(name, step.size_bytes, step.sha256), folder)


def check_plan(steps: Iterable[export_pb2.DeltaStep], have: str, file: ExportFile) -> None:
    """Raises DataLoss where a plan does not lead from what is there to what is wanted, or costs more than the file."""
    told, at, size = list(steps), have, 0
    for step in told:
        if step.base_sha256 != at:
            raise DataLoss(f"{file.file_name}: the server plans a difference to a file that is not here")
        at, size = step.target_sha256, size + step.size_bytes
    if at != file.sha256 or len(told) > MAX_STEPS or size > file.size_bytes:
        raise DataLoss(
            f"{file.file_name}: the server plans {len(told)} differences of {size} bytes that do not lead to it"
        )


def applied(delta: Any, have: bytes, steps: Iterable[export_pb2.DeltaStep], parts: Iterable[PartFile]) -> bytes:
    """The file at the end of a plan whose steps have arrived. Raises DataLoss."""
    for step, part in zip(steps, parts, strict=True):
        try:
            have = delta.apply(have, part.path.read_bytes(), max_bytes=step.target_size_bytes)
        except delta.DeltaError as error:
            raise DataLoss(str(error)) from error
    return have


def codec() -> Any:
    """Loaded where it is needed: a client that takes files whole needs no zstandard."""
    try:
        from everlearn_protos import delta
    except ImportError as error:
        raise InvalidArgument(
            f"differences need {error.name}; `pip install 'everlearn[edge]'` brings it", field="base"
        ) from None
    return delta
