"""The `everlearn` command. Needs the extra `cli`; the library does not."""

from __future__ import annotations

import os
import sys

EXTRA = ("rich", "typer", "yaml")


def main() -> None:
    """Runs the command, or says which extra is missing."""
    try:
        from everlearn_client.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        sys.stderr.write(
            f"error: the everlearn command needs {error.name}, which is not installed: pip install 'everlearn[cli]'\n"
        )
        sys.exit(3)
    # gRPC's own log would write a lost connection into the display, in its words; the command says it in ours.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    app()
