"""The statistics update against Avalanche's StreamingLDA at d = 1280: same features, one thread, CPU time, in turns."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import numpy as np
from tests.benchmarks.learning.environment import MODULE, ROOT, PeersError, environment
from tests.benchmarks.learning.ours import Declared, learner_for
from tests.benchmarks.learning.streams import BATCH, Stream
from tests.benchmarks.table import Row

from everlearn.values import Trunk


def row(python: Path, job: Path, stream: Stream, trunk: Trunk, *, rounds: int = 3, batches: int = 6) -> Row:
    """Medians over all rounds. Raises PeersError where StreamingLDA does not run."""
    ours, solved, theirs = [], [], []
    for _ in range(rounds):
        learn_ms, solve_ms = _ours(stream, trunk)
        ours += learn_ms
        solved += solve_ms
        theirs += _theirs(python, job, batches)
    mine, other, with_head = float(np.median(ours)), float(np.median(theirs)), float(np.median(solved))
    return Row(
        group=stream.dataset.name,
        what=f"statistics update, ms per batch of {BATCH} at d = {trunk.feature_dim}, against Avalanche StreamingLDA",
        target=">= 50 times faster",
        measured=f"{other / mine:.0f} times",
        met=other / mine >= 50,
        detail=f"{mine:.2f} ms against {other:.0f} ms of CPU time, medians of {len(ours)} and {len(theirs)} batches, "
        f"{rounds} rounds in turn, one thread each. With a head solved after every batch too, which a server does not "
        f"do: {mine + with_head:.0f} ms, {other / (mine + with_head):.0f} times",
    )


def _ours(stream: Stream, trunk: Trunk) -> tuple[list[float], list[float]]:
    learner = learner_for(Declared(name="analytic", options={"recipe": "analytic"}).spec(0), trunk.scale)
    learn_ms, solve_ms = [], []
    features_Nd = stream.dataset.features_Nd
    for count, (start, end) in enumerate(stream.batches):
        labels = [str(label) for label in stream.label_N[start:end]]
        batch_Bd = features_Nd[stream.row_N[start:end]]
        begun_s = time.process_time()
        learner.learn(trunk.scale.quantise(batch_Bd), labels)
        learned_s = time.process_time()
        if count % 10 == 5:
            learner.head(quick=True)
            solve_ms.append(1e3 * (time.process_time() - learned_s))
        if end - start == BATCH:
            learn_ms.append(1e3 * (learned_s - begun_s))
    return learn_ms, solve_ms[1:]


def _theirs(python: Path, job: Path, batches: int) -> list[float]:
    command = [str(python), "-m", MODULE, str(job), ".", "--slda-batches", str(batches)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, cwd=ROOT, env=environment()
    )
    if done.returncode:
        raise PeersError(f"StreamingLDA did not run: {done.stderr.strip()[-500:]}")
    found: list[float] = json.loads(done.stdout)
    return found
