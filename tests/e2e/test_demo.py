"""`make demo` as anyone runs it: a process of its own, judged by what it prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "clients" / "demo" / "digits.py"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def printed() -> str:
    """What a run says; it must end well."""
    ran = subprocess.run([sys.executable, DEMO], capture_output=True, text=True, timeout=1000)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    return ran.stdout


def counts(pattern: str, printed: str) -> tuple[int, int]:
    """Two whole numbers in a sentence."""
    found = re.search(pattern, printed)
    assert found, f"{pattern} is not in:\n{printed}"
    return int(found[1]), int(found[2])


def test_the_five_acts_are_shown_in_order(printed: str) -> None:
    assert re.findall(r"^(\d)\. ", printed, re.MULTILINE) == ["1", "2", "3", "4", "5"]


def test_accuracy_reaches_joint_training_after_each_pair_and_little_is_forgotten(printed: str) -> None:
    rows = re.findall(r"^ +((?:\d )+) .* ([\d.]+)% +([+-][\d.]+)% +([\d.]+)% *$", printed, re.MULTILINE)
    assert [len(seen.split()) for seen, *_ in rows] == [2, 4, 6, 8, 10]
    _, accuracy, forgotten, bound = rows[-1]
    assert float(accuracy) >= float(bound) - 0.5
    assert float(forgotten) <= 5.0
    seen_right = re.search(r"is right on ([\d.]+)% of (\d+) digits", printed)
    assert seen_right
    assert float(seen_right[1]) >= float(bound) - 0.5


def test_the_exported_file_predicts_what_the_server_predicts(printed: str) -> None:
    same, of = counts(r"predicts what the server predicts on (\d+) of (\d+)", printed)
    assert of == 1797 // 5
    assert same >= 0.99 * of


def test_after_a_restart_every_prediction_is_what_it_was(printed: str) -> None:
    same, of = counts(r"(\d+) of (\d+) predictions are what they were", printed)
    assert same == of == 1797 // 5
