"""`python -m benchmarks.learning.peers JOBS RESULTS [--quick]`: the peers, by the Python of their environment.

It knows nothing of everlearn. JOBS/*.npz are streams; RESULTS gets the predictions at every look, one file a stream and
method, and keeps those whose stream, method and code have not changed. Learning rate and, where there is one, strength
of each method on each stream are the best on a fifth of seed 0's own arriving samples, held out for that; test samples
are never tuned on. What flatters the peers: they are tuned and told where steps end; everlearn's recipes are neither.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import io
import json
import logging
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import with_avalanche, with_river
from .job import Job, load

RATES = (0.03, 0.1, 0.3, 1.0)
Setting = tuple[float, float]
"""Learning rate and strength."""


def main() -> int:
    """Runs what is missing."""
    parser = argparse.ArgumentParser()
    parser.add_argument("jobs", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--slda-batches", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if arguments.slda_batches:
        with contextlib.redirect_stdout(io.StringIO()):
            found = with_avalanche.slda_ms(load(arguments.jobs), arguments.slda_batches)
        sys.stdout.write(json.dumps(found))
        return 0
    arguments.results.mkdir(parents=True, exist_ok=True)
    failed = _run(arguments.jobs, arguments.results, arguments.quick)
    versions = {name: importlib.metadata.version(name) for name in ("avalanche-lib", "river", "torch")}
    (arguments.results / "peers.json").write_text(json.dumps({"versions": versions, "failed": failed}))
    return 0


def _run(jobs: Path, results: Path, quick: bool) -> dict[str, str]:
    settings: dict[str, Setting] = {}
    failed: dict[str, str] = {}
    by_seed = sorted(jobs.glob("*.npz"), key=lambda path: (path.stem.rsplit("-", 1)[1], path.stem))
    for path in by_seed:
        job = load(path)
        for name in wanted(job, quick=quick):
            tuned = f"{path.stem.rsplit('-', 1)[0]}/{name}"
            if tuned in failed:
                continue
            kept = results / f"{path.stem}--{name}.npz"
            digest = _digest(job, name, quick)
            if not _is_current(kept, digest):
                begun_s = time.monotonic()
                try:
                    with contextlib.redirect_stdout(io.StringIO()):
                        setting = settings.get(tuned) or tune(job, name, quick=quick)
                        result = learn(job, name, setting)
                except Exception as error:
                    failed[tuned] = f"{type(error).__name__}: {error}"
                    traceback.print_exc()
                    continue
                part = kept.with_suffix(".part.npz")
                np.savez(part, name=name, digest=digest, **result)
                part.replace(kept)
                _say(
                    f"{path.stem} {name}: {accuracy(job, result):.3f} at {setting}, {time.monotonic() - begun_s:.1f} s"
                )
            with np.load(kept) as stored:
                settings.setdefault(tuned, (float(stored["rate"]), float(stored["strength"])))
    return failed


def wanted(job: Job, *, quick: bool) -> list[str]:
    """Methods that make sense on this stream and take seconds; the slow ones where the issue compares with them."""
    if quick:
        return ["Naive", "Replay 1000"]
    names = list(with_avalanche.METHODS)
    if job.stream != "class":
        names.remove("iCaRL 1000")  # its plug-in knows each class in one step only
    if job.stream in ("class", "long_tail"):
        names.append(with_avalanche.SLDA)
    if job.key.startswith("digits-class"):
        names += [with_river.SOFTMAX, with_river.BAYES]
    return names


def tune(job: Job, name: str, *, quick: bool) -> Setting:
    """The best of the grid on what is held out."""
    if name in (with_avalanche.SLDA, with_river.BAYES):
        return 0.0, 0.0
    rates = RATES[1:3] if quick else RATES
    grid = [(rate, strength) for strength in with_avalanche.STRENGTHS.get(name, (0.0,)) for rate in rates]
    smaller = job.tuning()
    return max(grid, key=lambda setting: accuracy(smaller, learn(smaller, name, setting)))


def learn(job: Job, name: str, setting: Setting) -> dict[str, Any]:
    """One method, one pass."""
    if name in (with_river.SOFTMAX, with_river.BAYES):
        return with_river.learn(job, name, setting[0])
    return with_avalanche.learn(job, name, *setting)


def accuracy(job: Job, result: dict[str, Any]) -> float:
    """At the end."""
    return float((result["predicted_ET"][-1] == job.test_label_T).mean())


def _digest(job: Job, name: str, quick: bool) -> str:
    code = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(f"{job.digest} {name} {quick} {torch.__version__}".encode() + code).hexdigest()


def _is_current(kept: Path, digest: str) -> bool:
    if not kept.exists():
        return False
    with np.load(kept) as stored:
        return str(stored["digest"]) == digest


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
