"""One process a data folder: an advisory lock that the kernel drops when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from everlearn.errors import UnavailableError

NAME = "lock"


def is_held(folder: Path) -> bool:
    """Whether a server runs on a folder at this moment; changes nothing."""
    try:
        descriptor = os.open(folder / NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


class FolderLock:
    """Holds `folder/lock` from construction to `release`.

    Raises UnavailableError, naming the folder and the holder, if another server has it.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._descriptor)
            raise UnavailableError(
                f"the data folder {folder} is in use by another server (process {holder}); "
                "stop that one, or give this one a folder of its own"
            ) from error
        try:
            # For the message above only: the lock is the truth, the number may be stale.
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError:
            os.close(self._descriptor)
            raise

    def release(self) -> None:
        """Lets the next server in. The file stays: unlinking it would let two processes hold two different ones."""
        os.close(self._descriptor)
