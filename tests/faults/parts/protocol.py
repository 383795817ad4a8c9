"""Duplicates, gaps, overtaking, stale epochs, two connections, crashes: the writer and its model never disagree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hypothesis.stateful import run_state_machine_as_test
from tests.faults.protocol_machine import WriterMachine, sized

SHORT: Mapping[str, int] = {"examples": 300, "steps": 8}
LONG: Mapping[str, int] = {"examples": 500, "steps": 45}


def run(folder: Path, *, examples: int, steps: int) -> Mapping[str, object]:
    """At most so many steps in each example; nothing is written into `folder`."""
    runs, before, batches = WriterMachine.runs, WriterMachine.steps, WriterMachine.batches
    run_state_machine_as_test(WriterMachine, settings=sized(examples, steps))
    return {
        "examples run": WriterMachine.runs - runs,
        "steps run": WriterMachine.steps - before,
        "batches": WriterMachine.batches - batches,
        "disagreements": 0,
    }
