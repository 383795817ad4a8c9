"""everlearn-server by whose clock late labels go has a hand that tests move: seconds in a file, CLOCK in the
environment, are added to it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from everlearn_server import cli
from everlearn_server.engine import waiting_room

if __name__ == "__main__":
    hand = Path(os.environ["CLOCK"])
    waiting_room.clock = lambda: time.monotonic() + float(hand.read_text())
    cli.main()
