"""Keeps Python's cycle collector from stopping a server that answers, and from leaving raw data where it rests."""

from __future__ import annotations

import gc
from typing import Final

_YOUNG: Final = 10_000
"""Objects, made and not yet freed, after which the collector looks at them by itself. It is 700 as Python has it, which
a busy server makes 25 times a second; `collect_what_was_left` comes twice a second and looks at all."""


def freeze_what_stays() -> int:
    """Takes everything alive out of the collector's sight; returns how many objects that were.

    Libraries and models stay for ever, yet each full collection walks them all with the interpreter stopped, and now
    and then a request waits for that (`python -m tests.benchmarks head_swap` shows the slowest). What is frozen is
    still freed when nothing refers to it; only cycles among it are not. Call it once the process is up, before it takes
    requests.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG)
    return gc.get_freeze_count()


def collect_what_was_left() -> None:
    """Frees cycles now, for payloads may hang on them.

    The collector runs when objects are made, so in a server that has nothing more to do it never would. To be called
    every heartbeat; with `freeze_what_stays` before it, it takes a few milliseconds.
    """
    gc.collect()
