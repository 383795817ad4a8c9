"""Lines of standard input or of a file, one after the other, by a reader that a signal can end."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from everlearn_client.errors import InvalidArgument

STDIN: Final = Path("-")
MAX_LINE_BYTES: Final = 2**20
_CHUNK: Final = 2**16
_LOOK_S: Final = 0.25
"""Between two looks at whether it is to end, while nothing comes."""


@contextmanager
def opened(source: Path) -> Iterator[int]:
    """A descriptor of it; `-` is standard input. Raises InvalidArgument where it cannot be read."""
    if source == STDIN:
        yield 0
        return
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidArgument(f"{source} cannot be read: {error.strerror}", field="source") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def lines(descriptor: int, ended: Callable[[], bool]) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and bytes of each line that is not blank, as they come, until the end or `ended`.

    Raises InvalidArgument for a line that does not end.
    """
    rest, number = b"", 0
    while not ended():
        if not select.select([descriptor], [], [], _LOOK_S)[0]:
            continue
        chunk = os.read(descriptor, _CHUNK)
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise InvalidArgument(
                f"line {number + len(whole) + 1} has more than {MAX_LINE_BYTES} bytes", field="source"
            )
        for line in whole if chunk else [rest]:
            number += 1
            if ended():
                return
            if line.strip():
                yield number, line
        if not chunk:
            return
