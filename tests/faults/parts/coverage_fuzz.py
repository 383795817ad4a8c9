"""Bytes that reach new code of ours, found by libFuzzer, end in a refusal or are taken: never in another exception."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.faults.coverage_fuzz import TARGETS
from tests.faults.not_here import NotHereError

SHORT: Mapping[str, int] = {"seconds": 10}
LONG: Mapping[str, int] = {"seconds": 600}
LATE_S = 30
"""For one input; honest ones take microseconds."""
MAX_MIB = 2048


def run(folder: Path, *, seconds: int) -> Mapping[str, object]:
    """So long in all, in equal parts a target."""
    if importlib.util.find_spec("atheris") is None:
        raise NotHereError("atheris is not installed (`pip install atheris`; Linux, Python 3.11 to 3.13)")
    counts: dict[str, object] = {}
    for name in TARGETS:
        corpus = folder / name
        corpus.mkdir()
        limits = [f"-max_total_time={seconds // len(TARGETS)}", f"-timeout={LATE_S}", f"-rss_limit_mb={MAX_MIB}"]
        command = [sys.executable, "-m", "tests.faults.coverage_fuzz", name, str(corpus), *limits, "-seed=20261122"]
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        assert ended.returncode == 0, f"{name}: {ended.stdout[-1500:]}{ended.stderr[-1500:]}"
        told = re.search(r"Done (\d+) runs", ended.stderr)
        assert told is not None, f"{name}: {ended.stderr[-500:]}"
        counts[f"inputs to {name}"] = int(told[1])
        counts[f"of {name} that reached new code"] = len(list(corpus.iterdir()))
    return counts
