"""What can never be delivered, kept aside for a person to look at, and bounded: the oldest give way.

Each is a file `{boot}-{number or offset}.letter`: a line of JSON that says why, then the bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from everlearn_client.edge.durable_files import replace_file


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """One of them."""

    name: str
    reason: str
    """Machine-readable, e.g. `INVALID_INPUT`, `CLIENT_SHARE`, or of the spool itself `ROT`, `STATE_LOST`."""
    message: str
    field: str = ""
    samples: int = 0
    payload: bytes = b""


class DeadLetters:
    """The folder of them."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        """Makes the folder. Raises OSError."""
        self._folder, self._max_bytes = folder, max_bytes
        folder.mkdir(mode=0o700, exist_ok=True)
        for torn in folder.glob("*.new"):
            torn.unlink(missing_ok=True)

    def put(self, letter: DeadLetter) -> int:
        """Keeps one, durably; the same name again is the same letter. Returns how many older ones gave way.

        One that is larger than all may be is kept without its bytes. Raises OSError.
        """
        told = {key: value for key, value in asdict(letter).items() if key not in ("name", "payload")}
        data = json.dumps(told).encode() + b"\n"
        if len(data) + len(letter.payload) <= self._max_bytes:
            data += letter.payload
        path = self._folder / f"{letter.name}.letter"
        if path.exists():
            return 0
        replace_file(path, data)
        return self._make_room(keep=path)

    def __iter__(self) -> Iterator[DeadLetter]:
        """Oldest first; those that cannot be read any more are left out."""
        for path in self._files():
            try:
                line, _, payload = path.read_bytes().partition(b"\n")
                yield DeadLetter(name=path.stem, payload=payload, **json.loads(line))
            except (OSError, ValueError, TypeError):
                continue

    def holds(self, name: str) -> bool:
        """Whether there is one of this name."""
        return (self._folder / f"{name}.letter").exists()

    def __len__(self) -> int:
        return len(self._files())

    @property
    def size_bytes(self) -> int:
        """Of all."""
        return sum(path.stat().st_size for path in self._files())

    def _make_room(self, *, keep: Path) -> int:
        files = self._files()
        sizes = {path: path.stat().st_size for path in files}
        over, gone = sum(sizes.values()) - self._max_bytes, 0
        for path in files:
            if over <= 0:
                break
            if path != keep:
                path.unlink(missing_ok=True)
                over -= sizes[path]
                gone += 1
        return gone

    def _files(self) -> list[Path]:
        # By name: boot and number are in it, padded, and times of files are as wrong as the clock was.
        return sorted(self._folder.glob("*.letter"))
