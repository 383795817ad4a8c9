"""The TypeScript client over time: differences, lines that break, and versions that fail their self-test."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

import numpy as np
import pytest
from tests import tiny
from tests.e2e.typescript import RUNTIMES, Quiet, ask, built, check, exported, image_of, serving
from tests.real_server import RealServer
from typer.testing import CliRunner

from everlearn_client import Client
from everlearn_client.cli.app import app

LABELS = ("ash", "birch", "cédre")


@pytest.fixture
def node() -> str:
    return built()


@dataclass(frozen=True)
class Exports:
    """Of one model, one after the other; in the folder of the new one lies the difference from the old."""

    old: Path
    new: Path


@pytest.fixture(scope="module")
def exports(server: RealServer, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    made = Exports(*(tmp_path_factory.mktemp(name) for name in ("old", "new")))
    backbone = tiny.write_backbone(tmp_path_factory.mktemp("backbone"), 256)
    server.declare(tiny.declaration(backbone, unknown="abstain"))
    with server.client(client_id="teacher") as teacher:
        teacher.learn("tiny", [(tiny.images(40, index), [label] * 40) for index, label in enumerate(LABELS)])
        exported(server, "tiny", made.old)
        teacher.learn("tiny", [(tiny.images(8, index, seed=9), [label] * 8) for index, label in enumerate(LABELS)])
        exported(server, "tiny", made.new, "--difference-from", str(made.old))
    return made


@dataclass
class Line:
    """What a web server did, and how often the line is to break."""

    breaks_after: int = 0
    """Bytes of a body; 0: it holds."""
    ranges: bool = True
    """Whether the server knows them."""
    sent: Counter[str] = field(default_factory=Counter)
    """Bytes, by file."""


class Cdn(Quiet):
    """A plain web server that knows ranges, over a line that breaks."""

    line: Line

    def do_GET(self) -> None:  # noqa: N802  # names are http.server's
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        whole, begin = path.read_bytes(), 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and self.line.ranges:
            begin = int(asked[1])
            self.send_response(HTTPStatus.PARTIAL_CONTENT)
            self.send_header("Content-Range", f"bytes {begin}-{len(whole) - 1}/{len(whole)}")
        else:
            self.send_response(HTTPStatus.OK)
        self.send_header("Content-Length", str(len(whole) - begin))
        self.end_headers()
        body = whole[begin:]
        if self.line.breaks_after and path.name in ("model.onnx", *_deltas(path.parent)):
            body = body[: self.line.breaks_after]
        self.wfile.write(body)
        self.line.sent[path.name] += len(body)
        self.close_connection = True


def _deltas(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("model.onnx.*.delta")]


@contextmanager
def cdn(folder: Path, line: Line) -> Iterator[str]:
    handler = type("ThisCdn", (Cdn,), {"line": line})
    with serving(functools.partial(handler, directory=str(folder))) as address:
        yield address


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_of_a_new_head_only_the_difference_is_downloaded_and_the_answers_are_the_servers(
    node: str, client: Client, exports: Exports, runtime: str
) -> None:
    line, images = Line(), [tiny.images(1, index, seed=5)[0] for index in range(3)]
    key = client.info().public_key
    asked = {"runtime": runtime, "options": {"serverKey": key}, "samples": [image_of(image) for image in images]}
    with cdn(exports.new, line) as address:
        told = ask(node, url=address, base=exports.old, **asked)
    assert "error" not in told, told
    (delta,) = _deltas(exports.new)
    assert line.sent[delta] == (exports.new / delta).stat().st_size < 0.5 * (exports.new / "model.onnx").stat().st_size
    assert "model.onnx" not in line.sent
    served = [client.predict("tiny", image[None], version=told["number"]) for image in images]
    for answer, prediction in zip(told["answers"], served, strict=True):
        check(answer, prediction)
    assert told["off"] < 1e-3
    with cdn(exports.new, control := Line()) as address:
        assert ask(node, url=address, **asked)["answers"] == told["answers"]
    assert control.sent["model.onnx"] == (exports.new / "model.onnx").stat().st_size


@pytest.mark.parametrize("ranges", [True, False])
def test_a_line_that_breaks_costs_nothing_that_has_arrived(node: str, exports: Exports, ranges: bool) -> None:
    size = (exports.new / "model.onnx").stat().st_size
    line = Line(breaks_after=size // 4 + 1 if ranges else 0, ranges=ranges)
    with cdn(exports.new, line) as address:
        whole = ask(node, url=address)
    assert "error" not in whole, whole
    assert line.sent["model.onnx"] == size
    (delta,) = _deltas(exports.new)
    size = (exports.new / delta).stat().st_size
    with cdn(exports.new, line := Line(breaks_after=size // 3)) as address:
        updated = ask(node, url=address, base=exports.old)
    assert (updated["version"], line.sent[delta], line.sent["model.onnx"]) == (whole["version"], size, 0)


def test_a_difference_that_is_no_good_costs_a_download_of_the_whole(
    node: str, exports: Exports, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(exports.new, copy)
    (delta,) = _deltas(copy)
    damaged = bytearray((copy / delta).read_bytes())
    damaged[-1] ^= 1
    size = (copy / "model.onnx").stat().st_size
    told = json.loads((copy / "model.updates.json").read_text())
    good = json.dumps(told)
    for each in told["differences"]:
        if each["of"] == "model.onnx":
            each["sha256"] = hashlib.sha256(damaged).hexdigest()
    sealed, elsewhere = json.dumps(told), good.replace(delta, f"https://example.invalid/{delta}")
    for file, listed in (
        (damaged, good),
        (damaged, sealed),
        (None, good),
        (b"", good),
        (None, elsewhere),
        (None, "<p>"),
    ):
        (copy / delta).unlink(missing_ok=True)
        if file is not None:
            (copy / delta).write_bytes(file)
        (copy / "model.updates.json").write_text(listed)
        with cdn(copy, line := Line()) as address:
            found = ask(node, url=address, base=exports.old)
        assert "error" not in found, found
        assert line.sent["model.onnx"] == size
    # The other way round nothing is listed: there is no difference from this base.
    with cdn(exports.old, line := Line()) as address:
        assert "error" not in ask(node, url=address, base=exports.new)
    assert line.sent["model.onnx"] == (exports.old / "model.onnx").stat().st_size


def test_a_kept_folder_follows_answers_offline_and_survives_rot(node: str, exports: Exports, tmp_path: Path) -> None:
    kept, sample = tmp_path / "kept", image_of(tiny.images(1, 1, seed=5)[0])
    first = ask(node, kept=kept, folder=exports.old, samples=[sample])
    assert (first["before"], first["updated"]) == ("", True)
    offline = ask(node, kept=kept, samples=[sample])
    assert (offline["before"], offline["answers"]) == (first["version"], first["answers"])
    assert ask(node, kept=kept, folder=exports.old)["updated"] is False
    with cdn(exports.new, line := Line()) as address:
        second = ask(node, kept=kept, url=address, samples=[sample])
    assert (second["updated"], second["version"] != first["version"], line.sent["model.onnx"]) == (True, True, 0)
    running = kept / (kept / "active").read_text() / "model.onnx"
    running.write_bytes(running.read_bytes()[:-1] + b"?")
    after = ask(node, kept=kept, samples=[sample])
    assert (after["version"], after["answers"]) == (first["version"], first["answers"])
    again = ask(node, kept=kept, folder=exports.new, samples=[sample])
    assert (again["updated"], again["answers"]) == (True, second["answers"])


def test_a_download_goes_on_where_the_program_before_it_ended(node: str, exports: Exports, tmp_path: Path) -> None:
    kept, size = tmp_path / "kept", (exports.new / "model.onnx").stat().st_size
    ask(node, kept=kept, folder=exports.old)
    bare = tmp_path / "bare"
    shutil.copytree(exports.new, bare)
    (bare / "model.updates.json").unlink()
    sha256 = hashlib.sha256((bare / "model.onnx").read_bytes()).hexdigest()
    spare = "b" if (kept / "active").read_text() == "a" else "a"
    # What a program leaves behind that is killed amid a download.
    (kept / spare / f"model.onnx.{sha256[:16]}.part").write_bytes((bare / "model.onnx").read_bytes()[: size - 1000])
    with cdn(bare, line := Line()) as address:
        assert ask(node, kept=kept, url=address)["updated"] is True
    assert line.sent["model.onnx"] == 1000
    assert not list(kept.rglob("*.part"))


def test_a_version_that_fails_its_self_test_is_not_run_and_the_one_before_it_is(
    node: str, exports: Exports, tmp_path: Path
) -> None:
    kept, wrong = tmp_path / "kept", tmp_path / "wrong"
    shutil.copytree(exports.new, wrong)
    first = ask(node, kept=kept, folder=exports.old)
    with np.load(exports.new / "probes.npz", allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for name, change in (("expected", 0.5), ("novelty", 100.0), ("expected", np.nan)):
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **{**arrays, name: arrays[name] + np.float32(change)})
        _replace(wrong, "probes.npz", buffer.getvalue())
        told = ask(node, kept=kept, folder=wrong)
        assert (told["error"], told["version"]) == ("DataLoss", first["version"])
        assert "a probe differ" in told["message"]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{**arrays, "sample_0": np.zeros((1, 4), np.float32)})
    _replace(wrong, "probes.npz", buffer.getvalue())
    assert "does not fit" in ask(node, kept=kept, folder=wrong)["message"]
    _replace(wrong, "probes.npz", b"PK nothing")
    assert "no .npz" in ask(node, kept=kept, folder=wrong)["message"]
    _replace(wrong, "probes.npz", (exports.new / "probes.npz").read_bytes())
    assert ask(node, kept=kept, folder=wrong)["updated"] is True


def _replace(folder: Path, name: str, data: bytes) -> None:
    """As a server would that exports this: the manifest says so, unsigned."""
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "model.manifest.json").read_text())
    manifest["files"][name] = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "model.manifest.json").write_text(json.dumps(manifest))


def test_the_command_writes_differences_from_several_and_refuses_what_is_no_export(
    server: RealServer, exports: Exports, tmp_path: Path
) -> None:
    into = tmp_path / "site"
    shutil.copytree(exports.old, into)
    # Also from what lay in the same folder.
    exported(server, "tiny", into, "--difference-from", str(into), "--difference-from", str(exports.new))
    told = json.loads((into / "model.updates.json").read_text())
    wanted = hashlib.sha256((into / "model.onnx").read_bytes()).hexdigest()
    old = hashlib.sha256((exports.old / "model.onnx").read_bytes()).hexdigest()
    found = [each for each in told["differences"] if each["of"] == "model.onnx"]
    assert [(each["base_sha256"], each["target_sha256"]) for each in found] == [(old, wanted)]
    nothing = [
        "export",
        "tiny",
        "-d",
        str(tmp_path / "x"),
        "--server",
        server.address,
        "--difference-from",
        str(tmp_path),
    ]
    refused = CliRunner().invoke(app, [*nothing, "--difference-from", str(tmp_path)])
    assert (refused.exit_code != 0, "no export to differ from" in refused.output) == (True, True), refused.output
    assert not (tmp_path / "x").exists()
    exported(server, "tiny", into)
    assert not (into / "model.updates.json").exists()
