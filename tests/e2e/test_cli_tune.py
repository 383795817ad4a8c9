"""`everlearn tune` against a real server: what it tries, recommends and leaves behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.datasets import load_digits
from tests import tiny
from tests.real_server import RealServer
from typer.testing import CliRunner, Result

from everlearn_client import Client
from everlearn_client.choosing import trial
from everlearn_client.cli import exit_codes, tune
from everlearn_client.cli.app import app

Run = Callable[[str], Result]


@pytest.fixture
def run(server: RealServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    return lambda line: CliRunner().invoke(app, f"{line} --server {server.address}")


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """400 real digits, 16 x 16."""
    images, target = load_digits(return_X_y=True)
    grey = (images[:400].reshape(-1, 8, 8).clip(0, 16) * 255 / 16).astype(np.uint8)
    large = np.repeat(grey.repeat(2, axis=1).repeat(2, axis=2)[..., None], 3, axis=3)
    path = tmp_path / "digits.npz"
    np.savez(path, images=large, labels=np.array([str(each) for each in target[:400]]))
    return path


def declare(path: Path, backbone: Path, **spec: object) -> None:
    path.write_text(tiny.declaration(backbone, "mine", **spec))


def names(client: Client) -> list[str]:
    return [model.name for model in client.models.list()]


def report(result: Result) -> dict[str, Any]:
    assert result.exit_code == exit_codes.OK, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


SPACE = """
- head.kind: [ridge, lda]
  head.regularization: [auto]
- head.kind: [balanced_ridge]
  head.regularization: [auto, 500]
"""


def test_a_head_that_was_declared_badly_is_beaten_and_the_recommended_declaration_can_be_applied(
    run: Run, client: Client, digits: Path, tmp_path: Path
) -> None:
    backbone = tiny.write_backbone(tmp_path, 64)
    declare(tmp_path / "stiff.yaml", backbone, head={"kind": "ridge", "regularization": 5000.0})
    (tmp_path / "space.yaml").write_text(SPACE)
    before = names(client)
    found = report(run("tune stiff.yaml digits.npz --space space.yaml -c 3 --write tuned.yaml -o json"))
    assert found["passes"] == 1  # one backbone, one pass a sample, however many candidates
    assert (found["seed"], found["samples"], found["tested"]) == (0, 400, 375)
    by_name = {each["name"]: each for each in found["candidates"]}
    assert len(by_name) == 4
    taken, declared = by_name[found["recommended"]], by_name["declared"]
    assert taken["options"]
    assert taken["ahead"] > 2 * taken["error"] > 0
    assert taken["low"] < taken["accuracy"] < taken["high"]
    assert taken["accuracy"] - declared["accuracy"] == pytest.approx(taken["ahead"])
    assert min(taken["learn_us"], taken["memory_bytes"], taken["export_bytes"]) > 0
    assert names(client) == before
    written = yaml.safe_load((tmp_path / "tuned.yaml").read_text())
    assert written == found["declaration"]
    assert written["metadata"] == {"name": "mine"}
    assert written["spec"]["head"] == {path.partition(".")[2]: value for path, value in taken["options"].items()}
    assert client.models.plan((tmp_path / "tuned.yaml").read_text()).action == "create"


def test_the_same_seed_gives_the_same_figures_and_a_table_says_it_in_words(
    run: Run, backbone: Path, digits: Path, tmp_path: Path
) -> None:
    declare(tmp_path / "plain.yaml", backbone)
    (tmp_path / "space.yaml").write_text(SPACE)
    line = "tune plain.yaml digits.npz --space space.yaml -c 2 --samples 200 --seed 3"
    one, two = report(run(f"{line} -o json")), report(run(f"{line} -o json"))
    shown = [[(each["name"], each["accuracy"]) for each in found["candidates"]] for found in (one, two)]
    assert shown[0] == shown[1]
    table = run(line)
    assert table.exit_code == exit_codes.OK
    assert "seed 3: 2 candidates beside the declared one, varying head.kind, head.regularization" in table.stderr
    assert one["why"] in table.stdout
    assert "AGAINST DECLARED" in table.stdout
    assert yaml.safe_load(table.stdout[table.stdout.index("apiVersion") :]) == one["declaration"]


def test_random_features_are_tried_on_the_pass_of_the_plain_backbone(
    run: Run, client: Client, backbone: Path, digits: Path, tmp_path: Path
) -> None:
    declare(tmp_path / "random.yaml", backbone, recipe="ranpac", projection={"dim": 32})
    (tmp_path / "space.yaml").write_text("projection: [{dim: 64}, {dim: 128}]")
    before = names(client)
    found = report(run("tune random.yaml digits.npz --space space.yaml -c 2 --samples 200 -o json"))
    assert found["passes"] == 1
    assert {each["name"] for each in found["candidates"]} == {"declared", "projection dim 64", "projection dim 128"}
    sizes = {each["name"]: each["export_bytes"] for each in found["candidates"]}
    assert sizes["declared"] < sizes["projection dim 64"] < sizes["projection dim 128"]
    assert names(client) == before


def test_the_default_space_varies_heads_and_tables_can_be_tuned(run: Run, client: Client, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [(rng.normal(2 * label, 1, 3), label) for label in rng.integers(0, 3, 150).tolist()]
    lines = [",".join([*(f"{value:.3f}" for value in values), f"c{label}"]) for values, label in rows]
    (tmp_path / "table.csv").write_text("a,b,c,label\n" + "\n".join(lines))
    spec = {"backbone": {"source": "identity"}, "input": {"modality": "tensor", "shape": [3], "range": [-8, 8]}}
    declared = {"apiVersion": "everlearn/v1", "kind": "Model", "metadata": {"name": "table"}, "spec": spec}
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(declared))
    # This seed draws no features of thousands, which a test need not wait for.
    found = report(run("tune table.yaml table.csv -c 4 --seed 28 -o json"))
    drawn = [each["options"] for each in found["candidates"] if each["options"]]
    assert len(drawn) == 4
    assert all({"head.kind", "head.regularization", "projection"} <= options.keys() for options in drawn)
    assert names(client) == []


def test_blocks_that_move_are_tried_beside_a_frozen_backbone(
    run: Run, client: Client, digits: Path, tmp_path: Path
) -> None:
    import safetensors.torch
    import timm
    import torch

    torch.manual_seed(0)
    network = tmp_path / "network.safetensors"
    safetensors.torch.save_file(timm.create_model("test_resnet").state_dict(), network)
    backbone = {"source": f"folder:{network}", "architecture": "test_resnet"}
    keeps = {"memory": {"kind": "latents"}, "retention": {"features": "latents"}, "head": {"kind": "linear"}}
    text = tiny.declaration(network, "mine", **{**keeps, "backbone": backbone, "adapt": {"kind": "last_blocks"}})
    (tmp_path / "moving.yaml").write_text(text)
    locked = run("lock -f moving.yaml --in-place")
    assert locked.exit_code == exit_codes.OK, locked.output
    (tmp_path / "space.yaml").write_text("adapt: [{kind: frozen}]")
    found = report(run("tune moving.yaml digits.npz --space space.yaml -c 1 --samples 64 -o json"))
    by_name = {each["name"]: each for each in found["candidates"]}
    assert by_name.keys() == {"declared", "frozen"}
    assert found["failed"] == []
    assert found["passes"] == 2, "one to the cut, and one through the whole"
    sizes = [each["export_bytes"] for each in by_name.values()]
    assert max(sizes) < 1.5 * min(sizes), "what lies above the cut leaves with the rest"
    assert all(each["memory_bytes"] > 0 and each["learn_us"] > 0 for each in by_name.values())
    assert names(client) == []


def test_few_are_tried_at_once_where_any_of_them_learns_by_steps(
    run: Run, client: Client, backbone: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "BY_STEPS_AT_ONCE", 1)
    declare(tmp_path / "plain.yaml", backbone)
    for space, told in (
        ("head.kind: [ridge]", "preparing 1 to 2 of 2"),
        ("- head: [{kind: linear}]\n  memory: [{kind: none}]", "preparing 1 to 1 of 2"),
    ):
        (tmp_path / "space.yaml").write_text(space)
        found = run("tune plain.yaml digits.npz --space space.yaml -c 1 --samples 64")
        assert found.exit_code == exit_codes.OK, found.output
        assert told in found.stderr
    assert names(client) == []


@pytest.mark.parametrize(
    ("text", "space", "words"),
    [
        ("a: [", None, "not YAML"),
        ("a: 1", None, "it has no spec"),
        (None, "head.kind: [nonsense]", "nonsense"),
        (None, "head.kind: [balanced_ridge]", "nothing in it but what is declared"),
        (None, "head.kind: nonsense", "must have a list of values"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_declared(
    run: Run,
    client: Client,
    backbone: Path,
    digits: Path,
    tmp_path: Path,
    text: str | None,
    space: str | None,
    words: str,
) -> None:
    declare(tmp_path / "plain.yaml", backbone)
    if text is not None:
        (tmp_path / "plain.yaml").write_text(text)
    option = ""
    if space is not None:
        (tmp_path / "space.yaml").write_text(space)
        option = "--space space.yaml"
    refused = run(f"tune plain.yaml digits.npz {option}")
    assert refused.exit_code == exit_codes.INVALID, refused.output
    assert words in refused.stderr
    assert names(client) == []


def test_an_interrupted_search_leaves_no_model_behind(
    server: RealServer, client: Client, backbone: Path, digits: Path, tmp_path: Path
) -> None:
    declare(tmp_path / "plain.yaml", backbone)
    (tmp_path / "space.yaml").write_text("head.regularization: {low: 0.001, high: 10, log: true}")
    command = ["tune", "plain.yaml", "digits.npz", "--space", "space.yaml", "-c", "6", "--server", server.address]
    program = "from everlearn_client.cli import main; main()"
    with subprocess.Popen([sys.executable, "-c", program, *command], cwd=tmp_path, stderr=subprocess.PIPE) as process:
        deadline_s = time.monotonic() + 120
        # The control: several models are there until the signal comes, and one is learning.
        while not [each for each in client.models.list() if "tune-" in each.name and each.status.sample_count]:
            assert time.monotonic() < deadline_s, "no temporary model was seen"
            assert process.poll() is None, process.stderr.read() if process.stderr else b""
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == exit_codes.INTERRUPTED
    assert names(client) == []


def test_a_sample_whose_features_do_not_fit_here_is_refused_with_what_would(
    run: Run, client: Client, backbone: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(tmp_path / "plain.yaml", backbone)
    (tmp_path / "space.yaml").write_text(SPACE)
    monkeypatch.setattr(trial, "MOST_BYTES", 4 * 16 * 200)
    refused = run("tune plain.yaml digits.npz --space space.yaml -c 1")
    assert refused.exit_code == exit_codes.INVALID
    assert "give fewer samples" in refused.stderr
    assert names(client) == []
