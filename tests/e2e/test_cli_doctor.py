"""`everlearn doctor` and `everlearn backbones rank` against a real server: what they find, and that nothing is left."""

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
import numpy.typing as npt
import pytest
import yaml
from sklearn.datasets import load_digits
from tests import tiny
from tests.e2e.server_calls import encoded
from tests.real_server import RealServer
from typer.testing import CliRunner, Result

from everlearn_client import Client
from everlearn_client.cli import examining, exit_codes
from everlearn_client.cli.app import app

Images = npt.NDArray[np.uint8]
Run = Callable[[str], Result]


@pytest.fixture
def run(server: RealServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    return lambda line: CliRunner().invoke(app, f"{line} --server {server.address}")


def save(path: Path, images: Images, labels: list[str]) -> None:
    np.savez(path, images=images, labels=np.array(labels))


def colours(each: int, classes: int = 3) -> tuple[Images, list[str]]:
    """Classes that differ in colour: the tiny backbone sees that."""
    images = np.concatenate([tiny.images(each, label) for label in range(classes)])
    return images, [f"c{label}" for label in range(classes) for _ in range(each)]


def levels(result: Result) -> dict[str, str]:
    return {each["check"]: each["level"] for each in json.loads(result.stdout)["findings"]}


def names(client: Client) -> list[str]:
    return [model.name for model in client.models.list()]


def test_a_sound_model_and_sound_data_have_nothing_bad_and_the_model_is_left_as_it_was(
    run: Run, server: RealServer, client: Client, backbone: Path, tmp_path: Path
) -> None:
    server.declare(tiny.declaration(backbone, "sound"))
    client.learn("sound", [colours(4)])
    before, models = client.models.get("sound"), names(client)
    versions = [version.number for version in client.models.versions("sound")]
    save(tmp_path / "good.npz", *colours(60))
    result = run("doctor sound good.npz -o json")
    assert result.exit_code == exit_codes.OK, result.output
    found = levels(result)
    assert found["baseline"] == found["labels"] == found["duplicates"] == found["range"] == "ok"
    assert found["one batch"] == found["regularization"] == "ok"
    assert set(found.values()) <= {"ok", "warn"}
    after = client.models.get("sound")
    assert (after.etag, after.status.memory_digest) == (before.etag, before.status.memory_digest)
    assert [version.number for version in client.models.versions("sound")] == versions
    assert names(client) == models


def test_a_declared_regularization_that_is_far_off_is_found(run: Run, server: RealServer, tmp_path: Path) -> None:
    head = {"kind": "ridge", "regularization": 1000.0}
    server.declare(tiny.declaration(tiny.write_backbone(tmp_path, 64), "stiff", head=head))
    images, labels = digits(400)
    save(tmp_path / "digits.npz", images, labels[:400])
    result = run("doctor stiff digits.npz --samples 400 -o json")
    finding = next(each for each in json.loads(result.stdout)["findings"] if each["check"] == "regularization")
    assert finding["level"] == "warn"
    assert "1e+03, declared" in finding["found"]
    assert finding["advice"].startswith("leave head.regularization out, or write ")


def test_what_is_wrong_with_the_data_is_found(run: Run, server: RealServer, backbone: Path, tmp_path: Path) -> None:
    server.declare(tiny.declaration(backbone, "ill"))
    images, labels = colours(60)
    shuffled = np.random.default_rng(0).permutation(labels).tolist()
    save(tmp_path / "shuffled.npz", images, shuffled)
    result = run("doctor ill shuffled.npz -o json")
    assert (result.exit_code, levels(result)["baseline"]) == (exit_codes.DIFFERENT, "bad")
    save(tmp_path / "unscaled.npz", (images // 128).astype(np.uint8), labels)
    assert levels(run("doctor ill unscaled.npz -o json"))["range"] == "bad"
    save(tmp_path / "conflicts.npz", np.concatenate([images, images[:20]]), [*labels, *["c2"] * 20])
    assert levels(run("doctor ill conflicts.npz -o json"))["duplicates"] == "bad"
    save(tmp_path / "single.npz", images, ["all"] * len(images))
    single = levels(run("doctor ill single.npz -o json"))
    assert single["labels"] == "bad"
    assert "baseline" not in single


def test_a_table_says_in_words_what_to_do(run: Run, server: RealServer, backbone: Path, tmp_path: Path) -> None:
    server.declare(tiny.declaration(backbone, "worded"))
    for label in range(2):
        (tmp_path / "black" / f"c{label}").mkdir(parents=True)
        for row in range(20):
            (tmp_path / "black" / f"c{label}" / f"{row}.png").write_bytes(encoded(np.zeros((5, 5, 3), np.uint8)))
    result = run("doctor worded black")
    assert result.exit_code == exit_codes.DIFFERENT
    assert "multiply by 255 before the cast" in result.stdout
    assert "40 of 40 images are of one tone" in result.stdout
    assert "40 of 40 samples carry two labels for the same bytes" in result.stdout
    missing = run("doctor nobody black")
    assert missing.exit_code == exit_codes.NOT_FOUND


def test_features_are_refused_because_they_are_of_one_backbone(
    run: Run, server: RealServer, backbone: Path, tmp_path: Path
) -> None:
    server.declare(tiny.declaration(backbone, "images-only"))
    np.savez(tmp_path / "features.npz", features=np.zeros((50, 16), np.float32), labels=np.arange(50) % 2)
    refused = run("doctor images-only features.npz")
    assert refused.exit_code == exit_codes.INVALID
    assert "give the samples themselves" in refused.stderr


TABLE: dict[str, Any] = {
    "apiVersion": "everlearn/v1",
    "kind": "Model",
    "spec": {"backbone": {"source": "identity"}, "input": {"modality": "tensor", "shape": [4], "range": [-10, 10]}},
}


def table_of(path: Path, *, unit: float = 1.0) -> None:
    """A CSV of three classes around centres of their own."""
    rng = np.random.default_rng(0)
    rows = [(rng.normal(3 * label, 1, 4) * unit, label) for label in rng.integers(0, 3, 120).tolist()]
    lines = [",".join([*(f"{value:.4f}" for value in values), f"c{label}"]) for values, label in rows]
    path.write_text("a,b,c,d,label\n" + "\n".join(lines))


def test_a_table_is_examined_as_numbers(run: Run, server: RealServer, client: Client, tmp_path: Path) -> None:
    server.declare(yaml.safe_dump({**TABLE, "metadata": {"name": "table"}}))
    before = names(client)
    table_of(tmp_path / "sound.csv")
    sound = run("doctor table sound.csv -o json")
    assert sound.exit_code == exit_codes.OK, sound.output
    found = levels(sound)
    assert found["range"] == found["resolution"] == found["baseline"] == found["regularization"] == "ok"
    assert "brightness" not in found
    table_of(tmp_path / "thousandths.csv", unit=0.001)
    assert levels(run("doctor table thousandths.csv -o json"))["resolution"] == "bad"
    assert names(client) == before


def test_tables_rank_random_features_beside_none(run: Run, tmp_path: Path) -> None:
    plain = {**TABLE, "metadata": {"name": "plain"}}
    lifted = {**TABLE, "metadata": {"name": "lifted"}, "spec": {**TABLE["spec"], "projection": {"dim": 64}}}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump_all([plain, lifted]))
    table_of(tmp_path / "table.csv")
    result = run("backbones rank two.yaml table.csv -o json")
    assert result.exit_code == exit_codes.OK, result.output
    assert [each["feature_dim"] for each in json.loads(result.stdout)["candidates"]] in ([4, 64], [64, 4])
    mixed = tmp_path / "mixed.yaml"
    mixed.write_text(yaml.safe_dump_all([plain, {**plain, "spec": {"backbone": {"source": "folder:/x.onnx"}}}]))
    refused = run("backbones rank mixed.yaml table.csv")
    assert refused.exit_code == exit_codes.INVALID
    assert "different kinds" in refused.stderr


def test_a_head_that_learns_by_steps_is_examined_by_its_first_batch_and_its_learning_rate(
    run: Run,
    server: RealServer,
    client: Client,
    backbone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(examining, "RATES", (0.1,))  # each is a process on the server: one will do here
    server.declare(tiny.declaration(backbone, "stepping", recipe="latent_replay"))
    before = names(client)
    save(tmp_path / "colours.npz", *colours(40))
    result = run("doctor stepping colours.npz -o json")
    findings = {each["check"]: each for each in json.loads(result.stdout)["findings"]}
    begun = findings["first steps"]["figures"]
    assert begun["first_loss"] == pytest.approx(begun["log_classes"], abs=0.5)
    assert begun["learning_rate"] > 0
    assert "accuracy at 0.005" in findings["learning rate"]["figures"]
    assert "regularization" not in findings
    assert findings["backbone"]["figures"]["gcv_residual"] < 0.5  # by a head that is solved: this model keeps no sums
    assert names(client) == before


def test_another_task_than_classification_is_refused(run: Run, tmp_path: Path) -> None:
    table_of(tmp_path / "table.csv")
    spec = {**TABLE["spec"], "task": "multilabel"}
    (tmp_path / "sets.yaml").write_text(yaml.safe_dump({**TABLE, "metadata": {"name": "sets"}, "spec": spec}))
    refused = run("backbones rank sets.yaml table.csv")
    assert refused.exit_code == exit_codes.INVALID
    assert "judges classification only" in refused.stderr


def digits(count: int) -> tuple[Images, list[str]]:
    """Real digits, 16 x 16, white on black."""
    images, target = load_digits(return_X_y=True)
    grey = (images[:count].reshape(-1, 8, 8).clip(0, 16) * 255 / 16).astype(np.uint8)
    return np.repeat(grey.repeat(2, axis=1).repeat(2, axis=2)[..., None], 3, axis=3), [str(each) for each in target]


def test_real_digits_are_learned_beyond_the_baseline_but_a_tiny_backbone_is_not_praised(
    run: Run, server: RealServer, tmp_path: Path
) -> None:
    server.declare(tiny.declaration(tiny.write_backbone(tmp_path, 64), "digits"))
    images, labels = digits(400)
    save(tmp_path / "digits.npz", images, labels[:400])
    result = run("doctor digits digits.npz --samples 400 -o json")
    found = levels(result)
    findings = {each["check"]: each for each in json.loads(result.stdout)["findings"]}
    assert found["labels"] == found["duplicates"] == "ok"
    assert found["baseline"] in ("ok", "warn")
    assert findings["baseline"]["figures"]["accuracy"] > 3 * findings["baseline"]["figures"]["baseline"]
    assert findings["backbone"]["figures"]["gcv_residual"] > 0.3
    assert findings["colour"]["figures"]["grey"] == 64


def candidates(path: Path, *backbones: Path) -> None:
    path.write_text("\n---\n".join(tiny.declaration(each, "mine") for each in backbones))


def test_the_better_backbone_is_recommended_and_nothing_is_left(run: Run, client: Client, tmp_path: Path) -> None:
    images, labels = digits(320)
    save(tmp_path / "digits.npz", images, labels[:320])
    large, small = tiny.write_backbone(tmp_path, 96), tiny.write_backbone(tmp_path, 2)
    candidates(tmp_path / "two.yaml", small, large)
    before = names(client)
    result = run("backbones rank two.yaml digits.npz -o json")
    assert result.exit_code == exit_codes.OK, result.output
    report = json.loads(result.stdout)
    assert report["recommended"] == large.name
    assert [each["name"] for each in report["candidates"]] == [large.name, small.name]
    first, second = report["candidates"]
    assert (first["feature_dim"], second["feature_dim"]) == (96, 2)
    assert first["log_me"] > second["log_me"]
    assert first["gcv_residual"] < second["gcv_residual"]
    assert 0 < first["ms_per_image"] < 1000
    assert first["size_bytes"] > second["size_bytes"] > 0
    assert report["tested"] == 300
    assert names(client) == before
    table = run("backbones rank two.yaml digits.npz")
    assert f"Take {large.name}: " in table.stdout
    assert table.stdout.splitlines()[1].startswith(f"*  {large.name}")


def test_one_that_cannot_be_tried_is_told_and_the_others_go_on(
    run: Run, client: Client, backbone: Path, tmp_path: Path
) -> None:
    save(tmp_path / "colours.npz", *colours(40))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a graph")
    candidates(tmp_path / "some.yaml", broken, backbone)
    before = names(client)
    result = run("backbones rank some.yaml colours.npz -o json")
    assert result.exit_code == exit_codes.PARTLY, result.output
    report = json.loads(result.stdout)
    assert [each["name"] for each in report["failed"]] == ["broken.onnx"]
    assert report["recommended"] == backbone.name
    candidates(tmp_path / "none.yaml", broken)
    assert run("backbones rank none.yaml colours.npz").exit_code not in (exit_codes.OK, exit_codes.PARTLY)
    assert names(client) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_trial_leaves_no_model_behind(
    number: signal.Signals, server: RealServer, client: Client, backbone: Path, tmp_path: Path
) -> None:
    save(tmp_path / "many.npz", *colours(2000))
    candidates(tmp_path / "one.yaml", backbone)
    before = names(client)
    command = ["backbones", "rank", "one.yaml", "many.npz", "--samples", "6000", "--server", server.address]
    # A shell's background job ignores SIGINT, and so would what a test started from one starts.
    heeds = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{heeds}; from everlearn_client.cli import main; main()"
    with subprocess.Popen([sys.executable, "-c", program, *command], cwd=tmp_path, stderr=subprocess.PIPE) as process:
        deadline_s = time.monotonic() + 120
        # The control: the model is there until the signal comes, and is learning.
        while not [each for each in client.models.list() if "rank-" in each.name and each.status.sample_count]:
            assert time.monotonic() < deadline_s, "no temporary model was seen"
            assert process.poll() is None, process.stderr.read() if process.stderr else b""
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(timeout=120) == exit_codes.INTERRUPTED
    assert names(client) == before
