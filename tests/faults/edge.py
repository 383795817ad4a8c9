"""One client in a process of its own, to be killed.

    python -m tests.faults.edge ADDRESS CLIENT BATCHES DEAF_FROM BACKBONE

Once batch DEAF_FROM is durable, it hears and sends no more; 0: it goes on to the end.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from tests import tiny
from tests.faults.learners import MODEL
from tests.faults.scene import stream

from everlearn_client import Client, Durable, LearnEvent


def main() -> None:
    """Its batches have numbers of their own: that is all it needs to be killed and to come back."""
    address, client_id, count, deaf_from, backbone = sys.argv[1:]

    def tell(event: LearnEvent) -> None:
        """What has become durable."""
        if isinstance(event, Durable):
            print(event.sequence, flush=True)
            if 0 < int(deaf_from) <= event.sequence:
                signal.pause()

    trunk = tiny.trunk_of(Path(backbone))
    batches, _ = stream(0, int(count), trunk)
    with Client(address, client_id=client_id) as client:
        client.learn(MODEL, batches, first_sequence=1, feature_digest=trunk.feature_digest, on_event=tell)


if __name__ == "__main__":
    main()
