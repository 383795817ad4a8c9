"""`everlearn learn --receipts`, `erase` and `verify-receipt`, against a real server."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from tests.erasure_scene import DIM, Scene, batches
from tests.real_server import RealServer

from everlearn_client.receipts import read_receipts


def run_cli(scene: Scene, *arguments: str, cwd: Path, answer: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from everlearn_client.cli import main; main()", *arguments]
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        input=answer,
        check=False,
        env={**os.environ, "EVERLEARN_SERVER": scene.server.address, "COLUMNS": "150"},
    )


def test_the_command_line_keeps_receipts_erases_and_verifies(server: RealServer, tmp_path: Path) -> None:
    scene = Scene(server, tmp_path)
    scene.declare("cli")
    scene.learn("cli", "bob", batches(1, 6), receipts=False)
    values = np.random.default_rng(2).normal(0, 1, (20, DIM)).astype(np.float32)
    np.savez(tmp_path / "ann.npz", x=values, y=np.array([f"c{row % 4}" for row in range(20)]))

    def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_cli(scene, *arguments, cwd=tmp_path)

    learned = cli("learn", "cli", "ann.npz", "--client", "ann", "--receipts", "ann.receipts", "--batch", "5")
    assert learned.returncode == 0, learned.stderr
    assert len(list(read_receipts(tmp_path / "ann.receipts"))) == 4
    assert cli("learn", "cli", "ann.npz", "--receipts", "ann.receipts").returncode == 3
    plan = cli("erase", "cli", "--client", "ann", "--receipts", "ann.receipts", "--dry-run")
    assert plan.returncode == 0
    assert "20 of 20 samples learned of client ann" in plan.stdout
    assert "yes, proved by their sum" in plan.stdout
    unasked = cli("erase", "cli", "--client", "ann", "--receipts", "ann.receipts")
    assert unasked.returncode == 6
    assert "--yes" in unasked.stderr
    nothing = cli("erase", "cli", "--client", "ann", "--yes")
    assert nothing.returncode == 6
    assert "give --receipts with the file" in nothing.stderr
    assert "0 of 20 samples are covered" in nothing.stdout
    done = cli("erase", "cli", "--client", "ann", "--receipts", "ann.receipts", "--yes", "--out", "erased.json")
    assert done.returncode == 0, done.stderr
    assert "20 samples, subtracted" in done.stdout
    again = cli("erase", "cli", "--client", "ann", "--receipts", "ann.receipts", "--out", "again.json")
    assert again.returncode == 0
    assert "before" in again.stderr
    assert (tmp_path / "again.json").read_text() == (tmp_path / "erased.json").read_text()
    verified = cli("verify-receipt", "erased.json")
    assert verified.returncode == 0
    assert "good, by " in verified.stdout
    assert cli("verify-receipt", "erased.json", "--key", "00" * 32).returncode == 6
    document = json.loads((tmp_path / "erased.json").read_text())
    (tmp_path / "bad.json").write_text(json.dumps(document | {"receipt": document["receipt"].replace("20", "21")}))
    bad = cli("verify-receipt", "bad.json")
    assert bad.returncode == 8
    assert "was changed" in bad.stderr
    (tmp_path / "none.json").write_text("{}")
    assert cli("verify-receipt", "none.json").returncode == 3
    assert base64.b64decode(document["public_key"]).hex() in cli("info").stdout
