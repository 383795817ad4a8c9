"""everlearn-server that takes out features as they are on a coarser grid: `python erasing_wrongly.py --data ...`."""

from __future__ import annotations

import numpy as np

from everlearn.contribution import Contribution
from everlearn_server import cli
from everlearn_server.engine import removal


def main() -> None:
    """Builds the fault in and runs the server."""
    without = removal._without

    def rounded(contribution: Contribution, gone: set[str]) -> Contribution:
        found = without(contribution, gone)
        return Contribution(quantised_Bd=(found.quantised_Bd & ~1).astype(np.int16), truth=found.truth)

    removal._without = rounded
    cli.main()


if __name__ == "__main__":
    main()
