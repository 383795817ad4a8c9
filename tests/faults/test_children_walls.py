"""What the processes that read what others wrote have taken from themselves, seen from outside on the real ones."""

from __future__ import annotations

import hashlib
import io
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from PIL import Image
from tests import tiny
from tests.faults.not_here import NotHereError
from tests.faults.process_walls import (
    AS_ANOTHER_GROUP,
    Walls,
    landlock_here,
    module_of,
    seccomp_is_here,
    start_children,
    walls_of,
)
from tests.real_server import RealServer

from everlearn.backbones import child as building
from everlearn.backbones import torch_file
from everlearn.errors import BackboneError
from everlearn.runtime import process
from everlearn.runtime.process import child_environment
from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles

BACKGROUND = {"ends_first": True, "is_dumpable": False, "Max core file size": 0}
"""Of every child."""
FILTERED = {"is_filtered": True, "has_no_new_privileges": True}
DECODER = {"Max file size": 0, "Max processes": 0, "Max open files": 5, "Max address space": int}


@pytest.fixture(params=[True, False], ids=["as it is", "control, which only says so"])
def before(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What children run before their own module."""
    if request.param:
        return []
    folders = os.pathsep.join([child_environment()["PYTHONPATH"], str(Path(__file__).parents[2])])
    monkeypatch.setitem(process._ENVIRONMENT, "PYTHONPATH", folders)
    return ["tests.faults.unconfined"]


def png(image_HWC: npt.NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image_HWC).save(stream, "PNG")
    return stream.getvalue()


def children_of(folder: Path, fault: str) -> dict[str, list[Walls]]:
    """Of a server that decodes images and learns by gradient steps: the server's own walls, and its children's by the
    module that they run; decoders apart from the process that they are forked from."""
    raw_server = str(Path(__file__).parent / "raw_server.py")
    folder.mkdir()
    program = ("-c", AS_ANOTHER_GROUP, raw_server, str(folder), fault)
    backbone = tiny.write_backbone(folder)
    with RealServer(folder / "data", program=program) as server, server.client(client_id="one") as client:
        client.models.apply(tiny.declaration(backbone, recipe="latent_replay"))
        files = [png(image) for label in range(2) for image in tiny.images(4, label)]
        client.learn("tiny", [(files, [str(row // 4) for row in range(8)])])
        told = client.info().protection["image_decoding"]
        found: dict[str, list[Walls]] = {"server": [walls_of(server.pid)]}
        for child in psutil.Process(server.pid).children(recursive=True):
            name = "decoder" if child.ppid() != server.pid else module_of(child.pid).rpartition(".")[2]
            found.setdefault(name, []).append(walls_of(child.pid))
    if fault == "none":
        assert ("seccomp" in told) == seccomp_is_here(), told
        assert (f"Landlock {landlock_here()}" in told) == (landlock_here() > 0), told
    return found


def test_decoders_and_trainers_of_a_server_have_taken_from_themselves_what_they_promise(tmp_path: Path) -> None:
    found = children_of(tmp_path / "kept", "none")
    ((server,), (nursery,), (trainer,)) = (found[name] for name in ("server", "decoding_child", "child"))
    assert found["decoder"], "images were decoded"
    assert nursery.lacks({**BACKGROUND, "niceness": server.niceness}) == {}
    assert trainer.lacks({**BACKGROUND, "niceness": min(server.niceness + 10, 19)}) == {}
    for decoder in found["decoder"]:
        assert decoder.lacks(BACKGROUND | DECODER) == {}
        if seccomp_is_here():
            assert decoder.lacks(FILTERED) == {}
            assert decoder.filters > nursery.filters == server.filters
    if not seccomp_is_here():
        raise NotHereError("this system has no seccomp: decoders have resource limits alone")
    if trainer.is_dumpable is None:
        raise NotHereError("whether root's processes may be dumped is seen where they can belong to another group")


def test_control_children_that_only_say_so_are_found_out(tmp_path: Path) -> None:
    found = children_of(tmp_path / "unconfined", "unconfined")
    server = found["server"][0]
    for decoder in found["decoder"]:
        lacked = decoder.lacks(BACKGROUND | DECODER | FILTERED)
        assert set(lacked) >= {*DECODER, "ends_first"}
        assert decoder.filters == server.filters
    assert {"ends_first", "niceness"} <= set(found["child"][0].lacks({**BACKGROUND, "niceness": server.niceness + 10}))
    if server.is_dumpable is not None:
        assert all(each.is_dumpable for name in ("decoder", "decoding_child", "child") for each in found[name])


@contextmanager
def caught_writing(gate: Path, run: Callable[[], object], module: str) -> Iterator[Walls]:
    """The child of that module, when it has begun to write its result to `gate`: a pipe that nobody empties,
    and that does not hold all of it."""
    os.mkfifo(gate)
    reader = os.open(gate, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(run)
            waiting = select.poll()
            waiting.register(reader, select.POLLIN)
            while not waiting.poll(100):
                assert not running.done(), running.result()
            (pid,) = (each.pid for each in psutil.Process().children() if module_of(each.pid) == module)
            try:
                yield walls_of(pid)
            finally:
                os.kill(pid, 9)
                with suppress(BackboneError):
                    running.result()
    finally:
        os.close(reader)


def building_a_trunk(folder: Path, backbone: Path) -> tuple[Path, Callable[[], object]]:
    """Where its graph is written to, and the call."""
    digest = hashlib.sha256(backbone.read_bytes()).hexdigest()
    declared = Backbone(source=f"folder:{backbone}", sha256=digest, format="onnx", loader="onnx")
    files = BackboneFiles(
        source=declared.source, revision="", paths={backbone.name: backbone}, sha256={backbone.name: digest}
    )
    request = building._request(declared, files) | {"front": building.front_data(tiny.FRONT), "bits": 12}
    folder.mkdir()
    return folder / "trunk.onnx", lambda: building._ask(request | {"folder": str(folder)}, 240, "building")


def test_who_builds_trunks_has_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: list[str]) -> None:
    start_children(monkeypatch, before=before)
    gate, run = building_a_trunk(tmp_path / "building", tiny.write_backbone(tmp_path, dim=512))
    with caught_writing(gate, run, building.__name__) as walls:
        judge(walls, BACKGROUND | {"niceness": min(os.nice(0) + 10, 19), "Max address space": int}, before)


def test_who_reads_weights_of_torch_has_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: list[str]
) -> None:
    import torch

    start_children(monkeypatch, before=before)
    stream = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, stream)
    data, gate = stream.getvalue(), tmp_path / "weights.pth"
    os.mkfifo(gate)
    arguments = [str(gate), str(tmp_path / "weights.safetensors"), hashlib.sha256(data).hexdigest()]
    with subprocess.Popen(
        [sys.executable, "-P", "-m", torch_file.__name__, *arguments], env=child_environment()
    ) as reading:
        file = os.open(gate, os.O_WRONLY)  # waits for the other end
        judge(walls_of(reading.pid), BACKGROUND | {"niceness": min(os.nice(0) + 10, 19)}, before)
        os.write(file, data)
        os.close(file)
        # Not yet waited for: the system still tells what its limits were.
        os.waitid(os.P_PID, reading.pid, os.WEXITED | os.WNOWAIT)
        size = {"Max cpu time": 300, "Max file size": 2 * len(data) + (1 << 20), "Max address space": int}
        judge(walls_of(reading.pid), size, before)
    assert reading.returncode == 0
    assert (tmp_path / "weights.safetensors").exists()


def judge(walls: Walls, promised: dict[str, object], before: list[str]) -> None:
    """All is kept; by the control nothing, but what it has from its parent and what is not seen here."""
    lacked = walls.lacks(promised)
    if not before:
        assert lacked == {}
        return
    inherited = {"Max core file size"} | ({"is_dumpable"} if walls.is_dumpable is None else set())
    assert set(lacked) >= set(promised) - inherited
