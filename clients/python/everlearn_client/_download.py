"""A file on its way here: checked chunks are appended to a `.part`, and only the verified whole gets its name."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from everlearn_client.errors import DataLoss, EverlearnClientError, Unavailable
from everlearn_client.results import ExportFile
from everlearn_protos.v1 import export_pb2

DownloadCallback = Callable[["DownloadProgress"], None]


@dataclass(frozen=True)
class DownloadProgress:
    """Bytes of one file so far, those of an earlier attempt included."""

    file_name: str
    bytes_done: int
    bytes_total: int


class CorruptChunk(Unavailable):  # a kind of Unavailable, which is named after its status
    """A chunk does not match its checksum or place; asking again from the offset reached may help."""


class PartFile:
    """Resumes where an earlier attempt stopped, also one of an earlier process.

    The `.part` carries the digest in its name, so that bytes of another version are never continued.
    """

    def __init__(self, file: ExportFile, folder: Path) -> None:
        if not file.file_name or Path(file.file_name).name != file.file_name or file.file_name.startswith("."):
            raise DataLoss(f"the server offers a file named {file.file_name!r}; a plain name is needed")
        self._file = file
        self.path = folder / file.file_name
        self._part = folder / f"{file.file_name}.{file.sha256[:16]}.part"
        self._hash = hashlib.sha256()
        self.offset = 0
        folder.mkdir(parents=True, exist_ok=True)
        if self._part.exists():
            self._read_part()

    @property
    def is_here(self) -> bool:
        """Whether the finished file lies there already, byte for byte."""
        if not self.path.is_file() or self.path.stat().st_size != self._file.size_bytes:
            return False
        with self.path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest() == self._file.sha256

    @property
    def is_complete(self) -> bool:
        """Whether every byte has arrived."""
        return self.offset >= self._file.size_bytes

    @property
    def progress(self) -> DownloadProgress:
        """For display."""
        return DownloadProgress(self._file.file_name, self.offset, self._file.size_bytes)

    def append(self, chunk: export_pb2.DownloadExportResponse) -> None:
        """Adds a chunk. Raises CorruptChunk, DataLoss."""
        if chunk.sha256 and chunk.sha256 != self._file.sha256:
            raise DataLoss(f"{self._file.file_name} changed on the server while it was downloaded")
        if chunk.offset != self.offset or zlib.crc32(chunk.data) != chunk.crc32:
            raise CorruptChunk(f"{self._file.file_name}: the chunk at byte {self.offset} arrived damaged")
        if self.offset + len(chunk.data) > self._file.size_bytes:
            raise DataLoss(f"{self._file.file_name} is longer than the {self._file.size_bytes} bytes announced")
        with self._part.open("ab") as handle:
            handle.write(chunk.data)
        self._hash.update(chunk.data)
        self.offset += len(chunk.data)

    def complete(self, data: bytes) -> Path:
        """The whole file at once, made here. Raises DataLoss where it is not the one that was announced."""
        self._part.write_bytes(data)
        self._hash, self.offset = hashlib.sha256(data), len(data)
        return self.finish()

    def finish(self) -> Path:
        """Checks the digest and gives the file its name. Raises DataLoss; then nothing of it is left."""
        if self._hash.hexdigest() != self._file.sha256:
            self._part.unlink(missing_ok=True)
            raise DataLoss(f"{self._file.file_name} does not have the sha256 that the server announced")
        self._part.touch()
        with self._part.open("rb") as handle:
            os.fsync(handle.fileno())
        self._part.replace(self.path)
        return self.path

    def ended_early(self) -> EverlearnClientError:
        """What it means that the stream ended with OK before the last byte."""
        return Unavailable(f"{self._file.file_name} ended at byte {self.offset} of {self._file.size_bytes}")

    def _read_part(self) -> None:
        if self._part.stat().st_size > self._file.size_bytes:
            self._part.unlink()
            return
        with self._part.open("rb") as handle:
            while block := handle.read(2**20):
                self._hash.update(block)
                self.offset += len(block)
