"""Writes the Markdown table and its pictures."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tests.benchmarks.learning import joint
from tests.benchmarks.learning.plot import Curve, svg
from tests.benchmarks.learning.scores import Run, Score
from tests.benchmarks.learning.streams import TITLES, Stream
from tests.benchmarks.table import Machine, Row, commit, versions

MOST_PEERS = 5
"""In a picture."""
_COLUMNS = (
    ("final", lambda one: one.final),
    ("average", lambda one: one.average),
    ("anytime", lambda one: one.anytime),
    ("forgetting", lambda one: one.forgetting),
    ("macro", lambda one: one.macro),
    ("worst class", lambda one: one.worst),
)


@dataclass
class Results:
    """All runs, by (dataset, stream), learner and seed."""

    streams: dict[tuple[str, str], list[Stream]] = field(default_factory=dict)
    runs: dict[tuple[str, str], dict[str, list[Run]]] = field(default_factory=dict)
    scores: dict[tuple[str, str], dict[str, list[Score]]] = field(default_factory=dict)
    peers: list[str] = field(default_factory=list)

    def add(self, stream: Stream, name: str, run: Run, score: Score, *, is_peer: bool = False) -> None:
        """One run."""
        key = (stream.dataset.name, stream.name)
        known = self.streams.setdefault(key, [])
        if stream not in known:
            known.append(stream)
        self.runs.setdefault(key, {}).setdefault(name, []).append(run)
        self.scores.setdefault(key, {}).setdefault(name, []).append(score)
        if is_peer and name not in self.peers:
            self.peers.append(name)


def write(
    folder: Path,
    stem: str,
    results: Results,
    targets: Sequence[Row],
    notes: Sequence[str],
    machine: Machine,
    told: str,
    *,
    drawn: bool,
) -> Path:
    """`<stem>.md`, and a picture per stream if `drawn`; returns the table's path."""
    folder.mkdir(parents=True, exist_ok=True)
    load = ", ".join(f"{value:.2f}" for value in machine.load)
    lines = [
        f"# Learning benchmark, {machine.started:%Y-%m-%d %H:%M} UTC",
        "",
        f"`{told}` at {commit()}, {machine.cores} cores of {machine.cpu}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}; one thread a learner, no GPU. Load average before {load}, after "
        f"{', '.join(f'{value:.2f}' for value in os.getloadavg())}. {versions()}.",
        "",
        *(f"- {note}" for note in notes),
        "",
        "## Targets",
        "",
        "| data | what | target | measured | met | how |",
        "|---|---|---|---|---|---|",
    ]
    for row in targets:
        met = "" if row.met is None else ("yes" if row.met else "**no**")
        lines.append(f"| {row.group} | {row.what} | {row.target} | {row.measured} | {met} | {row.detail} |")
    for key, streams in results.streams.items():
        lines += ["", f"## {key[0]}: {TITLES[key[1]]}", "", *_table(key, streams, results)]
        if drawn:
            picture = f"{stem}_{key[0]}_{key[1]}.svg".lower()
            (folder / picture).write_text(_picture(key, streams, results))
            lines += ["", f"![accuracy over time]({picture})"]
    path = folder / f"{stem}.md"
    path.write_text("\n".join(lines) + "\n")
    return path


def _table(key: tuple[str, str], streams: Sequence[Stream], results: Results) -> list[str]:
    """Best final first; everlearn in bold."""
    samples = ", ".join(str(len(stream.row_N)) for stream in streams)
    lines = [
        f"Seeds: {', '.join(str(stream.seed) for stream in streams)}; samples streamed: {samples}; tested: "
        f"{len(streams[0].test_T)}.",
        "",
        "| learner | " + " | ".join(name for name, _ in _COLUMNS) + " | ms/batch | head ms | state | setting | seeds |",
        "|---|" + "---:|" * (len(_COLUMNS) + 3) + "---|---:|",
    ]
    by_name = results.scores[key]
    for name in sorted(by_name, key=lambda one: -float(np.mean([score.final for score in by_name[one]]))):
        scores, runs = by_name[name], results.runs[key][name]
        cells = [_spread([of(score) for score in scores]) for _, of in _COLUMNS]
        if name in joint.NAMES:
            cells[1:4] = ["", "", ""]
        cells += [_ms(runs, "learn_ms"), _ms(runs, "solve_ms"), _bytes(runs), runs[0].setting, str(len(runs))]
        shown = name if name in results.peers or name in joint.NAMES else f"**{name}**"
        lines.append(f"| {shown} | " + " | ".join(cells) + " |")
    return lines


def _picture(key: tuple[str, str], streams: Sequence[Stream], results: Results) -> str:
    by_name = results.scores[key]
    anytime = {name: float(np.mean([score.anytime for score in scores])) for name, scores in by_name.items()}
    ranked = sorted((name for name in by_name if name not in joint.NAMES), key=lambda name: -anytime[name])
    peers = [name for name in ranked if name in results.peers]
    shown = [name for name in ranked if name not in results.peers] + peers[:MOST_PEERS]
    grid = np.linspace(0, 1, 41)[1:]
    curves = []
    for name in shown:
        lines = []
        for stream, score in zip(streams, by_name[name], strict=False):
            at = np.array(stream.looks) / len(stream.batches)
            lines.append(np.interp(grid, at, score.curve_E))
        first = max(stream.looks[0] / len(stream.batches) for stream in streams)
        mean = np.mean(lines, axis=0)
        drawn = grid >= first
        curves.append(
            Curve(
                name=name,
                share_E=grid[drawn].tolist(),
                accuracy_E=mean[drawn].tolist(),
                is_peer=name in results.peers,
            )
        )
    ends = np.array(streams[0].step_ends) / streams[0].step_ends[-1]
    return svg(f"{key[0]}: {TITLES[key[1]]}", curves, ends.tolist())


def _spread(values: Sequence[float]) -> str:
    """Percent, mean and standard deviation over seeds."""
    mean = 100 * float(np.mean(values))
    return f"{mean:.1f}" if len(values) < 2 else f"{mean:.1f} ± {100 * float(np.std(values, ddof=1)):.1f}"


def _ms(runs: Sequence[Run], name: str) -> str:
    value = float(np.median([getattr(run, name) for run in runs]))
    return "" if np.isnan(value) or value == 0 else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _bytes(runs: Sequence[Run]) -> str:
    value = float(np.mean([run.state_bytes for run in runs]))
    return f"{value / 1e6:.1f} MB" if value >= 1e5 else f"{value / 1e3:.0f} kB"
