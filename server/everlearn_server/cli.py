"""`everlearn-server`: runs the service."""

from __future__ import annotations

import os
import sys

# Before NumPy and ONNX Runtime load: sums and heads use one thread each, so that solving never competes with the
# trunk workers for every core, and their results do not depend on how many cores there are.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")


def main() -> None:
    """Entry point; explains a missing extra instead of a traceback."""
    try:
        from everlearn_server.command import app
    except ModuleNotFoundError as error:
        sys.exit(f"everlearn-server needs the server extra ({error.name} is missing): pip install 'everlearn[server]'")
    app()


if __name__ == "__main__":
    main()
