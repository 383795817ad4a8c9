"""`python -m tests.faults [part ...] [--short] [--list]`: the long run. What it found goes into a dated file.

A part is a file of tests/faults/parts: `run(folder, **sizes)` returns what it counted and raises AssertionError for a
promise that was broken, NotHereError for what cannot be tested on this machine; SHORT and LONG are its sizes.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import pkgutil
import platform
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

# As the server's own command does, before NumPy loads.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

from tests.faults import parts  # noqa: E402  # after what they load has its variables
from tests.faults.not_here import NotHereError  # noqa: E402

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "faults"


def names() -> list[str]:
    """Of all parts."""
    return sorted(module.name for module in pkgutil.iter_modules(parts.__path__))


def measured(name: str, *, short: bool) -> tuple[str, Mapping[str, object], float]:
    """Outcome, counts and seconds of a part."""
    part, began_s = importlib.import_module(f"tests.faults.parts.{name}"), time.monotonic()
    sizes = part.SHORT if short else part.LONG
    folder = Path(tempfile.mkdtemp(prefix=f"everlearn-{name}-"))
    try:
        counts = part.run(folder, **sizes)
        outcome = "held, targets missed" if counts.get("not met") else "held"
    except NotHereError as error:
        outcome, counts = f"not tested here: {error}", {}
    except Exception as error:  # the other parts are run all the same
        (folder / "BROKEN.txt").write_text(traceback.format_exc())
        sys.stderr.write(f"{traceback.format_exc()}\nleft to be looked at: {folder}\n")
        return f"BROKEN: {type(error).__name__}: {str(error)[:1500]}", sizes, time.monotonic() - began_s
    shutil.rmtree(folder)
    return outcome, {**sizes, **counts}, time.monotonic() - began_s


def report(rows: list[tuple[str, str, Mapping[str, object], float]], *, command: str) -> str:
    """As Markdown."""
    lines = [
        f"# Faults, {datetime.date.today().isoformat()}",
        "",
        f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, Linux {platform.release()}, "
        f"Python {platform.python_version()}; `{command}`. Every part starts real servers and streams over real gRPC.",
        "",
        "| part | outcome | counts | seconds |",
        "|---|---|---|---|",
    ]
    for name, outcome, counts, took_s in rows:
        told = ", ".join(f"{key}: {value}" for key, value in counts.items())
        lines.append(f"| {name} | {outcome} | {told} | {took_s:.0f} |".replace("\n", " "))
    return "\n".join([*lines, ""])


def main() -> int:
    """Runs what is asked for; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Faults, in the sizes of a long run.")
    parser.add_argument("part", nargs="*", help=", ".join(names()))
    parser.add_argument("--short", action="store_true", help="the sizes of a commit's tests")
    parser.add_argument("--list", action="store_true", help="the parts and their sizes")
    chosen = parser.parse_args()
    if unknown := set(chosen.part) - set(names()):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    if chosen.list:
        for name in names():
            print(name, dict(importlib.import_module(f"tests.faults.parts.{name}").LONG))
        return 0
    rows, path, text = [], _path(chosen.part, short=chosen.short), ""
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in chosen.part or names():
        print(f"{name} ...", flush=True)
        outcome, counts, took_s = measured(name, short=chosen.short)
        rows.append((name, outcome, counts, took_s))
        print(f"{name}: {outcome} in {took_s:.0f} s: {dict(counts)}", flush=True)
        text = report(rows, command=" ".join(["python -m tests.faults", *sys.argv[1:]]))
        path.write_text(text)  # after each: hours of parts that ended are not lost with one that hangs
    print(f"\n{text}\nwritten to {path}")
    return int(any(outcome.startswith("BROKEN") for _, outcome, _, _ in rows))


def _path(chosen: Sequence[str], *, short: bool) -> Path:
    """Of the results; names what was run, where that was not all."""
    some = [*chosen[:3], f"and_{len(chosen) - 3}_more"] if len(chosen) > 4 else chosen
    beside = "".join(f"_{part}" for part in [*some, *["short"] * short])
    cores = len(os.sched_getaffinity(0))
    return RESULTS / f"{datetime.date.today().isoformat()}_{cores}core-{_cpu()}{beside}.md"


def _cpu() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    words = re.findall(r"[a-z]+", (found[1] if found else platform.machine()).lower())
    return "-".join(words[:2])


if __name__ == "__main__":
    sys.exit(main())
