"""everlearn-server whose half-closed streams wait half a second for samples of others, for tests of what comes then."""

from __future__ import annotations

from everlearn_server import cli
from everlearn_server.engine import learning

if __name__ == "__main__":
    learning.GRACE_S = 0.5
    cli.main()
