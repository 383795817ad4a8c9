"""Mutated and structured messages over real gRPC: each invalid one is answered INVALID_ARGUMENT, nothing leaks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.faults import fuzz_run

SHORT: Mapping[str, int] = {"messages": 5_000, "runs": 1}
LONG: Mapping[str, int] = {"messages": 1_000_000, "runs": 1}
"""Of one process: what leaks a byte a message shows."""


def run(folder: Path, *, messages: int, runs: int) -> Mapping[str, object]:
    """`messages` in each of `runs`, with a seed of its own."""
    counts: dict[str, object] = {}
    for turn in range(runs):
        found = dict(fuzz_run.run(messages, 20261121 + turn))
        violations = found.pop("violations")
        assert not violations, f"run {turn + 1}: {violations[:5]}, of {found}"
        counts |= {f"{name}, run {turn + 1}": value for name, value in found.items()}
    return counts
