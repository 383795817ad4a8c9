"""What can be said about the images without a Docker engine."""

from __future__ import annotations

import json
import re

import pytest
from tests.house.rules import ROOT
from tests.house.test_systemd_unit import edge_run_variables
from typer.testing import CliRunner

from everlearn_client.cli.app import app

LINES = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ").splitlines()


def _stages() -> dict[str, tuple[str, list[str]]]:
    """Stage -> (the one it is built on, its instructions)."""
    stages: dict[str, tuple[str, list[str]]] = {}
    for line in LINES:
        begins = re.match(r"FROM (\S+) AS (\S+)", line)
        if begins:
            instructions: list[str] = []
            stages[begins[2]] = (begins[1], instructions)
        elif stages and line.strip() and not line.startswith("#"):
            instructions.append(line)
    return stages


def _inherited(stage: str) -> list[str]:
    built_on, instructions = _stages()[stage]
    return [*(_inherited(built_on) if built_on in _stages() else []), *instructions]


def test_the_targets_are_server_server_lite_and_edge() -> None:
    assert {"server", "server-lite", "edge"} <= _stages().keys()


@pytest.mark.parametrize("target", ["server", "server-lite", "edge"])
def test_no_image_runs_as_root(target: str) -> None:
    users = [line.split()[1] for line in _inherited(target) if line.startswith("USER")]
    assert users[-1:] == ["everlearn"]


def test_everything_is_installed_by_hash_but_our_own_wheel() -> None:
    installs = [line for line in LINES if "pip install" in line]
    assert installs
    assert all("--require-hashes" in line or "--no-deps /dist/*.whl" in line for line in installs)


def test_what_is_copied_exists_and_is_let_in() -> None:
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")]
    for line in LINES:
        if not line.startswith("COPY ") or "--from" in line:
            continue
        for source in line.split()[1:-1]:
            assert (ROOT / source).exists(), source
            assert any(source == name or (name.endswith("*.txt") and source.endswith(".txt")) for name in let_in), (
                source
            )


def test_the_gpu_libraries_are_looked_for_in_the_python_that_the_image_has() -> None:
    python = next(re.search(r"python:(\d+\.\d+)", line)[1] for line in LINES if line.startswith("ARG PYTHON_IMAGE"))  # type: ignore[index]
    named = {found for line in LINES for found in re.findall(r"/lib/python(\d+\.\d+)/", line)}
    assert named == {python}


def test_the_edge_image_starts_a_device_and_tells_it_its_folders() -> None:
    instructions = _inherited("edge")
    (entry,) = (json.loads(line.removeprefix("ENTRYPOINT ")) for line in instructions if line.startswith("ENTRYPOINT"))
    (rest,) = (json.loads(line.removeprefix("CMD ")) for line in instructions if line.startswith("CMD"))
    assert (entry[0], CliRunner().invoke(app, [*entry[1:], *rest]).exit_code) == ("everlearn", 0)
    told = {name for line in instructions if line.startswith("ENV ") for name in re.findall(r"\bEVERLEARN_\w+", line)}
    assert told == {"EVERLEARN_EDGE_FOLDER", "EVERLEARN_EDGE_SOURCE"}
    assert told <= edge_run_variables()
