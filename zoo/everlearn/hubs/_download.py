"""Downloads one file so that a kill, a cut or a flipped bit costs time and never a wrong file.

The bytes grow in `ETAG.part` under a lock; they become `ETAG` by a rename after their digest was checked and the disk
has them. Whoever comes after a kill goes on where the part ends. The hub's own client (2.4) does neither.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

from everlearn.errors import IntegrityError, PreconditionError, UnavailableError
from everlearn.hubs._digests import CHUNK_BYTES, Digests, digests_of
from everlearn.hubs._hf_api import Entry
from everlearn.hubs._hf_http import PAUSES_S, Reply

logger = logging.getLogger(__name__)

OpenAt = Callable[[int], AbstractContextManager[Reply]]
"""Opens the file at an offset."""
Report = Callable[[int], None]
"""Told how many bytes of the file are here."""

MAX_TRIES = 100
"""However little each of them brings."""
SPARE_BYTES = 64 * 2**20
"""Left free on the disk."""
FIELD = "spec.backbone.file"


def download(entry: Entry, blob: Path, open_at: OpenAt, report: Report) -> None:
    """Leaves the verified content at `blob`, in place of whatever is there.

    Raises IntegrityError (and deletes the part) for bytes that are not the listed ones, UnavailableError (and keeps
    the part) where the hub stops answering, PreconditionError with reason DISK_FULL.
    """
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(f"{blob.name}.part")
    with _locked(part) as stream:
        if blob.is_file() and entry.fits(digests_of(blob)):
            # Another process finished it while this one waited for the lock.
            part.unlink()
            return
        try:
            missing_bytes = entry.size_bytes - part.stat().st_size
            if shutil.disk_usage(blob.parent).free < missing_bytes + SPARE_BYTES:
                raise _disk_full(entry)
            _complete(entry, stream, open_at, report)
        except IntegrityError:
            part.unlink()
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _disk_full(entry) from None
        stream.flush()
        os.fsync(stream.fileno())
        part.replace(blob)
        _sync_folder(blob.parent)


@contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    """The part file, held by this process alone; the kernel lets go of the lock when a process dies."""
    while True:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            try:
                ours = os.path.samestat(os.fstat(stream.fileno()), part.stat())
            except FileNotFoundError:
                ours = False
            if not ours:
                # The holder before us renamed or deleted the file that this lock is on.
                continue
            yield stream
            return


def _complete(entry: Entry, stream: BinaryIO, open_at: OpenAt, report: Report) -> None:
    resumed = _fill(entry, stream, open_at, report)
    if not _is_right(entry, stream):
        if resumed:
            # What an earlier process left may be bad (a power cut leaves holes), so the hub gets one clean chance.
            logger.warning("a resumed download was wrong, starting again: %s", entry.name)
            stream.truncate(0)
            _fill(entry, stream, open_at, report)
            if _is_right(entry, stream):
                return
        raise IntegrityError(
            f"the bytes of {entry.name!r} are not the ones that the commit pins ({entry.etag}); try again, and if it "
            "stays so, the hub or the way to it alters files",
            field=FIELD,
        )


def _fill(entry: Entry, stream: BinaryIO, open_at: OpenAt, report: Report) -> bool:
    """Brings the part to its full size; true if it began with bytes of an earlier process."""
    offset = stream.seek(0, os.SEEK_END)
    if offset > entry.size_bytes:
        offset = _rewind(stream)
    resumed = offset > 0
    barren = 0
    for _ in range(MAX_TRIES):
        if offset == entry.size_bytes:
            return resumed
        before = offset
        try:
            with open_at(offset) as reply:
                offset = _receive(entry, stream, reply, offset, report)
            failure = UnavailableError(f"the hub sends only part of {entry.name!r}", field=FIELD)
        except UnavailableError as error:
            failure = error
            offset = stream.seek(0, os.SEEK_END)
        if offset == entry.size_bytes:
            return resumed
        barren = 0 if offset > before else barren + 1
        if barren > len(PAUSES_S):
            raise failure
        time.sleep(PAUSES_S[max(barren - 1, 0)])
    raise UnavailableError(f"the hub cuts {entry.name!r} off again and again; try again later", field=FIELD)


def _receive(entry: Entry, stream: BinaryIO, reply: Reply, offset: int, report: Report) -> int:
    start, total = _span(reply)
    if total is not None and total != entry.size_bytes:
        raise IntegrityError(
            f"{entry.name!r} has {total} bytes at the hub, and {entry.size_bytes} are listed for the commit",
            field=FIELD,
        )
    if start != offset:
        # The hub ignored the range, or gave another one: only a whole file is certain.
        if start != 0:
            raise UnavailableError(f"the hub answers another range of {entry.name!r} than was asked for", field=FIELD)
        offset = _rewind(stream)
    for chunk in reply.chunks:
        if offset + len(chunk) > entry.size_bytes:
            raise IntegrityError(f"the hub sends more of {entry.name!r} than the commit lists", field=FIELD)
        stream.write(chunk)
        offset += len(chunk)
        report(offset)
    stream.flush()
    return offset


def _span(reply: Reply) -> tuple[int, int | None]:
    """First byte of an answer and size of the whole file (RFC 9110, 14.4 and 15.3.7)."""
    if reply.status != 206:
        length = reply.headers.get("content-length", "")
        return 0, int(length) if length.isdecimal() else None
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", reply.headers.get("content-range", ""))
    if not found:
        return -1, None
    return int(found[1]), None if found[2] == "*" else int(found[2])


def _is_right(entry: Entry, stream: BinaryIO) -> bool:
    # From the disk's view, not from what passed by: it also covers what an earlier process wrote.
    stream.seek(0)
    digests = Digests(entry.size_bytes)
    while chunk := stream.read(CHUNK_BYTES):
        digests.update(chunk)
    return entry.fits(digests)


def _rewind(stream: BinaryIO) -> int:
    stream.seek(0)
    stream.truncate()
    return 0


def _disk_full(entry: Entry) -> PreconditionError:
    return PreconditionError(
        f"the cache's disk has no room for {entry.name!r} ({entry.size_bytes} bytes); free some, or choose another "
        "cache folder",
        field=FIELD,
        reason="DISK_FULL",
    )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
