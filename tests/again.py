"""Runs once more what failed, alone and without neighbours: `python -m tests.again`, after a run of all tests.

Tests start servers, kill processes and wait for them on whatever machine there is. What fails beside others on a loaded
one and passes by itself is told in the last lines, to be looked into; it does not hold a change up. What looks for
something that must never happen is not asked twice: once is enough.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

FAILED = Path(".pytest_cache/v/cache/lastfailed")
MOST = 4
"""More than these are no accident."""
ONCE_IS_ENOUGH = ("tests/faults/test_no_raw_data.py", "tests/faults/test_kills.py", "tests/properties/")
"""Raw data found, a batch lost or counted twice, mathematics that does not hold."""


def refusal(failed: Collection[str]) -> str:
    """Why these are not run again; empty where they are."""
    if not failed:
        return "nothing is on record that failed: the run was broken off, or could not begin"
    if len(failed) > MOST:
        return f"{len(failed)} failed, and more than {MOST} are no accident"
    never = [test for test in failed if test.startswith(ONCE_IS_ENOUGH)]
    return f"once is enough for {', '.join(never)}" if never else ""


def main(arguments: Sequence[str] = ()) -> int:
    """The exit code: 0 where all that failed passes now. `arguments` are pytest's."""
    failed = list(json.loads(FAILED.read_text())) if FAILED.exists() else []
    if why := refusal(failed):
        print(f"==> not run again: {why}")
        return 1
    print("==> once more, alone:", *failed, sep="\n    ")
    # Whole files: tests of a file may go on from what the ones before them taught their server.
    files = sorted({test.partition("::")[0] for test in failed})
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments, *files]
    code = subprocess.run(command, check=False).returncode
    print(f"==> {'passed alone, to be looked into' if code == 0 else 'failed again'}:", *failed, sep="\n    ")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
