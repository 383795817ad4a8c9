"""`everlearn-server`: sets the process up, and then runs the command line."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from everlearn.runtime.hardening import forbid_dumps, use_private_temp, wipes, wiping

# Before NumPy and ONNX Runtime load: sums and heads use one thread each, so that solving never competes with the
# trunk workers for every core, and their results do not depend on how many cores there are.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
# Unless told, ONNX Runtime's builds report their use to Microsoft, and keep a database of it in the user's cache.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_UNHARDENED = "EVERLEARN_UNHARDENED"
_RESTARTED = "EVERLEARN_RESTARTED"
"""Set where the process has replaced itself: it does so once, whatever comes of it."""


def main() -> None:
    """Entry point; explains a missing extra instead of a traceback."""
    if not _is_unhardened():
        _harden()
    try:
        from everlearn_server.command import app
    except ModuleNotFoundError as error:
        sys.exit(f"everlearn-server needs the server extra ({error.name} is missing): pip install 'everlearn[server]'")
    app()


def _harden() -> None:
    """Begins the process anew with the environment that wipes its memory, unless it has it; then the rest."""
    if sys.platform == "linux" and not wipes(os.environ) and _RESTARTED not in os.environ:
        environment = {**os.environ, **wiping(os.environ), _RESTARTED: "1"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    os.environ.pop(_RESTARTED, None)
    os.umask(0o077)
    forbid_dumps()
    os.environ["TMPDIR"] = str(use_private_temp())
    with suppress(ModuleNotFoundError):  # explained below
        from everlearn.runtime.numpy_memory import keep_no_small_arrays

        keep_no_small_arrays()


def _is_unhardened() -> bool:
    """Before the command line is read: this decides what process reads it. `--unhardened=...` is no form of it."""
    said = os.environ.get(_UNHARDENED, "").lower()
    return "--unhardened" in sys.argv[1:] or said in ("1", "true", "yes", "on")


if __name__ == "__main__":
    main()
