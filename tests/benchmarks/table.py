"""What a measurement says, and the dated Markdown table of all of them."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

_PACKAGES = (
    "numpy",
    "scipy",
    "onnxruntime",
    "onnxruntime-gpu",
    "grpcio",
    "protobuf",
    "torch",
    "timm",
    "scikit-learn",
    "zstandard",
    "uvloop",
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    group: str
    """The module that measured it."""
    what: str
    measured: str
    """With unit; the number that the target speaks of first."""
    target: str = ""
    """As issue 2 has it; empty for context."""
    met: bool | None = None
    """None where there is no target."""
    detail: str = ""
    """How, and what else came out."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where and when."""

    started: datetime.datetime
    cpu: str
    cores: int
    load: tuple[float, float, float]
    """Load average over 1, 5 and 15 minutes before the run: above 0 somebody else was working."""
    gpu: str = ""
    """Names and drivers of NVIDIA's; empty where there is none."""

    @classmethod
    def observe(cls) -> Machine:
        """This machine, now."""
        return cls(
            started=datetime.datetime.now(datetime.UTC).replace(microsecond=0),
            cpu=_cpu_model(),
            cores=len(os.sched_getaffinity(0)),
            load=os.getloadavg(),
            gpu=_gpus(),
        )

    @property
    def slug(self) -> str:
        """For a file name, e.g. `2core-amd-epyc`."""
        what = f"{self.cores}core {self.cpu} {self.gpu.partition(',')[0]}"
        return re.sub(r"[^a-z0-9]+", "-", what.lower()).strip("-")


def result_path(folder: Path, machine: Machine, *, quick: bool, called: str = "") -> Path:
    """`<date>_<hardware>[_<called>].md`; a quick run does not overwrite a real one."""
    suffix = (f"_{called}" if called else "") + ("_quick" if quick else "")
    return folder / f"{machine.started.date().isoformat()}_{machine.slug}{suffix}.md"


def markdown(rows: Sequence[Row], machine: Machine, *, command: str, seconds: float, failed: Sequence[str] = ()) -> str:
    """The whole file."""
    load = ", ".join(f"{value:.2f}" for value in machine.load)
    after = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    lines = [
        f"# Benchmarks, {machine.started:%Y-%m-%d %H:%M} UTC",
        "",
        f"`{command}` at {commit()}, {seconds / 60:.1f} minutes on {machine.cores} cores of {machine.cpu}, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}.",
        "",
        f"Load average before: {load}; after: {after}. {versions()}."
        + (f" GPU: {machine.gpu}." if machine.gpu else ""),
        "",
        "Medians unless said otherwise; a ratio compares two things measured alternately in this run.",
        "",
        "| group | what | target | measured | met | how |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        met = "" if row.met is None else ("yes" if row.met else "**no**")
        cells = (row.group, row.what, row.target, row.measured, met, row.detail)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    if failed:
        lines += ["", f"Could not be measured: {', '.join(failed)}."]
    return "\n".join(lines) + "\n"


def quantiles(values: Sequence[float] | npt.NDArray[np.float64]) -> tuple[float, float, float, float]:
    """p50, p95, p99 and the largest."""
    p50, p95, p99, most = np.percentile(np.asarray(values, np.float64), [50, 95, 99, 100])
    return float(p50), float(p95), float(p99), float(most)


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpus() -> str:
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "; ".join(done.stdout.strip().splitlines()) if done.returncode == 0 else ""


def versions() -> str:
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "an unknown commit"
