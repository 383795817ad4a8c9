"""A file system in RAM that keeps two states: what programs see, and what a power cut would leave.

    python -m tests.faults.lossy_files MOUNTPOINT        steered by tests/faults/disk.py through standard input

A file's bytes survive once the file was synced, a name once its folder was; nothing else does, as POSIX promises no
more. A failed fsync drops what it should have kept, and the next one says that all is well: as Linux does (the
PostgreSQL fsync story, 2018), and why a server may never try an fsync again.

No `lock`: the kernel's own serves a single machine. Neither does the kernel cache anything (direct_io, no timeouts).
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import signal
import stat
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import mfusepy

CHANGES = ("create", "write", "truncate", "fsync", "rename", "unlink", "mkdir", "fsyncdir")
"""The storage calls that are counted, and may fail."""
BLOCK = 4096


class Node:
    """A file: bytes, and the changes since they were last synced. A folder: names, and the names that are synced."""

    def __init__(self, mode: int) -> None:
        self.mode = mode
        self.made_ns = time.time_ns()
        self.data, self.kept = bytearray(), bytearray()
        self.changes: list[tuple[int, bytes | None]] = []
        """Offset and bytes; a size and None for a truncation."""
        self.names: dict[str, Node] = {}
        self.kept_names: dict[str, Node] = {}

    @property
    def is_folder(self) -> bool:
        """Whether it has names instead of bytes."""
        return stat.S_ISDIR(self.mode)

    def sync(self) -> None:
        """What programs see is what is left from now on."""
        self._keep(self.changes)
        self.changes = []
        self.kept_names = dict(self.names)

    def settle(self) -> None:
        """All below it is synced."""
        self.sync()
        for node in self.names.values():
            node.settle()

    def cut(self, chance: random.Random, survives: float) -> None:
        """The power fails. Of what was not synced, each change survives by chance: a disk writes in its own order."""
        self._keep([change for change in self.changes if chance.random() < survives])
        self.changes = []
        self.data = bytearray(self.kept)
        for name in {*self.names, *self.kept_names}:
            if self.names.get(name) is not self.kept_names.get(name) and chance.random() < survives:
                _set(self.kept_names, name, self.names.get(name))
        self.names = dict(self.kept_names)
        for node in self.names.values():
            node.cut(chance, survives)

    def _keep(self, changes: list[tuple[int, bytes | None]]) -> None:
        for offset, data in changes:
            _change(self.kept, offset, data)


def _set(names: dict[str, Node], name: str, node: Node | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def _change(content: bytearray, offset: int, data: bytes | None) -> None:
    end = offset + len(data or b"")
    if len(content) < (offset if data is not None else end):
        content.extend(bytes(offset - len(content)))
    if data is None:
        del content[offset:]
    else:
        content[offset:end] = data


@dataclass
class Plan:
    """What shall go wrong."""

    nth: int = 0
    """The storage call that fails, counted from the plan's making; 0 for none."""
    call: str = ""
    """Counts such calls alone."""
    error: str = "EIO"
    """Of the n-th call; `cut` ends the power there."""
    lasting: bool = False
    """So do all after it."""
    pid: int = 0
    """Is killed at the n-th call, where it is a `cut`."""
    chances: dict[str, float] = field(default_factory=dict)
    """Call -> probability of EIO."""
    seed: int = 0
    limit_bytes: int = 1 << 40
    """Size of the disk."""


class LossyFiles(mfusepy.Operations):  # type: ignore[misc]  # untyped
    """One thread serves all."""

    use_ns = True

    def __init__(self) -> None:
        self.root = Node(stat.S_IFDIR | 0o755)
        self.opened: dict[int, Node] = {}
        self.handles = 0
        self.used = 0
        self.mutex = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.is_dead = False
        self.follow(Plan())

    # -- what the test says -----------------------------------------------------------------------------------------

    def follow(self, plan: Plan) -> None:
        """Another plan; counting begins anew."""
        self.plan, self.calls, self.failed, self.chance = plan, 0, 0, random.Random(plan.seed)

    def cut(self, survives: float, seed: int) -> None:
        """Power off and on again."""
        self.root.cut(random.Random(seed), survives)
        self.is_dead = False
        self.used = _size(self.root)
        self.follow(Plan(limit_bytes=self.plan.limit_bytes))

    def _change(self, call: str, grows: int = 0) -> None:
        """Counts a call. Raises what the plan has for it."""
        if self.is_dead:
            raise mfusepy.FuseOSError(errno.EIO)
        plan = self.plan
        self.counts[call] += 1
        counted = not plan.call or plan.call == call
        self.calls += counted
        due = counted and plan.nth and (self.calls == plan.nth or (plan.lasting and self.calls > plan.nth))
        if due and plan.error == "cut":
            self.is_dead = True
            os.kill(plan.pid, signal.SIGKILL)
        if due or self.chance.random() < plan.chances.get(call, 0.0):
            self.failed += 1
            raise mfusepy.FuseOSError(getattr(errno, plan.error, errno.EIO))
        if grows > 0 and self.used + grows > plan.limit_bytes:
            self.failed += 1
            raise mfusepy.FuseOSError(errno.ENOSPC)
        self.used += grows

    # -- what the kernel asks ---------------------------------------------------------------------------------------

    def _find(self, path: str) -> Node:
        node = self.root
        for name in path.split("/"):
            if name:
                node = node.names.get(name)  # type: ignore[assignment]  # None is raised below
                if node is None:
                    raise mfusepy.FuseOSError(errno.ENOENT)
        return node

    def _place(self, path: str) -> tuple[Node, str]:
        folder, _, name = path.rpartition("/")
        return self._find(folder), name

    def _handle(self, node: Node) -> int:
        self.handles += 1
        self.opened[self.handles] = node
        return self.handles

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        with self.mutex:
            node = self.opened.get(fh or 0) or self._find(path)
            size = len(node.data)
            times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), node.made_ns)
            return {"st_mode": node.mode, "st_nlink": 1, "st_size": size, "st_blocks": -(-size // 512), **times}

    def readdir(self, path: str, fh: int) -> list[str]:
        with self.mutex:
            return [".", "..", *self._find(path).names]

    def opendir(self, path: str) -> int:
        with self.mutex:
            return self._handle(self._find(path))

    def open(self, path: str, flags: int) -> int:
        with self.mutex:
            return self._handle(self._find(path))

    def release(self, path: str, fh: int) -> int:
        with self.mutex:
            self.opened.pop(fh, None)
        return 0

    releasedir = release

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        with self.mutex:
            return bytes(self.opened[fh].data[offset : offset + size])

    def statfs(self, path: str) -> dict[str, int]:
        with self.mutex:
            free = max(0, self.plan.limit_bytes - self.used) // BLOCK
        sizes = {"f_bsize": BLOCK, "f_frsize": BLOCK, "f_blocks": self.plan.limit_bytes // BLOCK, "f_namemax": 255}
        return {**sizes, "f_bfree": free, "f_bavail": free}

    def mkdir(self, path: str, mode: int) -> int:
        with self.mutex:
            self._change("mkdir")
            folder, name = self._place(path)
            folder.names[name] = Node(stat.S_IFDIR | mode)
        return 0

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        with self.mutex:
            self._change("create")
            folder, name = self._place(path)
            folder.names[name] = Node(stat.S_IFREG | mode)
            return self._handle(folder.names[name])

    def mknod(self, path: str, mode: int, dev: int) -> int:
        with self.mutex:
            self._change("create")
            folder, name = self._place(path)
            folder.names[name] = Node(mode)  # a socket
        return 0

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        with self.mutex:
            node = self.opened[fh]
            self._change("write", grows=max(0, offset + len(data) - len(node.data)))
            node.changes.append((offset, data))
            _change(node.data, offset, data)
        return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        with self.mutex:
            node = self.opened.get(fh or 0) or self._find(path)
            self._change("truncate", grows=length - len(node.data))
            node.changes.append((length, None))
            _change(node.data, length, None)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        with self.mutex:
            node = self.opened[fh]
            try:
                self._change("fsyncdir" if node.is_folder else "fsync")
            except OSError:
                if not self.is_dead:
                    node.changes = []  # lost, and the next fsync will not say so
                raise
            node.sync()
        return 0

    fsyncdir = fsync

    def rename(self, old: str, new: str) -> int:
        with self.mutex:
            self._change("rename")
            folder, name = self._place(old)
            target, new_name = self._place(new)
            target.names[new_name] = folder.names.pop(name)
        return 0

    def unlink(self, path: str) -> int:
        with self.mutex:
            self._change("unlink")
            folder, name = self._place(path)
            self.used -= len(folder.names.pop(name).data)
        return 0

    def rmdir(self, path: str) -> int:
        return self.unlink(path)

    def chmod(self, path: str, mode: int) -> int:
        with self.mutex:
            node = self._find(path)
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        return 0

    def utimens(self, path: str, times: Any = None) -> int:
        return 0


def _size(node: Node) -> int:
    return len(node.data) + sum(_size(inner) for inner in node.names.values())


def obey(files: LossyFiles) -> None:
    """Answers a line of JSON for each on standard input; ends the process with it."""
    for line in sys.stdin:
        told = json.loads(line)
        with files.mutex:
            match told.pop("do"):
                case "plan":
                    files.follow(Plan(**told))
                case "settle":
                    files.root.settle()
                case "cut":
                    files.cut(**told)
            found = {"calls": files.calls, "failed": files.failed, "counts": files.counts, "used": files.used}
        print(json.dumps(found), flush=True)
    os._exit(0)


def main() -> None:
    """Mounts, and serves until it is unmounted."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: libfuse unmounts on SIGTERM
    files = LossyFiles()
    threading.Thread(target=obey, args=(files,), daemon=True).start()
    options = {"direct_io": True, "attr_timeout": 0, "entry_timeout": 0, "negative_timeout": 0, "hard_remove": True}
    mfusepy.FUSE(files, sys.argv[1], foreground=True, nothreads=True, **options)


if __name__ == "__main__":
    main()
