"""A small text encoder in a folder, through the real server: other tasks, moving blocks, and the commands that try."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tests.encoders import TINY, tiny_files
from tests.real_server import RealServer
from typer.testing import CliRunner

from everlearn.inputs.text import TextTokenizer
from everlearn.runtime.session import join
from everlearn.spec.lock import sides_digest
from everlearn_client import Batch, Client, Texts
from everlearn_client.cli.app import app

SUBJECTS = {
    "weather": ("rain", "snow", "wind"),
    "sport": ("goal", "match", "team"),
    "money": ("bank", "price", "flour"),
}
TOKENS = 16


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """spec.backbone of an encoder of three small blocks."""
    folder = tmp_path_factory.mktemp("encoder")
    files = tiny_files(folder)
    weights = files.sha256["model.safetensors"]
    sides = sides_digest({name: sha for name, sha in files.sha256.items() if name != "model.safetensors"})
    source = f"folder:{folder}/model.safetensors"
    return {"source": source, "loader": TINY.loader, "sha256": weights, "sides_sha256": sides}


def declaration(name: str, encoder: dict[str, Any], **spec: Any) -> str:
    body = {"backbone": encoder, "input": {"modality": "text", "max_tokens": TOKENS}, **spec}
    return json.dumps({"metadata": {"name": name}, "spec": body})


def phrases(count: int, seed: int) -> tuple[list[str], list[str]]:
    random = np.random.default_rng(seed)
    labels = [list(SUBJECTS)[index] for index in random.integers(0, 3, count)]
    return [" ".join(random.choice([*SUBJECTS[label], "the", "of", "a"], 6)) for label in labels], labels


def batches(count: int, seed: int) -> list[tuple[Texts, list[str]]]:
    texts, labels = phrases(count, seed)
    return [(Texts(texts[i : i + 16]), labels[i : i + 16]) for i in range(0, count, 16)]


def accuracy(client: Client, model: str) -> float:
    texts, labels = phrases(60, 99)
    top = client.predict(model, Texts(texts)).top
    return float(np.mean([best[0].label == label for best, label in zip(top, labels, strict=True)]))


def test_an_encoders_last_block_learns_serves_and_leaves_as_one_file(
    server: RealServer, client: Client, encoder: dict[str, Any], tmp_path: Path
) -> None:
    recipe = {
        "adapt": {"kind": "last_blocks", "blocks": 1},
        "head": {"kind": "linear"},
        "memory": {"kind": "latents", "capacity": 100},
        "retention": {"features": "latents"},
    }
    server.declare(declaration("moving", encoder, **recipe))
    report = client.learn("moving", batches(480, 1))
    assert (report.durable_samples, report.rejected) == (480, ())
    assert accuracy(client, "moving") >= 0.8
    paths = {path.name: path for path in client.download(client.export("moving"), tmp_path)}
    tokenizer = TextTokenizer(paths["tokenizer.json"].read_bytes(), TOKENS)
    texts = [*phrases(20, 7)[0], "rain", "goal " * 40]
    session = onnxruntime.InferenceSession(paths["model.onnx"], providers=["CPUExecutionProvider"])
    scores, label = session.run(["scores", "label"], {"input_ids": join([tokenizer.ids(text)[None] for text in texts])})
    answer = client.predict("moving", Texts(texts), scores=True)
    assert np.abs(scores - answer.scores_NC).max() <= 1e-4
    assert list(label) == [top[0].label for top in answer.top]


def test_all_of_an_encoder_cannot_learn(client: Client, encoder: dict[str, Any]) -> None:
    recipe = {"adapt": {"kind": "full"}, "head": {"kind": "linear"}, "memory": {"kind": "none"}}
    with pytest.raises(Exception, match="cannot learn") as caught:
        client.models.apply(declaration("whole", encoder, **recipe))
    assert getattr(caught.value, "field", "") in ("spec.recipe.adapt", "spec.adapt")


def test_several_labels_of_a_text(server: RealServer, client: Client, encoder: dict[str, Any]) -> None:
    server.declare(declaration("tags", encoder, task="multilabel"))
    words = [word for group in SUBJECTS.values() for word in group]
    random = np.random.default_rng(0)
    chosen = [random.choice(words, 4, replace=False) for _ in range(200)]
    tags = [[name for name, group in SUBJECTS.items() if set(group) & set(some)] for some in chosen]
    texts = [" ".join(some) for some in chosen]
    report = client.learn("tags", [Batch(Texts(texts[i : i + 20]), tags[i : i + 20]) for i in range(0, 200, 20)])
    assert (report.durable_samples, report.rejected) == (200, ())


def test_a_sample_of_texts_is_examined(server: RealServer, encoder: dict[str, Any], tmp_path: Path) -> None:
    server.declare(declaration("examined", encoder))
    texts, labels = phrases(120, 3)
    rows = "\n".join(f"{text},{label}" for text, label in zip(texts, labels, strict=True))
    (tmp_path / "texts.csv").write_text(f"text,label\n{rows}\n")
    result = CliRunner().invoke(app, f"doctor examined {tmp_path}/texts.csv --server {server.address} -o json")
    assert result.exit_code in (0, 1, 9), result.output
    assert json.loads(result.stdout)


def test_weights_beside_another_config_are_refused(client: Client, encoder: dict[str, Any], tmp_path: Path) -> None:
    tiny_files(tmp_path)
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace('"gelu"', '"relu"') + " ")
    moved = {**encoder, "source": f"folder:{tmp_path}/model.safetensors"}
    with pytest.raises(Exception, match="beside the weights") as caught:
        client.models.plan(declaration("moved", moved))
    assert getattr(caught.value, "field", "") == "spec.backbone.sides_sha256"
