"""The benchmarks themselves: the cheap group runs, and what it measures becomes a table. Nothing timed is asserted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.benchmarks import runner
from tests.benchmarks.table import Machine, Row, markdown, result_path

ROOT = Path(__file__).parents[2]


def test_a_quick_run_of_commits_writes_a_dated_table(tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    command = [sys.executable, "-m", "tests.benchmarks", "commits", "--quick", "--output", str(table)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr
    text = table.read_text()
    assert done.stdout == text
    assert re.match(r"# Benchmarks, \d{4}-\d\d-\d\d \d\d:\d\d UTC\n", text)
    assert "`python -m tests.benchmarks commits --quick" in text
    assert len(re.findall(r"^\| commits \| busy", text, re.MULTILINE)) == 2


def test_an_unknown_group_is_refused_with_the_known_ones() -> None:
    command = [sys.executable, "-m", "tests.benchmarks", "sevring"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 2
    assert "no group 'sevring'; there are: accuracy, learn_cost" in done.stderr


def test_without_a_gpu_its_group_says_in_words_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.benchmarks", "gpu", "--output", str(tmp_path / "table.md")]
    environment = {**os.environ, "COLUMNS": "400", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False, env=environment)
    assert done.returncode == 1
    assert "gpu cannot be measured here: " in done.stderr
    assert "CUDA" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Could not be measured: gpu." in (tmp_path / "table.md").read_text()


def test_every_group_is_a_module_and_every_measuring_module_is_a_group() -> None:
    folder = Path(runner.__file__).parent
    measuring = {path.stem for path in folder.glob("*.py") if "\ndef measure(" in path.read_text()}
    assert measuring == set(runner.NAMES)


def test_a_row_short_of_its_target_stands_out_and_bars_are_escaped() -> None:
    row = Row(group="x", what="a|b", measured="3 ms", target="<= 1 ms", met=False)
    text = markdown([row], Machine.observe(), command="none", seconds=1, failed=["y"])
    assert "| x | a\\|b | <= 1 ms | 3 ms | **no** |  |" in text
    assert "Could not be measured: y." in text


def test_a_quick_run_does_not_overwrite_a_real_one() -> None:
    machine = Machine.observe()
    assert result_path(Path(), machine, quick=True) != result_path(Path(), machine, quick=False)


def test_a_run_of_some_groups_may_stand_beside_a_full_one() -> None:
    machine = Machine.observe()
    path = result_path(Path(), machine, quick=False, called="edge")
    assert path.name == result_path(Path(), machine, quick=False).name.replace(".md", "_edge.md")
