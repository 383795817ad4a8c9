"""Runs that are kept between calls, so that a benchmark that was cut off goes on, and one that is repeated is quick."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tests.benchmarks.learning.scores import Run


def kept(folder: Path, name: str, digest: str, compute: Callable[[], Run]) -> Run:
    """The run of that name, computed where none of that digest (of all that it depends on) is kept."""
    short = hashlib.sha256(name.encode()).hexdigest()[:16]
    path = folder / f"{short}.npz"
    if path.exists():
        with np.load(path) as stored:
            if str(stored["digest"]) == digest:
                return read(path)
    run = compute()
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez(part, digest=digest, name=name, **asdict(run))
    part.replace(path)
    return run


def read(path: Path) -> Run:
    """A run as `kept` or a peer wrote it."""
    with np.load(path) as stored:
        rate = float(stored["rate"]) if "rate" in stored else 0.0
        strength = float(stored["strength"]) if "strength" in stored else 0.0
        told = [f"rate {rate:g}"] * bool(rate) + [f"strength {strength:g}"] * bool(strength)
        return Run(
            predicted_ET=stored["predicted_ET"],
            learn_ms=float(stored["learn_ms"]),
            solve_ms=float(stored["solve_ms"]) if "solve_ms" in stored else 0.0,
            state_bytes=int(stored["state_bytes"]),
            setting=str(stored["setting"]) if "setting" in stored else ", ".join(told),
        )
