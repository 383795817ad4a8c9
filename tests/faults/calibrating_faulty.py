"""everlearn-server that is killed while it makes a trunk in 8 bits: `python calibrating_faulty.py FAULT --data ...`.

counted   SIGKILL once a third batch was counted
made      SIGKILL once the graph is made, before any of it is stored
stored    SIGKILL once it is stored, before the model names it
named     SIGKILL once the model names it
refuses   no fault: of these images no trunk can be made
durable   a broken server: what was only counted is called durable; killed as `made`
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from everlearn.errors import BackboneError
from everlearn.learners.calibration import Calibration
from everlearn_server import cli
from everlearn_server.engine import calibrations
from everlearn_server.engine.applier import Applier
from everlearn_server.engine.live_model import LiveModel


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def counted() -> None:
    """See the module's text."""
    left, integrate = 3, Calibration.integrate

    def killing(*args: Any, **named: Any) -> None:
        nonlocal left
        integrate(*args, **named)
        left -= 1
        if not left:
            _kill()

    Calibration.integrate = killing  # type: ignore[method-assign]


def made() -> None:
    """See the module's text."""
    make = calibrations.calibrated

    def killing(*args: Any) -> Any:
        make(*args)
        _kill()

    calibrations.calibrated = killing


def stored() -> None:
    """See the module's text."""
    put = Applier.put_trunk

    async def killing(self: Applier, name: str, *args: Any) -> None:
        await put(self, name, *args)
        if name.startswith("int8 of"):
            _kill()

    Applier.put_trunk = killing  # type: ignore[method-assign]


def named() -> None:
    """See the module's text."""
    update = LiveModel.update_row

    async def killing(self: LiveModel, **changes: Any) -> Any:
        row = await update(self, **changes)
        if set(changes) == {"trunk_digest"}:
            _kill()
        return row

    LiveModel.update_row = killing  # type: ignore[method-assign]


def refuses() -> None:
    """See the module's text."""

    def refusing(*_: Any) -> Any:
        raise BackboneError("in 8 bits the backbone's features are the same for every image", field="spec.int8_trunk")

    calibrations.calibrated = refusing


def durable() -> None:
    """See the module's text."""
    Calibration.holds_samples = False  # type: ignore[assignment,method-assign]
    made()


FAULTS: dict[str, Callable[[], None]] = {
    "counted": counted,
    "made": made,
    "stored": stored,
    "named": named,
    "refuses": refuses,
    "durable": durable,
}

if __name__ == "__main__":
    FAULTS[sys.argv.pop(1)]()
    cli.main()
