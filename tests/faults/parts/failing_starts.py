"""F8: the n-th storage call of a server's very first start fails: what it leaves does not stop the next one."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from tests.faults.disk import Disk
from tests.store_rows import Fatal, wait

from everlearn.errors import DataLossError, UnavailableError
from everlearn_server.store.store import Store

SHORT: Mapping[str, int] = {"step": 10}
LONG: Mapping[str, int] = {"step": 1}


def run(folder: Path, *, step: int) -> Mapping[str, object]:
    """The store alone, in this process. After every other failure the power fails, too."""
    failed = last = 0
    with Disk(folder / "disk") as disk:
        for turn, error in enumerate(("EIO", "ENOSPC")):
            nth = 1 + turn * step // 2
            while True:
                place = disk.folder / f"{error}-{nth}"
                disk.plan(nth=nth, error=error)
                # A line for whoever started it; a first start that fails later on has failed in its own way.
                with contextlib.suppress(UnavailableError, DataLossError):
                    Store.open(place, on_fatal=Fatal()).close()
                if not disk.told().failed:
                    break
                if nth // step % 2:
                    disk.cut()
                disk.plan()
                with Store.open(place) as store:
                    assert wait(store.catalog.models()) == (), f"{error} at call {nth}"
                failed, last, nth = failed + 1, max(last, nth), nth + step
    return {"failed calls": failed, "calls of a first start": last}
