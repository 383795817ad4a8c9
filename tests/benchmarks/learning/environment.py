"""The peers' environment: a virtual environment of its own in the bench's folder, thrown away with it.

It borrows what it lacks (torch, NumPy, scikit-learn) from the environment that runs the bench, so that torch is not
installed twice; what pip installs there goes first and touches nothing else (pip leaves alone what lies outside its
environment).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from tests.benchmarks.learning.streams import Stream

REQUIREMENTS = ("avalanche-lib==0.6.0", "river==0.26.1")
MODULE = "benchmarks.learning.peers"
"""Run in `ROOT`: one of the peers' packages brings a top-level `tests` of its own."""
ROOT = Path(__file__).parents[2]
INSTALL_S = 900
RUN_S = 3000


class PeersError(RuntimeError):
    """The peers cannot be had or do not run; says why."""


def python(folder: Path, tell: Callable[[str], object]) -> Path:
    """The environment's interpreter, made when first asked for. Raises PeersError."""
    told = "\n".join([*REQUIREMENTS, sys.version, sys.prefix])
    home = folder / f"peers-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
    found = home / "bin" / "python"
    ready = home / ".ready"
    if ready.exists():
        return found
    tell(f"installing {' and '.join(REQUIREMENTS)} into an environment of their own")
    _checked([sys.executable, "-m", "venv", "--clear", str(home)])
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = home / "lib" / version / "site-packages"
    lender = sysconfig.get_paths()["purelib"]
    (packages / "borrowed.pth").write_text(f"import site; site.addsitedir({lender!r})\n")
    _checked([str(found), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS])
    ready.touch()
    return found


def _checked(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        raise PeersError(f"{command[:4]} took more than {INSTALL_S} s") from None
    if done.returncode:
        raise PeersError(f"{command[:4]} failed: {done.stderr.strip()[-500:]}")


def write_job(folder: Path, features: Path, stream: Stream) -> Path:
    """The stream as the peers read it."""
    path = folder / f"{stream.key}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    batch_ends = [end for _, end in stream.batches]
    np.savez(
        path,
        features=str(features.absolute()),
        digest=stream.digest,
        row_N=stream.row_N,
        label_N=stream.label_N,
        test_T=stream.test_T,
        test_label_T=stream.test_label_T,
        is_held_out_N=stream.is_held_out_N,
        step_ends=stream.step_ends,
        looks=stream.looks,
        batch_ends=batch_ends,
        step_batches=[batch_ends.index(end) + 1 for end in stream.step_ends],
    )
    return path


def environment() -> Mapping[str, str]:
    """One thread each, no word to anybody, and nothing of everlearn on the path."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "WANDB_MODE": "disabled",
        "CUDA_VISIBLE_DEVICES": "",
    }
