"""`everlearn edge run`: a real command beside a real server, and a folder that a camera writes into."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests import tiny
from tests.faults.proxy import Proxy
from tests.real_server import RealServer
from typer.testing import CliRunner

from everlearn_client import Client
from everlearn_client.cli import exit_codes
from everlearn_client.cli.app import app

LABELS = ("ash", "birch", "cedar")
WAIT_S = 240.0
MAIN = "from everlearn_client.cli import main; main()"


def declare(server: RealServer, backbone: Path, name: str, **spec: object) -> None:
    server.declare(tiny.declaration(backbone, name=name, **spec))
    with server.client() as teacher:
        teacher.learn(name, [(tiny.images(20, index), [label] * 20) for index, label in enumerate(LABELS)])


def png(label: int, seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(tiny.images(1, label, seed=seed)[0]).save(out, "PNG")
    return out.getvalue()


def until(condition: Callable[[], object]) -> None:
    give_up_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up_s, "it did not come to pass"
        time.sleep(0.02)


class Device:
    """The command in a process of its own."""

    def __init__(self, server: str, model: str, folder: Path, *options: str) -> None:
        self.camera = folder / "camera"
        self.camera.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", MAIN, "edge", "run", model, "--folder", str(folder / "device")]
        command += ["--source", str(self.camera), "--server", server, "--watch-every", "0.2", *options]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.records: list[dict[str, Any]] = []
        self.said = ""
        self._threads = [threading.Thread(target=read, daemon=True) for read in (self._hear, self._listen)]
        for thread in self._threads:
            thread.start()

    def _hear(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.records.append(json.loads(line))

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line

    def photograph(self, name: str, data: bytes) -> None:
        path = self.camera / name
        path.parent.mkdir(exist_ok=True)
        draft = path.with_name(f".{path.name}")
        draft.write_bytes(data)
        draft.rename(path)

    def record(self, name: str) -> dict[str, Any]:
        until(lambda: any(each["file"] == name for each in self.records) or self.process.poll() is not None)
        return next(each for each in self.records if each["file"] == name)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        status = self.process.wait(timeout=WAIT_S)
        for thread, stream in zip(self._threads, (self.process.stdout, self.process.stderr), strict=True):
            thread.join()
            assert stream is not None
            stream.close()
        return status

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.wait()


@pytest.fixture
def teacher(server: RealServer) -> Iterator[Client]:
    with server.client() as connected:
        yield connected


def samples(client: Client, name: str) -> int:
    return client.models.get(name).status.sample_count


def test_a_device_answers_each_file_and_teaches_those_in_folders_of_their_label_offline_too(
    server: RealServer, teacher: Client, backbone: Path, tmp_path: Path
) -> None:
    declare(server, backbone, "camera")
    before = samples(teacher, "camera")
    options = ("--settle", "0", "--labels", "folder", "--duplicates")
    with Device(server.address, "camera", tmp_path, *options) as device:
        device.photograph("plain.png", png(1, 77))
        plain = device.record("plain.png")
        assert set(plain) == {"file", "label", "score", "version", "seconds"}
        assert plain["label"] == "birch"
        served = teacher.predict("camera", [png(1, 77)], version=int(plain["version"].rpartition("/")[2])).top[0][0]
        assert plain["score"] == pytest.approx(served.score, abs=1e-3)
        device.photograph("birch/known.png", png(1, 78))
        known = device.record("birch/known.png")
        assert (known["truth"], known["decision"]) == ("birch", "send")
        until(lambda: samples(teacher, "camera") == before + 1)
        server.terminate()
        for number in range(5):
            device.photograph(f"elm/{number}.png", png(9, number))
        assert device.record("elm/4.png")["decision"] == "send"
        assert device.end() == exit_codes.OK
    assert "6 samples wait" not in device.said
    assert "5 samples wait" in device.said
    assert not list(device.camera.glob("**/.*"))
    assert len(list((device.camera / "done").rglob("*.png"))) == 7

    with Device(server.address, "camera", tmp_path, *options) as device:  # starts with no server in reach
        device.photograph("alone.png", png(2, 79))
        assert device.record("alone.png")["label"] == "cedar"
        server.start()
        until(lambda: samples(teacher, "camera") == before + 6)
        before_it, numbers = device.records[-1]["version"], iter(range(100_000))

        def another_answers() -> bool:
            name = f"again-{next(numbers)}.png"
            device.photograph(name, png(2, 80))
            return bool(device.record(name)["version"] != before_it)

        until(another_answers)  # the version that knows what was taught has come down
        assert device.end() == exit_codes.OK
    assert "0 samples wait" in device.said


def test_a_file_that_is_no_picture_is_a_record_with_an_error_and_the_next_one_is_answered(
    server: RealServer, backbone: Path, tmp_path: Path
) -> None:
    declare(server, backbone, "broken")
    with Device(server.address, "broken", tmp_path, "--settle", "0", "--labels", "sidecar") as device:
        device.photograph("a.jpg", b"no picture")
        device.photograph("b.png", png(0, 1))
        device.photograph("c.png.label", b"two\nlines\n")
        device.photograph("c.png", png(0, 2))
        np.save(device.camera / ".d.npy", np.zeros((3, 3), np.float32))
        (device.camera / ".d.npy").rename(device.camera / "d.npy")
        broken, fine, two, other = (device.record(name) for name in ("a.jpg", "b.png", "c.png", "d.npy"))
        assert device.end(signal.SIGINT) == exit_codes.INTERRUPTED
    assert set(broken) == {"file", "error", "seconds"}
    assert broken["error"]["code"] == "INVALID_ARGUMENT"
    assert broken["error"]["field"] == "file"
    assert "not a JPEG" in broken["error"]["message"]
    assert fine["label"] == "ash"
    assert (two["label"], two["error"]["field"]) == ("ash", "label")
    assert "uint8 [N, H, W, 3]" in other["error"]["message"]
    assert sorted(path.name for path in (device.camera / "failed").iterdir()) == [
        "a.jpg",
        "c.png",
        "c.png.label",
        "d.npy",
    ]
    assert [path.name for path in (device.camera / "done").iterdir()] == ["b.png"]


def test_once_reads_what_is_there_sends_it_and_ends(
    server: RealServer, teacher: Client, backbone: Path, tmp_path: Path
) -> None:
    declare(server, backbone, "once")
    before = samples(teacher, "once")
    camera, device = tmp_path / "camera", tmp_path / "device"
    camera.mkdir()
    (camera / "a.png").write_bytes(png(0, 1))
    (camera / "b.png").write_bytes(png(0, 2))
    line = f"edge run once --folder {device} --source {camera} -s {server.address} --once --label ash --after delete"
    done = CliRunner().invoke(app, f"{line} --settle 0.05 --duplicates")
    assert done.exit_code == exit_codes.OK, done.output
    assert [json.loads(each)["file"] for each in done.stdout.splitlines()] == ["a.png", "b.png"]
    assert samples(teacher, "once") == before + 2
    assert list(camera.iterdir()) == []
    (camera / "c.png").write_bytes(b"no picture")
    done = CliRunner().invoke(app, line)
    assert done.exit_code == exit_codes.PARTLY, done.output
    assert (device / "identity.0").stat().st_mode & 0o077 == 0


def test_a_device_ends_in_order_while_its_server_hangs_and_sends_later(
    server: RealServer, teacher: Client, backbone: Path, tmp_path: Path
) -> None:
    declare(server, backbone, "hangs")
    before = samples(teacher, "hangs")
    options = ("--settle", "0", "--label", "ash", "--duplicates")
    with Proxy() as proxy:
        proxy.target = server.address
        with Device(proxy.address, "hangs", tmp_path, *options) as device:
            device.photograph("a.png", png(0, 1))
            device.record("a.png")
            until(lambda: samples(teacher, "hangs") == before + 1)
            proxy.holds_answers = True  # the connection stands, and nothing comes back
            device.photograph("b.png", png(0, 2))
            assert device.record("b.png")["decision"] == "send"
            asked_bytes = proxy.passed_bytes["requests"]
            until(lambda: proxy.passed_bytes["requests"] > asked_bytes)  # somebody there waits for an answer
            assert device.end() == exit_codes.OK
    assert "Traceback" not in device.said
    assert re.search(r"; [12] samples wait", device.said)  # that a.png is durable may not have been heard either
    with Device(server.address, "hangs", tmp_path, *options) as device:
        device.photograph("c.png", png(0, 3))
        device.record("c.png")
        until(lambda: samples(teacher, "hangs") == before + 3)  # each counted once
        assert device.end() == exit_codes.OK


def test_a_device_may_run_half_precision(server: RealServer, backbone: Path, tmp_path: Path) -> None:
    declare(server, backbone, "half")
    (tmp_path / "camera").mkdir()
    (tmp_path / "camera" / "a.png").write_bytes(png(0, 1))
    line = f"edge run half --source {tmp_path / 'camera'} --folder {tmp_path / 'device'} -s {server.address} --once"
    done = CliRunner().invoke(app, f"{line} --precision fp16")
    assert (done.exit_code, json.loads(done.stdout)["label"]) == (exit_codes.OK, "ash"), done.output
    refused = CliRunner().invoke(app, f"{line} --precision fp16 --send features")
    assert (refused.exit_code, "features computed in fp16" in refused.stderr) == (exit_codes.INVALID, True)
    unknown = CliRunner().invoke(app, f"{line.replace('device', 'other')} --precision fp8")
    assert unknown.exit_code == exit_codes.INVALID, unknown.output


def test_only_what_the_model_is_unsure_of_is_taught_and_twins_are_not(
    server: RealServer, backbone: Path, tmp_path: Path
) -> None:
    declare(server, backbone, "choosy")
    camera = tmp_path / "camera"
    camera.mkdir()
    (camera / "a.png").write_bytes(png(0, 1))
    (camera / "b.png").write_bytes(png(0, 1))
    line = f"edge run choosy --source {camera} -s {server.address} --once --label ash --after leave --settle 0"

    def decisions(folder: str, *options: str) -> list[str]:
        done = CliRunner().invoke(app, f"{line} --folder {tmp_path / folder} {' '.join(options)}")
        assert done.exit_code == exit_codes.OK, done.output
        return [json.loads(each)["decision"] for each in done.stdout.splitlines()]

    assert decisions("first") == ["send", "duplicate"]
    assert decisions("first") == []  # left, and not read again
    assert decisions("second", "--only-unsure", "--margin", "0.01", "--temperature", "0.1") == ["sure", "sure"]
    assert decisions("third", "--duplicates", "--per-hour", "1") == ["send", "rate"]


def test_on_a_metered_line_lessons_wait(server: RealServer, teacher: Client, backbone: Path, tmp_path: Path) -> None:
    declare(server, backbone, "metered")
    before = samples(teacher, "metered")
    camera, metered = tmp_path / "camera", tmp_path / "metered"
    camera.mkdir()
    metered.touch()
    (camera / "a.png").write_bytes(png(0, 1))
    line = f"edge run metered --source {camera} --folder {tmp_path / 'device'} -s {server.address} --once --settle 0"
    done = CliRunner().invoke(app, f"{line} --label ash --metered {metered}")
    assert "1 samples wait" in done.stderr
    assert samples(teacher, "metered") == before
    metered.unlink()
    done = CliRunner().invoke(app, f"{line} --metered {metered}")
    assert "0 samples wait" in done.stderr
    assert samples(teacher, "metered") == before + 1


def test_a_device_that_has_no_model_says_what_is_wrong(server: RealServer, backbone: Path, tmp_path: Path) -> None:
    declare(server, backbone, "present")
    (tmp_path / "camera").mkdir()
    (tmp_path / "camera" / "a.png").write_bytes(png(0, 1))

    def run(line: str, *, model: str = "present", address: str = server.address) -> tuple[int, str]:
        common = f"edge run {model} --source {tmp_path / 'camera'} --folder {tmp_path / model} -s {address}"
        done = CliRunner().invoke(app, f"{common} {line}")
        return done.exit_code, done.stderr

    code, said = run("--once", address="127.0.0.1:1")
    assert (code, "is the server running?" in said) == (exit_codes.UNAVAILABLE, True)
    code, said = run("", model="absent")
    assert (code, "absent" in said) == (exit_codes.NOT_FOUND, True), said
    code, said = run("--server-key 00", model="present")
    assert (code, "64 hexadecimal digits" in said) == (exit_codes.INVALID, True)
    code, said = run(f"--once --server-key {'0' * 64}")
    assert (code, "not signed by the server" in said) == (exit_codes.FAULT, True)
    assert [path.name for path in (tmp_path / "camera").iterdir()] == ["a.png"]  # waits


def test_a_reader_that_goes_away_ends_it_in_order(server: RealServer, backbone: Path, tmp_path: Path) -> None:
    declare(server, backbone, "pipe")
    (tmp_path / "camera").mkdir()
    (tmp_path / "camera" / "a.png").write_bytes(png(0, 1))
    command = [sys.executable, "-c", MAIN, "edge", "run", "pipe", "--folder", str(tmp_path / "device")]
    command += ["--source", str(tmp_path / "camera"), "--server", server.address]
    ours, its = os.pipe()
    os.close(ours)
    try:
        done = subprocess.run(command, stdout=its, stderr=subprocess.PIPE, text=True, timeout=WAIT_S, check=False)
    finally:
        os.close(its)
    assert done.returncode == exit_codes.INTERRUPTED, done.stderr
    assert "1 files answered" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_it_needs_no_memory_that_can_be_written_and_run(server: RealServer, backbone: Path, tmp_path: Path) -> None:
    """As the systemd unit has it (MemoryDenyWriteExecute)."""
    declare(server, backbone, "wxorx")
    (tmp_path / "camera").mkdir()
    (tmp_path / "camera" / "a.png").write_bytes(png(0, 1))
    refused = (
        "import ctypes, mmap, sys\n"
        "if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0): sys.exit(77)\n"  # PR_SET_MDWE
        "try: mmap.mmap(-1, 4096, prot=7)\n"
        "except PermissionError: sys.stderr.write('it is refused\\n')\n"
    )
    command = [sys.executable, "-c", refused + MAIN, "edge", "run", "wxorx", "--folder", str(tmp_path / "device")]
    command += ["--source", str(tmp_path / "camera"), "--server", server.address, "--once", "--label", "ash"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    if done.returncode == 77:
        pytest.skip("the kernel has no PR_SET_MDWE")
    assert (done.returncode, "it is refused" in done.stderr) == (exit_codes.OK, True), done.stderr
    assert json.loads(done.stdout)["label"] == "ash"


def test_other_verbs_do_not_load_what_a_device_needs() -> None:
    code = (
        "import sys; import everlearn_client.cli.app; "
        "print(*(sys.modules.keys() & {'onnxruntime', 'PIL', 'zstandard', 'everlearn_client.edge'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_without_its_extra_it_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys, importlib.util as util; found = util.find_spec; "
        "util.find_spec = lambda name, *rest: None if name == 'PIL' else found(name, *rest); "
        "from everlearn_client.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "edge", "run", "m", "--folder", str(tmp_path), "--source", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == exit_codes.INVALID
    assert "pip install 'everlearn[edge-run]'" in done.stderr
