"""zstd frames whose size is known before they are opened."""

from __future__ import annotations

import zstandard

from everlearn_protos.delta._errors import DeltaError

MAX_WINDOW = 2**23
"""Bytes that a frame may reach back: what zstd uses up to level 19."""
LEAST_DICTIONARY = 8
"""Bytes; zstd takes no notice of a smaller one."""


def compressed(data: bytes, level: int, dictionary: bytes = b"") -> bytes:
    """One frame, which says how much it holds. `dictionary`: bytes that `data` resembles."""
    return zstandard.ZstdCompressor(level=level, dict_data=_raw(dictionary), write_dict_id=False).compress(data)


def decompressed(frame: bytes | memoryview, size: int, dictionary: bytes = b"") -> bytes:
    """Exactly `size` bytes. Raises DeltaError where the frame holds anything else: unopened, where it says so."""
    try:
        # It is the frame's own word that decides how much memory is taken, whatever limit one gives.
        if zstandard.frame_content_size(frame) != size:
            raise DeltaError(f"a stream does not hold the {size} bytes that belong there")
        opener = zstandard.ZstdDecompressor(dict_data=_raw(dictionary), max_window_size=MAX_WINDOW)
        data = opener.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DeltaError(f"a stream is damaged: {error}") from error
    if len(data) != size:
        raise DeltaError(f"a stream ends after {len(data)} bytes of {size}")
    return data


def _raw(dictionary: bytes) -> zstandard.ZstdCompressionDict | None:
    if len(dictionary) < LEAST_DICTIONARY:
        return None
    return zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
