"""everlearn-server with faults of erasures that set weights back, and all of `faulty_server.py`: `python
rewinding_faulty.py FAULT[:ARGUMENT...][+FAULT...] --data ...`.

stop:QUESTION:N   SIGKILL before the N-th time that the trainer is asked: `forget_client`, `relearn`
late              a broken server: goes back to what knows the client
unasked           a broken server: operations are stored nowhere
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

_PAYLOAD = "sample_count", "digest", "content"


def stop(asked: str, times: str) -> None:
    from everlearn.learners.trainer import Trainer

    ask, left = Trainer._ask, int(times)

    def watched(self: Trainer, question: Any) -> Any:
        nonlocal left
        left -= question.told["ask"] == asked
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return ask(self, question)

    Trainer._ask = watched  # type: ignore[method-assign]


def late() -> None:
    from everlearn_server.store import moments

    def present(connection: Any, model: str, client: str) -> Any:
        memory = moments.memory.c
        found = moments.select(memory.commit_id, *(memory[name] for name in _PAYLOAD)).where(memory.model == model)
        return list(connection.execute(found))

    moments.before = present


def unasked() -> None:
    from everlearn_server.engine.operations import Operations

    async def nowhere(self: Operations, operation: Any) -> None:
        return

    Operations._save = nowhere  # type: ignore[method-assign]


def main() -> None:
    """Builds the faults in and runs the server."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.faults import faulty_server

    faulty_server.FAULTS |= {"stop": stop, "late": late, "unasked": unasked}
    faulty_server.main()


if __name__ == "__main__":
    main()
