"""Receipts of what was learned, in a file that its client keeps: with them, and only with them, it can be taken out.

Whoever loses the file cannot be taken out of a model exactly. The file holds nothing that anybody but the server that
sealed it can read. It only grows, survives a crash at any moment, and may hold receipts of several models and clients.

everlearn receipts 1\\n, then for each receipt: length (4 bytes), CRC-32 of what follows (4), JSON line, sealed bytes
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from everlearn_client.errors import InvalidArgument

MAGIC: Final = b"everlearn receipts 1\n"
_FRAME: Final = struct.Struct("<II")
_LONGEST: Final = 1 << 24


@dataclass(frozen=True)
class BatchReceipt:
    """Of one batch that is durable."""

    model: str
    """Without the collection."""
    client_id: str
    sequence: int
    samples: int
    sealed: bytes
    again: bool = False
    """Given when the batch was sent once more; the first one counts more."""


class ReceiptFile:
    """Appends receipts durably. One process at a time.

    >>> with ReceiptFile("receipts") as receipts:  # doctest: +SKIP
    ...     client.learn("digits", batches, receipts=receipts)
    """

    def __init__(self, path: str | Path) -> None:
        """Opens or begins the file; what a crash left half written at its end is cut off.

        Raises InvalidArgument for a file that is something else.
        """
        self.path = Path(path)
        self._held: dict[tuple[str, str], set[int]] = {}
        try:
            self._file: IO[bytes] = open(self.path, "r+b" if self.path.exists() else "x+b")  # noqa: SIM115  # until close
        except OSError as error:
            raise InvalidArgument(f"{self.path} cannot be opened: {error.strerror}", field="receipts") from None
        try:
            self._take_up()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file."""
        self._file.close()

    def holds(self, model: str, client_id: str, sequence: int) -> bool:
        """Whether there is a receipt of this batch."""
        return sequence in self._held.get((model, client_id), ())

    def append(self, receipts: Sequence[BatchReceipt]) -> None:
        """Writes some; on the disk when it returns. Raises InvalidArgument where that fails: then they are not."""
        if not receipts:
            return
        try:
            for receipt in receipts:
                told = {"model": receipt.model, "client": receipt.client_id, "sequence": receipt.sequence}
                told |= {"samples": receipt.samples, **({"again": True} if receipt.again else {})}
                body = json.dumps(told).encode() + b"\n" + receipt.sealed
                self._file.write(_FRAME.pack(len(body), zlib.crc32(body)) + body)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise InvalidArgument(f"{self.path} cannot be written: {error.strerror}", field="receipts") from None
        for receipt in receipts:
            self._held.setdefault((receipt.model, receipt.client_id), set()).add(receipt.sequence)

    def _take_up(self) -> None:
        end = len(MAGIC)
        if os.fstat(self._file.fileno()).st_size < end:
            self._file.write(MAGIC)
        else:
            for receipt, after in _records(self._file, self.path):
                self._held.setdefault((receipt.model, receipt.client_id), set()).add(receipt.sequence)
                end = after
        self._file.seek(end)
        self._file.truncate()
        self._file.flush()
        os.fsync(self._file.fileno())


def read_receipts(path: str | Path, *, model: str = "", client_id: str = "") -> Iterator[BatchReceipt]:
    """The receipts in a file, or those of a model and client; one that was half written at its end is left out.

    Raises InvalidArgument for a file that is something else, or damaged before its end.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115  # closed below, after the last one was taken
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}", field="receipts") from None
    with file:
        for receipt, _ in _records(file, Path(path)):
            if model in ("", receipt.model) and client_id in ("", receipt.client_id):
                yield receipt


def _records(file: IO[bytes], path: Path) -> Iterator[tuple[BatchReceipt, int]]:
    """Each with where it ends."""
    if file.read(len(MAGIC)) != MAGIC:
        raise InvalidArgument(f"{path} is no file of receipts", field="receipts")
    end = len(MAGIC)
    size = os.fstat(file.fileno()).st_size
    while len(frame := file.read(_FRAME.size)) == _FRAME.size:
        length, checksum = _FRAME.unpack(frame)
        body = file.read(length) if length <= _LONGEST else b""
        is_last = end + _FRAME.size + length >= size
        if len(body) < length or zlib.crc32(body) != checksum:
            if is_last:
                return  # a crash left it half written, and its batch was never taken for covered
            raise InvalidArgument(f"{path} is damaged at byte {end}; restore it from a copy", field="receipts")
        end += _FRAME.size + length
        line, _, sealed = body.partition(b"\n")
        told = json.loads(line)
        receipt = BatchReceipt(
            model=told["model"],
            client_id=told["client"],
            sequence=told["sequence"],
            samples=told["samples"],
            sealed=sealed,
            again=told.get("again", False),
        )
        yield receipt, end
