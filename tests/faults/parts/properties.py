"""The properties of tests/properties, tests/unit and tests/contracts on other examples than a commit's: by chance.

A commit's tests take the same examples each time (tests/conftest.py); what those miss is looked for here.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[3]
SHORT: Mapping[str, int] = {"seeds": 1}
LONG: Mapping[str, int] = {"seeds": 30}
_PASSED = re.compile(r"(\d+) passed")


def run(folder: Path, *, seeds: int) -> Mapping[str, object]:
    """Every test with examples, once for each seed; a failure tells its seed and its example."""
    files = sorted(
        str(path)
        for name in ("properties", "unit", "contracts")
        for path in (ROOT / "tests" / name).glob("test_*.py")
        if "@given" in path.read_text()
    )
    passed = 0
    for seed in range(1, seeds + 1):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--hypothesis-profile", "explore"]
        command += ["--hypothesis-seed", str(seed), "--basetemp", str(folder / "tests"), *files]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"seed {seed}:\n{done.stdout[-6000:]}"
        found = _PASSED.search(done.stdout)
        passed += int(found[1]) if found else 0
    return {"seeds": seeds, "files": len(files), "tests passed": passed}
