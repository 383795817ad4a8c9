"""The peers in a process and an environment of their own, while everlearn's recipes run here."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tests.benchmarks.learning import environment, report
from tests.benchmarks.learning.kept import read
from tests.benchmarks.learning.scores import score
from tests.benchmarks.learning.streams import Stream
from tests.benchmarks.scene import Scene


class Peers:
    """Starts them; `collect` waits for them."""

    def __init__(self, scene: Scene, found: Sequence[Stream], quick: bool) -> None:
        self.failed = False
        self.python = Path()
        self.speed_job: tuple[Path, Stream] | None = None
        """What the update is timed on."""
        self._scene, self._why = scene, ""
        self._results, self._log = scene.folder / "peer-runs", scene.folder / "peers.log"
        try:
            self.python = environment.python(scene.folder, scene.tell)
        except environment.PeersError as error:
            self.failed, self._why = True, str(error)
            return
        jobs = self._write_jobs(found)
        command = [str(self.python), "-m", environment.MODULE, str(jobs), str(self._results)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command + ["--quick"] * quick,
                stdout=log,
                stderr=log,
                cwd=environment.ROOT,
                env=environment.environment(),
            )

    def collect(self, found: Sequence[Stream], results: report.Results) -> list[str]:
        """Waits, adds the peers' runs, and says what did not run."""
        if self._why:
            return [f"**The peers did not run**: {self._why}"]
        self._scene.tell(f"waiting for the peers ({self._log})")
        try:
            code = self._process.wait(timeout=environment.RUN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code:
            self.failed, self.speed_job = True, None
            return [f"**The peers ended with {code}**: {self._log.read_text()[-500:]}"]
        for stream in found:
            for path in sorted(self._results.glob(f"{stream.key}--*[!t].npz")):
                run = read(path)
                results.add(stream, path.stem.split("--")[1], run, score(stream, run), is_peer=True)
        told = json.loads((self._results / "peers.json").read_text())
        notes = ["Peers: " + ", ".join(f"{name} {version}" for name, version in told["versions"].items()) + "."]
        return notes + [f"Did not run: {name}: {why}." for name, why in told["failed"].items()]

    def _write_jobs(self, found: Sequence[Stream]) -> Path:
        jobs = self._scene.folder / "jobs"
        jobs.mkdir(exist_ok=True)
        for old in jobs.glob("*"):
            old.unlink()
        for stream in found:
            features = self._scene.folder / f"peer-features-{stream.dataset.digest[:16]}.npy"
            if not features.exists():
                part = features.with_suffix(".part.npy")
                np.save(part, stream.dataset.features_Nd)
                part.replace(features)
            job = environment.write_job(jobs, features, stream)
            if self.speed_job is None:
                self.speed_job = (job, stream)
        return jobs
