"""everlearn-server that writes clients' own sums in a transaction of their own, and is killed before the N-th: `python
own_sums_late.py N --data ...`."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from everlearn_server import cli
from everlearn_server.store import client_sums


def main() -> None:
    """Builds the fault in and runs the server."""
    left, put = int(sys.argv.pop(1)), client_sums.put

    def late(connection: Any, model: str, rows: Any) -> set[str]:
        nonlocal left
        left -= 1
        if not left:
            connection.commit()
            os.kill(os.getpid(), signal.SIGKILL)
        return put(connection, model, rows)

    client_sums.put = late
    cli.main()


if __name__ == "__main__":
    main()
