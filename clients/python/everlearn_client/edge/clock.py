"""Time that a device can rely on: seconds since it was switched on, and which switching-on that was.

A wall clock may say 1970 until it has met a time server, and jump by decades then; nothing here reads one.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_PROCESS: Final = uuid.uuid4().hex


@dataclass(frozen=True)
class Uptime:
    """A moment: comparable with another of the same boot, and with none of another boot."""

    boot_id: str
    seconds: float
    """Since that boot, time asleep included."""


UptimeClock = Callable[[], Uptime]


def uptime() -> Uptime:
    """Now, by the kernel. Where it names no boot, this process counts as one."""
    try:
        return Uptime(_BOOT_ID.read_text().strip(), time.clock_gettime(time.CLOCK_BOOTTIME))
    except (OSError, AttributeError):
        return Uptime(_PROCESS, time.monotonic())


class AgeClock:
    """Seconds that never run backwards, over restarts and reboots.

    Time in which the device was off is unknown and not counted: what has an age limit is kept too long rather than
    dropped too soon.
    """

    def __init__(self, now: UptimeClock, *, boot_id: str = "", at_s: float = 0.0, age_s: float = 0.0) -> None:
        """Goes on from `age_s`, which was told at uptime `at_s` of boot `boot_id`."""
        self._now = now
        begun = now()
        slept_s = max(0.0, begun.seconds - at_s) if begun.boot_id == boot_id else 0.0
        self._begun_s, self._age_s = begun.seconds, age_s + slept_s
        self.boot_id = begun.boot_id

    def seconds(self) -> float:
        """Age of the spool, by the device's own time."""
        return self._age_s + max(0.0, self._now().seconds - self._begun_s)

    def told(self) -> tuple[str, float, float]:
        """Boot, uptime and age, to go on from."""
        return self.boot_id, self._now().seconds, self.seconds()

    def not_before(self, age_s: float) -> None:
        """Moves on where something is known to be later."""
        self._age_s += max(0.0, age_s - self.seconds())
