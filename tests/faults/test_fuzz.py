"""Thousands of wrong messages to every method: the server answers each, and remembers none. Controls that must fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.faults.fuzz_run import run

FAULTY = str(Path(__file__).with_name("faulty_server.py"))
SEED = 20261121


@pytest.mark.slow
def test_five_thousand_wrong_messages_break_nothing_and_leak_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(5000, SEED)
    with capsys.disabled():
        print(f" [seed {SEED}: {found['messages']} in {found['seconds']} s, {found['growth_mib']} MiB] ", end="")
    assert found["violations"] == []
    assert found["messages"] >= 5000
    codes = found["codes"]
    assert codes["INVALID_ARGUMENT"] > 1500, "the messages were too tame"
    assert codes["OK"] > 150, "the messages were too wild"
    assert len(found["kinds"]) > 20


@pytest.mark.parametrize(
    ("fault", "caught"),
    [
        ("unwalked", "taken, and wrong: "),
        ("unnamed", "a fault of ours: "),
        ("hoarding", "memory grew by "),
        ("segfault", "the server ended with -11"),
    ],
)
def test_a_broken_server_is_caught(fault: str, caught: str) -> None:
    violations = run(1500, SEED, program=(FAULTY, fault))["violations"]
    assert any(violation.startswith(caught) for violation in violations), violations[:5]
