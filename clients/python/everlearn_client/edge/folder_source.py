"""Files that appear in a folder, as a camera writes them: each is given once, and only when it is whole.

By looking, not by being told: a folder may be a network's or a card's, where the kernel tells nothing. No clock of the
device is trusted: times of files are compared with themselves alone, to see that nothing writes any more.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from everlearn_client.edge.durable_files import private, replace_file
from everlearn_client.edge.pictures import SUFFIXES
from everlearn_client.errors import InvalidArgument

After = Literal["move", "delete", "leave"]
"""What becomes of a file that was read."""
Labels = Literal["none", "folder", "sidecar"]
"""Where a file's label stands: nowhere, in the name of its top folder, or in a file `{name}.label` beside it."""
DONE: Final = "done"
FAILED: Final = "failed"
SIDECAR: Final = ".label"
_COMPACT_FROM: Final = 1_000
_Print = tuple[int, int, int]
"""Bytes, time of the last change in ns, inode: another one is another file, or one that is still being written."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A whole file."""

    path: Path
    name: str
    """Its path within the source, with `/`."""
    print: _Print

    @property
    def sidecar(self) -> Path:
        """Where its label may stand."""
        return self.path.with_name(self.path.name + SIDECAR)


class FolderSource:
    """One folder and what is below it; names that begin with a dot, and links, are not looked at."""

    def __init__(
        self,
        folder: Path,
        *,
        after: After = "move",
        labels: Labels = "none",
        settle_s: float = 1.0,
        journal: Path | None = None,
        suffixes: Callable[[], Collection[str]] = lambda: SUFFIXES,
        clock_s: Callable[[], float],
    ) -> None:
        """`settle_s`: a file that has not changed for so long is whole; 0 where each is written under a name with a dot
        before it, or elsewhere on the same disk, and then renamed. `journal`: remembers over restarts what was read,
        where files are left. `suffixes`: of files that are given, in lower case; asked for with each look.

        Raises InvalidArgument for a folder that is none."""
        if not folder.is_dir():
            raise InvalidArgument(f"{folder} is no folder", field="source")
        self._folder, self._after, self._labels = folder, after, labels
        self._settle_s, self._clock_s, self._suffixes = settle_s, clock_s, suffixes
        self._waiting: dict[str, tuple[_Print, float]] = {}
        """By name: what it looked like, and since when."""
        self._journal = journal if after == "leave" else None
        self._read = _read_journal(self._journal)
        self._journal_lines = len(self._read)

    def whole(self) -> list[Found]:
        """Files that are complete and were not read yet, by name. Raises OSError where the folder cannot be read."""
        now_s, waiting, found = self._clock_s(), dict[str, tuple[_Print, float]](), list[Found]()
        seen = {each.name: each for each in _files(self._folder, "", self._reserved, self._suffixes())}
        self._forget_gone(seen.keys())
        for name, each in seen.items():
            if self._read.get(name) == each.print:
                continue
            before = self._waiting.get(name)
            since_s = before[1] if before is not None and before[0] == each.print else now_s
            waiting[name] = each.print, since_s
            if now_s - since_s >= self._settle_s:
                found.append(each)
        self._waiting = waiting
        return sorted(found, key=lambda each: each.name)

    @property
    def settling(self) -> bool:
        """Whether something was seen that has not been read, be it incomplete yet or just given."""
        return bool(self._waiting)

    def label_of(self, found: Found) -> list[str] | None:
        """Lines of its label; None where it has none. Raises InvalidArgument for one that is no text, OSError."""
        if self._labels == "folder":
            top, inside, _ = found.name.partition("/")
            return [top] if inside else None
        if self._labels == "none" or not found.sidecar.is_file():
            return None
        try:
            return [line.strip() for line in found.sidecar.read_text(encoding="utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError:
            raise InvalidArgument(f"{found.name}{SIDECAR} is not UTF-8 text", field="label") from None

    def done(self, found: Found, *, failed: bool = False) -> None:
        """It was read, or cannot be: does with it what was declared. It is not given again even where this raises
        OSError."""
        self._waiting.pop(found.name, None)
        self._read[found.name] = found.print
        self._note(found)
        for path in (found.path, found.sidecar):
            if self._after == "leave" or (path != found.path and (self._labels != "sidecar" or not path.exists())):
                continue
            if self._after == "delete":
                path.unlink(missing_ok=True)
            else:
                _move(path, self._folder / (FAILED if failed else DONE) / Path(found.name).parent)

    @property
    def _reserved(self) -> tuple[str, ...]:
        return (DONE, FAILED) if self._after == "move" else ()

    def _forget_gone(self, there: Collection[str]) -> None:
        """A name that is free again may come again."""
        for name in [name for name in self._read if name not in there]:
            del self._read[name]

    def _note(self, found: Found) -> None:
        if self._journal is None:
            return
        self._journal_lines += 1
        if self._journal_lines > _COMPACT_FROM + 2 * len(self._read):  # most of it is about files that are gone
            self._journal_lines = _write_journal(self._journal, self._read)
        else:
            _add_to_journal(self._journal, found)


def _files(folder: Path, above: str, reserved: tuple[str, ...], suffixes: Collection[str]) -> Iterator[Found]:
    try:
        listed = os.scandir(folder)
    except FileNotFoundError:
        if not above:
            raise
        return  # a folder that is gone since it was listed
    with listed as entries:
        for entry in entries:
            name = above + entry.name
            if entry.name.startswith(".") or name in reserved:
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path), f"{name}/", (), suffixes)
            elif entry.is_file(follow_symlinks=False) and Path(entry.name).suffix.lower() in suffixes:
                try:
                    told = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # gone since it was listed
                    continue
                yield Found(path=Path(entry.path), name=name, print=(told.st_size, told.st_mtime_ns, told.st_ino))


def _move(path: Path, folder: Path) -> None:
    """A file that is there already is not overwritten: cameras use names again."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / path.name
    if target.exists():
        target = folder / f"{path.stem}.{uuid.uuid4().hex[:12]}{path.suffix}"
    shutil.move(path, target)


def _read_journal(journal: Path | None) -> dict[str, _Print]:
    """A torn last line is none: its file is read again."""
    read: dict[str, _Print] = {}
    if journal is None or not journal.exists():
        return read
    for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            name, size, time_ns, inode = json.loads(line)
            read[str(name)] = int(size), int(time_ns), int(inode)
        except (ValueError, TypeError):
            continue
    _write_journal(journal, read)  # or the next line would be torn with the last
    return read


def _write_journal(journal: Path, read: dict[str, _Print]) -> int:
    lines = [json.dumps([name, *print]) + "\n" for name, print in read.items()]
    replace_file(journal, "".join(lines).encode())
    return len(lines)


def _add_to_journal(journal: Path, found: Found) -> None:
    with open(journal, "ab", opener=private) as file:
        file.write(json.dumps([found.name, *found.print]).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
