"""What the README tells a newcomer to type works as it stands there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from tests import tiny
from tests.real_server import RealServer
from typer.testing import CliRunner

from everlearn.spec.load import parse
from everlearn_client.cli.app import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for named, text in fences if named == language]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("readme")
    with RealServer(folder / "data") as running, running.client() as client:
        backbone = tiny.write_backbone(folder)
        client.models.apply(tiny.declaration(backbone, "shelf"))
        yield running


def test_the_python_example_runs_as_it_stands(
    server: RealServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    images = np.concatenate([tiny.images(8, label, seed=label) for label in range(3)])
    labels = [name for name in ("ok", "dent", "scratch") for _ in range(8)]
    scope = {"images_uint8": images, "labels": labels}
    exec(compile(example.replace("127.0.0.1:8470", server.address), "README.md", "exec"), scope)
    assert "24 samples are durable" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.onnx").stat().st_size > 0


def test_the_declaration_is_one_that_lock_would_pin() -> None:
    (declared,) = blocks("yaml")
    model = parse(declared)
    assert (model.metadata.name, model.spec.backbone.revision) == ("shelf", "main")


def test_every_command_shown_exists_with_the_options_shown() -> None:
    shown = [line.split("#")[0].split() for block in blocks("") for line in block.splitlines() if "everlearn " in line]
    commands = [words for words in shown if words[:1] == ["everlearn"]]
    assert len(commands) >= 7
    for words in commands:
        help_text = CliRunner().invoke(app, [words[1], "--help"], env={"COLUMNS": "200"}).output
        assert "Usage" in help_text
        for option in (word for word in words[2:] if word.startswith("-") and ">" not in word):
            assert option in help_text, f"{words[1]} has no {option}"


def test_every_make_target_shown_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z]+)", README)) <= targets


def test_the_demo_declares_what_the_schema_accepts() -> None:
    text = (ROOT / "clients" / "demo" / "digits.yaml").read_text()
    assert yaml.safe_load(text)["metadata"]["name"] == parse(text).metadata.name == "digits"
