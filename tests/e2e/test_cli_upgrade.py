"""`upgrade-backbone` at the command line, for images, tables and texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tests import tiny
from tests.encoders import MINILM
from tests.moving import calibration, declared, noise_backbone
from tests.real_server import RealServer
from tests.texts import sentences
from typer.testing import CliRunner

from everlearn_client import Client, Tensors, Texts
from everlearn_client.cli.app import app


def test_the_command_shows_the_figures_and_its_exit_code_says_how_it_ended(
    server: RealServer, client: Client, backbone: Path, tmp_path: Path
) -> None:
    successor = tiny.write_backbone(tmp_path, 24, seed=1)
    declared(server, backbone, "by-hand")
    folder = tmp_path / "calibration"
    for number, images in enumerate(calibration(240)):
        (folder / str(number)).mkdir(parents=True)
        for index, image in enumerate(images):
            Image.fromarray(image).save(folder / str(number) / f"{index}.png")
    for name, path in (("good", successor), ("bad", noise_backbone(tmp_path))):
        (tmp_path / f"{name}.yaml").write_text(tiny.declaration(path, "by-hand"))

    def run(*arguments: str) -> Any:
        command = ["upgrade-backbone", "by-hand", *arguments, "--server", server.address]
        return CliRunner().invoke(app, command)

    refused = run(str(tmp_path / "bad.yaml"), str(folder))
    assert refused.exit_code == 6, refused.output
    assert "was not changed: old and new head decide alike" in refused.stderr
    assert "loss expected, at most" in refused.stdout
    dry = run(str(tmp_path / "good.yaml"), str(folder), "--dry-run", "--max-drop", "0.2")
    assert (dry.exit_code, "dry run" in dry.stderr) == (0, True), dry.output
    assert client.models.get("by-hand").status.feature_dim == 16
    moved = run(str(tmp_path / "good.yaml"), str(folder), "--max-drop", "0.2")
    assert moved.exit_code == 0, moved.output
    assert "4 of 4" in moved.stdout
    assert client.models.get("by-hand").status.feature_dim == 24
    described = CliRunner().invoke(app, ["describe", "by-hand", "--server", server.address])
    assert "estimated:" in described.stdout
    missing = run(str(tmp_path / "good.yaml"), str(tmp_path / "nowhere"))
    assert missing.exit_code == 3


def test_rows_of_a_table_move_to_random_features(server: RealServer, client: Client, tmp_path: Path) -> None:
    def rows(count: int, seed: int) -> tuple[npt.NDArray[np.float32], list[str]]:
        random = np.random.default_rng(seed)
        label_B = random.integers(0, 3, count)
        centre_Cd = np.array([[-1, -1, 0, 1], [1, -1, 1, 0], [0, 1.5, -1, -1]])
        return (centre_Cd[label_B] + random.normal(0, 0.5, (count, 4))).astype(np.float32), [f"c{i}" for i in label_B]

    def declaration(**spec: object) -> str:
        table = {"modality": "tensor", "shape": [4], "range": [-4, 4]}
        body = {"backbone": {"source": "identity"}, "input": table, **spec}
        return json.dumps({"metadata": {"name": "table"}, "spec": body})

    server.declare(declaration())
    learned, labels = rows(300, 0)
    client.learn("table", [(Tensors(learned[at : at + 30]), labels[at : at + 30]) for at in range(0, 300, 30)])
    (tmp_path / "new.yaml").write_text(declaration(projection={"dim": 64, "seed": 3}))
    seen, _ = rows(800, 1)
    np.savetxt(tmp_path / "seen.csv", seen, delimiter=",", header="a,b,c,d", comments="")
    command = ["upgrade-backbone", "table", str(tmp_path / "new.yaml"), str(tmp_path / "seen.csv")]
    result = CliRunner().invoke(app, [*command, "--server", server.address, "-o", "json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["samples"], report["held_out"], report["live"]) == (640, 160, True)
    images, truth = rows(300, 2)
    found = client.predict("table", Tensors(images)).top
    assert np.mean([top[0].label == label for top, label in zip(found, truth, strict=True)]) > 0.9
    assert client.models.get("table").status.feature_dim == 64


def test_texts_move_to_an_encoder_that_reads_less(server: RealServer, client: Client) -> None:
    def declaration(max_tokens: int) -> str:
        table = {"modality": "text", "max_tokens": max_tokens}
        return json.dumps({"metadata": {"name": "topics"}, "spec": {"backbone": MINILM, "input": table}})

    server.declare(declaration(256))
    client.learn("topics", zip(*sentences(0, 8), strict=True))
    unlabelled = [f"{text} {more}" for text in sentences(8, 12)[0] for more in sentences(0, 3)[0]]
    batches = [Texts(unlabelled[at : at + 32]) for at in range(0, len(unlabelled), 32)]
    report = client.models.upgrade_backbone("topics", declaration(24), batches, max_drop=1, min_agreement=0.5)
    assert report.live
    texts, truth = sentences(8, 12)
    found = client.predict("topics", Texts(texts)).top
    assert np.mean([top[0].label == label for top, label in zip(found, truth, strict=True)]) >= 0.85
    assert client.models.get("topics").status.input.max_tokens == 24
