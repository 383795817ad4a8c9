"""Runs groups of measurements, shows what they do, and writes the table."""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
import tempfile
import time
import traceback
from pathlib import Path

from rich.console import Console
from rich.status import Status
from tests.benchmarks.scene import Scene
from tests.benchmarks.table import Machine, Row, markdown, result_path

from everlearn.errors import UnavailableError

NAMES = (
    "accuracy",
    "learn_cost",
    "freshness",
    "head_swap",
    "export",
    "delta",
    "thumbnails",
    "precision",
    "fine_tune",
    "serving",
    "memory",
    "heads",
    "commits",
    "client_sums",
    "late_labels",
    "edge",
    "novelty",
    "gradient_step",
    "upgrade",
    "student",
    "gpu",
    "peer_serving",
    "aarch64",
)
ASKED_FOR = ("gpu", "peer_serving", "aarch64")
"""Measured only where they are named: they need what most machines do not have."""
RESULTS = Path(__file__).with_name("results")


def main() -> int:
    """Runs the named groups, or all; 1 where one of them could not be measured."""
    arguments = _arguments()
    console = Console(stderr=True)
    machine = Machine.observe()
    rows: list[Row] = []
    failed: list[str] = []
    begun_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="everlearn-bench-") as folder, console.status("") as status:
        scene = Scene(Path(folder))
        scene.device = arguments.device
        for current in arguments.names or [name for name in NAMES if name not in ASKED_FOR]:
            scene.tell = functools.partial(_tell, status, current)
            group_s = time.monotonic()
            try:
                found = importlib.import_module(f"tests.benchmarks.{current}").measure(scene, quick=arguments.quick)
            except UnavailableError as error:
                failed.append(current)
                console.print(f"[red]{current} cannot be measured here[/red]: {error.message}", highlight=False)
                continue
            except Exception:
                failed.append(current)
                console.print(f"[red]{current} could not be measured[/red]")
                console.print(traceback.format_exc(), markup=False)
                continue
            rows += found
            console.print(f"[bold]{current}[/bold] in {time.monotonic() - group_s:.0f} s")
            for row in found:
                console.print(f"  {row.what}: [bold]{row.measured}[/bold]; {row.detail}", highlight=False)
    command = " ".join(("python -m tests.benchmarks", *sys.argv[1:]))
    text = markdown(rows, machine, command=command, seconds=time.monotonic() - begun_s, failed=failed)
    path = arguments.output or result_path(RESULTS, machine, quick=arguments.quick, called=arguments.called)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    sys.stdout.write(text)
    console.print(f"written to {path}")
    return 1 if failed else 0


def _tell(status: Status, group: str, text: str) -> None:
    status.update(f"{group}: {text}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description="Measure, print, and write a dated Markdown table."
    )
    parser.add_argument("names", nargs="*", metavar="name", help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="few repetitions: shows that it works, not how fast")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="of the group gpu; cpu only tries it")
    parser.add_argument(
        "--called", default="", help="ends the name of that file, so that it stands beside a full run's"
    )
    parser.add_argument("--output", type=Path, help="file to write instead of results/<date>_<hardware>.md")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(NAMES))
    if unknown:
        parser.error(f"no group {unknown[0]!r}; there are: {', '.join(NAMES)}")
    return arguments
