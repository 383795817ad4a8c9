"""Data folders that servers of their time wrote (tests/fixtures): opened by this one, told the same, taught further."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.data_folders import sql
from tests.fixtures.taught import BATCHES, CLIENTS, LABELS, ROWS, answers, batches, declaration, rows, told_of, unpacked
from tests.real_server import RealServer

from everlearn_client import Client
from everlearn_server.store import migrate

FIXTURES = Path(__file__).parents[1] / "fixtures"
MORE = 2
"""Batches that come after."""
REVISIONS = {"format_1": "0001", "format_2": "0002"}
EXACT = {"sums", "level"}
"""Models whose memory is the same whatever the order of batches, and whoever took them in."""


def told(kept: str) -> dict[str, dict[str, Any]]:
    """What the server said that wrote the folder, by model."""
    said: dict[str, dict[str, Any]] = json.loads((FIXTURES / kept / "told.json").read_text())["models"]
    return said


def command(*words: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "everlearn_server.cli", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def folder(kept: str, tmp_path: Path) -> Path:
    """Of this release's format: migrated by the command."""
    data = unpacked(FIXTURES / kept, tmp_path)
    migrated = command("migrate", "--data", data, "--backup-to", tmp_path / "backup")
    assert migrated.returncode == 0, migrated.stderr
    assert f"is of revision {migrate.head()}, it was of {REVISIONS[kept]}" in migrated.stdout
    return data


def test_a_folder_that_an_older_server_wrote_is_refused_with_the_command_that_migrates_it(tmp_path: Path) -> None:
    data = unpacked(FIXTURES / "format_1", tmp_path)
    server = RealServer(data)
    server.launch()
    assert server.wait() == 1
    assert f"`everlearn-server migrate --data {data} --backup-to FOLDER` makes a backup" in " ".join(server.log.split())
    assert sql(data, "SELECT version_num FROM alembic_version") == [("0001",)]


@pytest.mark.parametrize("kept", ["format_1", "format_2"])
def test_models_of_a_folder_that_was_kept_are_what_they_were_and_are_taught_further(folder: Path, kept: str) -> None:
    checked = command("check", "--data", folder)
    assert checked.returncode == 0, checked.stdout
    with RealServer(folder) as server, server.client(client_id=CLIENTS[0]) as client:
        for name, said in told(kept).items():
            found = told_of(client, name)
            np.testing.assert_allclose(found.pop("answers"), said.pop("answers"), rtol=0, atol=1e-5)
            assert found == said
        for name in told(kept):
            goes_on(server, client, name)
    checked = command("check", "--data", folder)
    assert checked.returncode == 0, checked.stdout


def goes_on(server: RealServer, client: Client, name: str) -> None:
    """The same client with all of its batches and some more: only these are learned, and as by a model of today."""
    before = client.models.get(name).status.sample_count
    report = client.learn(name, batches(name, CLIENTS[0], 1, BATCHES + MORE), first_sequence=1)
    assert (report.skipped_batches, report.durable_batches, report.rejected_batches) == (BATCHES, MORE, 0)
    after = client.models.get(name).status
    assert after.sample_count == before + MORE * ROWS
    if name in EXACT:
        server.declare(declaration("anew", of=name))
        for index, who in enumerate(CLIENTS):
            last = BATCHES + (0 if index else MORE)
            client.learn("anew", batches(name, who, 1, last), client_id=who)
        assert client.models.get("anew").status.memory_digest == after.memory_digest
        client.models.delete("anew")
    if name != "level":
        best = np.argmax(answers(client, name), axis=1)
        assert np.mean(best == rows(9_999)[1]) > 0.8, [LABELS[each] for each in best]
