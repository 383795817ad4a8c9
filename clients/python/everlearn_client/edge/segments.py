"""The spool's files: each holds the records of a stretch of time, only grows, and is deleted as a whole.

`{number of the first record}-{boot}-{salt}.log`, hexadecimal. All that a reader needs besides the records is in the
name, so that there is no header that could be torn.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self

from everlearn_client.edge.durable_files import private, sync_folder
from everlearn_client.edge.frames import FRAME_BYTES, Damage, Entry, body_at, framed, payload_of, scan

_NAME = re.compile(r"([0-9a-f]{12})-([0-9a-f]{8})-([0-9a-f]{8})\.log")


class Segment:
    """One file, and what is known of its records."""

    def __init__(self, path: Path, *, first: int, boot: int, salt: int) -> None:
        self.path, self.first, self.boot, self.salt = path, first, boot, salt
        self.entries: dict[int, Entry] = {}
        """By number, in order: those that still matter."""
        self.size_bytes = 0
        self._file: IO[bytes] | None = None

    @classmethod
    def begin(cls, folder: Path, *, first: int, boot: int) -> Self:
        """A new file for records from `first` on; durable when this returns. Raises OSError."""
        salt = secrets.randbits(32)
        path = folder / f"{first:012x}-{boot:08x}-{salt:08x}.log"
        segment = cls(path, first=first, boot=boot, salt=salt)
        # Unbuffered: a byte that was refused (disk full) must not come back at the next flush.
        segment._file = open(path, "xb", buffering=0, opener=private)  # noqa: SIM115  # until close
        sync_folder(folder)
        return segment

    @classmethod
    def all_in(cls, folder: Path) -> Iterator[Self]:
        """Those of earlier openings, oldest first, still unread."""
        for path in sorted(folder.glob("*.log")):
            named = _NAME.fullmatch(path.name)
            if named:
                first, boot, salt = (int(part, 16) for part in named.groups())
                yield cls(path, first=first, boot=boot, salt=salt)

    def load(self) -> list[tuple[Damage, bytes]]:
        """Reads it all; returns what in it is no record. Raises OSError."""
        data = self.path.read_bytes()
        self.size_bytes = len(data)
        damages: list[tuple[Damage, bytes]] = []
        for found in scan(data, boot=self.boot, salt=self.salt):
            if isinstance(found, Damage):
                damages.append((found, data[found.offset : found.end]))
            else:
                self.entries[found.number] = found
        return damages

    def append(self, entry_of: Entry, body: bytes, *, sync: bool) -> None:
        """Adds a record; on the disk when this returns, with `sync`. Raises OSError: then it is not in the file."""
        assert self._file is not None, "sealed"
        data = framed(body, self.salt)
        try:
            written = 0
            while written < len(data):
                written += self._file.write(data[written:])
            if sync:
                os.fsync(self._file.fileno())
        except OSError:
            self._take_back()
            raise
        self.size_bytes += len(data)
        self.entries[entry_of.number] = entry_of

    def sync(self) -> None:
        """What was appended is on the disk. Raises OSError."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def payload(self, number: int) -> bytes | None:
        """What a record carries; None where it has rotted or is gone."""
        entry = self.entries[number]
        try:
            with self.path.open("rb") as file:
                file.seek(entry.offset)
                body = body_at(file.read(entry.size_bytes), 0, self.salt)
        except OSError:
            return None
        return None if body is None else payload_of(body)

    @property
    def is_sealed(self) -> bool:
        """Whether nothing more may be appended."""
        return self._file is None

    def delete(self) -> None:
        """The file is gone."""
        self.seal()
        self.path.unlink(missing_ok=True)

    def seal(self) -> None:
        """Nothing more is appended."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _take_back(self) -> None:
        """Half a record is cut off again; where even that fails, the next reader skips it."""
        assert self._file is not None
        try:
            os.ftruncate(self._file.fileno(), self.size_bytes)
            self._file.seek(self.size_bytes)
        except OSError:
            pass
        # After a failed fsync nobody knows what is on the disk: what comes next goes to another file.
        self.seal()


def size_of(body: bytes) -> int:
    """Bytes that a record takes."""
    return FRAME_BYTES + len(body)
