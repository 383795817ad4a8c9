"""A child that takes nothing from itself and says that it has: `python -m tests.faults.unconfined MODULE ...`."""

from __future__ import annotations

import resource
import runpy
import sys

from everlearn.runtime import hardening, process, sandbox


def main() -> None:
    """Runs the module in the place of the one that was meant."""
    resource.setrlimit = lambda kind, limits: None
    sandbox.confine = lambda *, open_files: sandbox.Walls(seccomp=True, landlock=6)
    hardening.forbid_dumps = lambda: True
    process.become_background_child = lambda niceness=10: None
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
