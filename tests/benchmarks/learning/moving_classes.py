"""New classes while the last block moves: the recipe `icarl`, on the streams of classes that all others learn.

Its features move, so it cannot share the frozen ones that the other recipes learn from. Digits, 5 steps of 2 classes.
"""

from __future__ import annotations

import hashlib

import numpy as np
from tests.benchmarks.learning import data, ours, streams
from tests.benchmarks.learning.kept import kept
from tests.benchmarks.learning.scores import Run
from tests.benchmarks.learning.shift import OLD, at_cut, cut, learned
from tests.benchmarks.learning.streams import Stream
from tests.benchmarks.scene import Scene
from tests.benchmarks.table import Row

MOVES = ours.Declared(name="icarl", options={"recipe": "icarl"})
FROZEN = ours.Declared(name="analytic", options={"recipe": "analytic"})


def rows(scene: Scene, seeds: int) -> list[Row]:
    """Accuracy on all classes after the last step, means over seeds."""
    found = [streams.build("class", data.digits(scene), seed) for seed in range(seeds)]
    moving = [_final(stream, _moving(scene, stream)) for stream in found]
    frozen = [_final(stream, _frozen(scene, stream)) for stream in found]
    return [
        Row(
            group="digits",
            what="`icarl`: last block + 1,000 herded latents + distillation, 5 x 2 classes",
            target="",
            measured=f"{np.mean(moving):.1f} %, frozen `analytic` {np.mean(frozen):.1f} %",
            met=None,
            detail=f"least {min(moving):.1f} and {min(frozen):.1f} %; {seeds} seeds; defaults",
        )
    ]


def _final(stream: Stream, run: Run) -> float:
    return 100 * float((run.predicted_ET[-1] == stream.test_label_T).mean())


def _moving(scene: Scene, stream: Stream) -> Run:
    spec = MOVES.spec(stream.seed)
    trunk, tail = cut(scene, spec.adapt.blocks or 1)
    quantised_Nn = at_cut(scene, trunk, OLD)
    arriving = np.split(stream.row_N, stream.step_ends[:-1])

    def learn() -> Run:
        scene.tell(f"{stream.key}: icarl")
        return learned(spec, trunk, tail, quantised_Nn, stream.dataset.labels_N, arriving, stream.test_T)

    told = f"{ours.code_digest()} {trunk.feature_digest} {stream.digest} {spec.model_dump_json()}"
    return kept(scene.folder / "runs", f"{stream.key} icarl", hashlib.sha256(told.encode()).hexdigest(), learn)


def _frozen(scene: Scene, stream: Stream) -> Run:
    return ours.run(FROZEN.spec(stream.seed), scene.trunk(data.SIZE), stream.dataset.features_Nd, stream)
