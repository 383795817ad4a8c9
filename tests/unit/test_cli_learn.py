"""`everlearn learn` from folders, CSV files and archives on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.fake_server import FakeServer
from typer.testing import CliRunner, Result

from everlearn_client.cli import exit_codes
from everlearn_client.cli.app import app

Run = Callable[[str], Result]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        running.ready_model()
        yield running


@pytest.fixture
def run(server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    return lambda line: CliRunner().invoke(app, f"{line} --server {server.target}")


def image_folder(folder: Path, *, classes: int = 3, images: int = 5) -> Path:
    for label in range(classes):
        (folder / f"class-{label}").mkdir(parents=True)
        for i in range(images):
            (folder / f"class-{label}" / f"{i}.png").write_bytes(b"\x89PNG" + bytes([label, i]))
    return folder


def test_an_image_folder_is_streamed_by_class(run: Run, server: FakeServer, tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "data")
    (folder / "class-0" / "notes.txt").write_text("not an image")
    result = run("learn digits data --batch 4 -o json")
    assert result.exit_code == exit_codes.OK
    assert server.labels == {"class-0": 5, "class-1": 5, "class-2": 5}
    report = json.loads(result.stdout)
    assert (report["durable_samples"], report["durable_batches"], report["rejected"]) == (15, 4, [])
    assert report["last"]["prequential"]["accuracy"] == 1.0
    assert "ignored 1 files" in result.stderr


def test_images_beside_the_classes_are_counted_as_ignored(run: Run, server: FakeServer, tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "data", classes=1)
    for name in ("stray.PNG", "other.jpg", "notes.txt"):
        (folder / name).write_bytes(b"\x89PNG")
    result = run("learn digits data")
    assert (result.exit_code, server.labels) == (exit_codes.OK, {"class-0": 5})
    assert "ignored 2 images directly in data, such as other.jpg" in result.stderr
    assert "names its class" in result.stderr


def test_a_csv_is_read_with_and_without_a_header(run: Run, server: FakeServer, tmp_path: Path) -> None:
    image_folder(tmp_path / "data", classes=1)
    lines = [f"data/class-0/{i}.png,label {i % 2}" for i in range(5)]
    (tmp_path / "plain.csv").write_text("\n".join(lines))
    (tmp_path / "headed.csv").write_text("\n".join(["path,label", *lines]), encoding="utf-8-sig")
    assert run("learn digits plain.csv").exit_code == exit_codes.OK
    assert run("learn digits headed.csv").exit_code == exit_codes.OK
    assert server.labels == {"label 0": 6, "label 1": 4}


def test_an_archive_of_images_or_features_is_streamed(run: Run, server: FakeServer, tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=np.zeros((7, 8, 8, 3), np.uint8), labels=np.arange(7) % 2)
    np.savez(tmp_path / "features.npz", x=np.zeros((3, 16), np.float32), y=np.array(["a", "b", "b"]))
    assert run("learn digits images.npz").exit_code == exit_codes.OK
    refused = run("learn digits features.npz")
    assert refused.exit_code == exit_codes.INVALID
    assert "--feature-digest" in refused.stderr
    assert run("learn digits features.npz --feature-digest f00d").exit_code == exit_codes.OK
    assert server.opens[-1].feature_digest == "f00d"
    assert server.labels == {"0": 4, "1": 3, "a": 1, "b": 2}


def test_resume_skips_what_is_durable(run: Run, server: FakeServer, tmp_path: Path) -> None:
    image_folder(tmp_path / "data", images=10)
    server.faults.end_with = None
    first = json.loads(run("learn digits data --batch 2 --client me --resume --shuffle 7 --limit 12 -o json").stdout)
    again = json.loads(run("learn digits data --batch 2 --client me --resume --shuffle 7 -o json").stdout)
    assert (first["sent_batches"], again["skipped_batches"], again["sent_batches"]) == (6, 6, 9)
    assert server.labels == {"class-0": 10, "class-1": 10, "class-2": 10}
    assert set(server.committed.values()) == {1}
    nameless = run("learn digits data --resume")
    assert nameless.exit_code == exit_codes.INVALID
    assert "--client" in nameless.stderr


def test_the_same_seed_gives_the_same_order(run: Run, server: FakeServer, tmp_path: Path) -> None:
    image_folder(tmp_path / "data", images=10)
    for _ in range(2):
        assert run("learn digits data --shuffle 3 --limit 9").exit_code == exit_codes.OK
    assert all(count % 2 == 0 for count in server.labels.values())
    assert len(server.labels) > 1


def test_rejected_batches_are_told_and_change_the_exit_code(run: Run, server: FakeServer, tmp_path: Path) -> None:
    image_folder(tmp_path / "data")
    server.faults.reject = {2}
    result = run("learn digits data --batch 5")
    assert result.exit_code == exit_codes.PARTLY
    assert "batch 2 rejected: not an image (batch.samples.encoded_images.images[0])" in result.stderr
    assert "10 samples in 2 batches, durable" in result.stdout


def test_a_broken_connection_is_told_and_survived(run: Run, server: FakeServer, tmp_path: Path) -> None:
    image_folder(tmp_path / "data")
    server.faults.drop_after = [2]
    result = run("learn digits data --batch 2")
    assert result.exit_code == exit_codes.OK
    assert "trying again in" in result.stderr
    assert "reconnects: " in result.stdout
    assert sum(server.labels.values()) == 15


def test_an_unknown_model_is_told_before_anything_is_read(run: Run, tmp_path: Path) -> None:
    image_folder(tmp_path / "data")
    result = run("learn letters data")
    assert (result.exit_code, result.stderr) == (exit_codes.NOT_FOUND, "error: there is no models/letters (name)\n")


def save(path: Path, **arrays: object) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]  # also what numpy would not store well


@pytest.mark.parametrize(
    ("name", "make", "hint"),
    [
        ("nowhere", lambda path: None, "does not exist"),
        ("empty", lambda path: path.mkdir(), "one subfolder a class"),
        ("x.txt", lambda path: path.write_text(""), "neither a folder"),
        ("a.csv", lambda path: path.write_text("a.png\n"), "line 1: 1 columns"),
        ("b.csv", lambda path: path.write_text("path,label\n"), "no lines"),
        ("c.csv", lambda path: path.write_bytes(b"\xff\xfe\x00,a"), "UTF-8"),
        ("d.csv", lambda path: path.write_text("gone.png,a\n"), "cannot be read"),
        ("a.npz", lambda path: path.write_bytes(b"no archive"), "cannot be read"),
        ("b.npz", lambda path: save(path, x=np.array([{}], object), y=np.arange(1)), "pickles"),
        ("c.npz", lambda path: save(path, x=np.zeros((2, 8, 8, 3), np.uint8)), "one of labels, y"),
        ("d.npz", lambda path: save(path, x=np.zeros((2, 8, 8, 3), np.uint8), y=np.arange(3)), "2 samples and 3"),
        ("e.npz", lambda path: save(path, x=np.zeros((2, 8, 8), np.uint8), y=np.arange(2)), "np.stack"),
        ("f.npz", lambda path: save(path, x=np.zeros((2, 8, 8, 3), np.uint8), y=np.zeros(2)), "whole number"),
        ("g.npz", lambda path: save(path, x=np.zeros((2, 64)), y=np.arange(2)), "Features"),
    ],
)
def test_data_that_cannot_be_streamed_is_refused_with_what_would_be_right(
    run: Run, tmp_path: Path, name: str, make: Callable[[Path], object], hint: str
) -> None:
    make(tmp_path / name)
    result = run(f"learn digits {name}")
    assert result.exit_code == exit_codes.INVALID, result.output
    assert hint in result.stderr
    assert "Traceback" not in result.output
