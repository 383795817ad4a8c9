"""A device: how fast it starts, what it takes beside ONNX Runtime, and what a new head costs over a bad line."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
from tests.benchmarks.edge_process import raw_session, resident_bytes
from tests.benchmarks.scene import Scene, ServerProcess, jpeg_files
from tests.benchmarks.table import Row
from tests.faults.proxy import Proxy

from everlearn_client import Client
from everlearn_client._download import DownloadProgress, PartFile
from everlearn_client.edge import EdgeModel
from everlearn_client.edge.follower import Follower
from everlearn_protos.v1 import export_pb2

GROUP = "edge"
SIZE, MODEL, IMAGES = 224, "lite0", 20
LINE_BYTES_S = 2_000
"""16 kbit/s."""
CUTS = 3
_REST_S = 10.0
_IMPORT = (
    "import sys, time; wall, own = time.perf_counter(), time.process_time(); import {}; "
    "print(time.perf_counter() - wall, time.process_time() - own)"
)


def measure(scene: Scene, *, quick: bool) -> list[Row]:
    """With EfficientNet-Lite0 and a head of ten digits, from a real server."""
    rows = [_import_time(scene, 2 if quick else 5)]
    with scene.server("edge") as server:
        model = _installed(scene, server)
        rows += _memory(scene, server, model, 1 if quick else 5)
        rows.append(_processor(scene, server, model, blocks=4 if quick else 60))
        rows.append(_bad_line(scene, server))
    scene.tell("late labels")
    late = _told("late_labels", "quick" if quick else "full")
    return rows + [Row(**{**row, "group": GROUP}) for row in late]


def _import_time(scene: Scene, times: int) -> Row:
    scene.tell("importing")
    edge, below = ([_imported(what) for _ in range(times + 1)][1:] for what in ("everlearn_client.edge", _BELOW))
    wall_s = median(wall for wall, _ in edge)
    return Row(
        group=GROUP,
        what="import everlearn_client.edge",
        measured=f"{wall_s:.2f} s",
        target="< 1 s",
        met=wall_s < 1,
        detail=f"{times} fresh processes: {', '.join(f'{wall:.2f}' for wall, _ in edge)} s; of processor time "
        f"{median(own for _, own in edge):.2f} s; {_BELOW} alone {median(wall for wall, _ in below):.2f} s",
    )


_BELOW = "numpy, grpc, onnxruntime, zstandard"


def _imported(what: str) -> tuple[float, float]:
    told = subprocess.run([sys.executable, "-c", _IMPORT.format(what)], capture_output=True, text=True, check=True)
    wall, own = told.stdout.split()
    return float(wall), float(own)


def _installed(scene: Scene, server: ServerProcess) -> Path:
    """Declares and teaches the model and pulls it onto a device; its file there."""
    with server.client("bench-device") as client:
        scene.tell("declaring and teaching")
        client.models.apply(scene.declaration(MODEL, SIZE))
        _teach(scene, client, 0)
        device = EdgeModel(MODEL, folder=scene.folder / "device", client=client)
        device.pull()
        device.predict(scene.large_digits(SIZE, 1)[0])
        device.close()
    images = {f"jpeg_{row}": np.frombuffer(data, np.uint8) for row, data in enumerate(jpeg_files(scene, SIZE, IMAGES))}
    np.savez(scene.folder / "images.npz", images=scene.large_digits(SIZE, IMAGES), **images)  # type: ignore[arg-type]  # arrays
    (path,) = (scene.folder / "device" / "model").rglob("model.onnx")
    return path


def _teach(scene: Scene, client: Client, first: int) -> None:
    labels = [str(label) for label in scene.digits[1][: first + 100]]
    jpegs = jpeg_files(scene, SIZE, first + 100)
    client.learn(MODEL, [(jpegs[row : row + 20], labels[row : row + 20]) for row in range(first, first + 100, 20)])


def _memory(scene: Scene, server: ServerProcess, model: Path, times: int) -> list[Row]:
    scene.tell("memory")
    images, device = str(scene.folder / "images.npz"), str(scene.folder / "device")
    raw, edge = list[float](), list[float]()
    for _ in range(times):
        raw.append(_resident_mb("raw", str(model), images))
        edge.append(_resident_mb("edge", device, images, server.address, MODEL))
    beyond = median(edge) - median(raw)
    row = Row(
        group=GROUP,
        what="resident memory beyond the model",
        measured=f"{beyond:.0f} MB",
        target="< 60 MB",
        met=beyond < 60,
        detail=f"a process with an EdgeModel that predicts, follows and teaches: {median(edge):.0f} MB, against one "
        f"with ONNX Runtime and the same file alone: {median(raw):.0f} MB; shared pages included, {times} pairs; "
        f"the file has {model.stat().st_size / 1e6:.1f} MB",
    )
    command_mb = _command_mb(scene, server)
    context = Row(
        group=GROUP,
        what="... of `everlearn edge run`",
        measured=f"{command_mb - median(raw):.0f} MB",
        detail=f"the whole command, with Typer, Rich and Pillow, {_REST_S:.0f} s after {IMAGES} JPEG files: "
        f"{command_mb:.0f} MB",
    )
    return [row, context]


def _resident_mb(*arguments: str) -> float:
    return float(_told(*arguments)["resident_bytes"]) / 1e6


def _told(*arguments: str) -> Any:
    command = [sys.executable, "-m", "tests.benchmarks.edge_process", *arguments]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _command_mb(scene: Scene, server: ServerProcess) -> float:
    camera = scene.folder / "camera"
    camera.mkdir()
    for number, data in enumerate(jpeg_files(scene, SIZE, IMAGES)):
        (camera / f"{number}.jpg").write_bytes(data)
    command = [sys.executable, "-c", "from everlearn_client.cli import main; main()", "edge", "run", MODEL]
    command += ["--folder", str(scene.folder / "device"), "--source", str(camera), "--server", server.address]
    command += ["--client", "bench-device", "--label", "7", "--settle", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as device:
        assert device.stdout is not None
        answered = [json.loads(device.stdout.readline()) for _ in range(IMAGES)]
        time.sleep(_REST_S)  # a version that has come meanwhile is in place by then
        found = resident_bytes(device.pid) / 1e6
        device.send_signal(signal.SIGTERM)
    assert all("label" in record for record in answered), answered
    return found


def _processor(scene: Scene, server: ServerProcess, model: Path, *, blocks: int) -> Row:
    """Both in this process, in turn; threads that follow and send are there, and counted."""
    scene.tell("processor time")
    images, session = scene.large_digits(SIZE, IMAGES), raw_session(model)
    ratios, raw_ms, edge_ms = list[float](), list[float](), list[float]()
    with (
        server.client("bench-device") as client,
        EdgeModel(MODEL, folder=scene.folder / "device", client=client) as device,
    ):
        for block in range(blocks + 2):
            begun_s = time.process_time()
            for image in images:
                session.run(["scores"], {"image": image[None]})
            between_s = time.process_time()
            for image in images:
                device.predict(image)
            ended_s = time.process_time()
            if block >= 2:  # before that, arenas grow
                raw_ms.append((between_s - begun_s) / IMAGES * 1e3)
                edge_ms.append((ended_s - between_s) / IMAGES * 1e3)
                ratios.append(edge_ms[-1] / raw_ms[-1])
    beyond = median(ratios) - 1
    low, high = np.percentile(ratios, [25, 75]) - 1
    return Row(
        group=GROUP,
        what="processor time of a prediction beyond raw ONNX Runtime",
        measured=f"{beyond:+.1%}",
        target="< 5 %",
        met=bool(beyond < 0.05),
        detail=f"{SIZE} px, one image at a time, one thread, {blocks} blocks of {IMAGES} each, in turn in one process: "
        f"raw {median(raw_ms):.2f}, EdgeModel {median(edge_ms):.2f} ms; quartiles of the ratio {low:+.1%}, {high:+.1%}",
    )


def _bad_line(scene: Scene, server: ServerProcess) -> Row:
    """A new head over 16 kbit/s, with connections that are reset three times while it comes."""
    scene.tell("16 kbit/s")
    with Proxy() as proxy, server.client("bench") as teacher:
        proxy.target = server.address
        with Client(proxy.address, client_id="far-device", timeout_s=120) as far:
            follower = Follower(scene.folder / "far", model=MODEL, version="latest")
            follower.pull(far)
            follower.confirm()
            before = follower.version
            _teach(scene, teacher, 100)
            teacher.export(MODEL, "latest")
            coming = _Coming(far, proxy)
            proxy.bytes_a_second, passed = LINE_BYTES_S, proxy.passed_bytes["answers"]
            begun_s = time.monotonic()
            with coming:
                follower.pull(far)
            took_s, line = time.monotonic() - begun_s, proxy.passed_bytes["answers"] - passed
    installed, twice = follower.version != before, coming.received - sum(coming.files.values())
    files = ", ".join(f"{name} {size / 1e3:.1f}" for name, size in coming.files.items())
    return Row(
        group=GROUP,
        what=f"a new head over 16 kbit/s, the line reset {coming.cuts} times",
        measured=f"installed and verified; {twice} bytes downloaded twice" if installed else "not installed",
        target="installed, verified, nothing twice",
        met=installed and twice == 0 and coming.cuts == CUTS,
        detail=f"{coming.received / 1e3:.1f} KB ({files}) in {took_s:.0f} s; {line / 1e3:.1f} KB on the line: besides, "
        f"questions, HTTP/2, and what was in flight when it broke; ten classes, {SIZE} px, fp32",
    )


class _Coming:
    """Counts what arrives of each file, and resets the line at each of the first chunks of the model's."""

    def __init__(self, far: Client, proxy: Proxy) -> None:
        self._far, self._proxy, self._whole = far, proxy, far.download
        self.files: dict[str, int] = {}
        self.received = self.cuts = 0
        append = PartFile.append

        def counted(part: PartFile, chunk: export_pb2.DownloadExportResponse) -> None:
            self.received += len(chunk.data)  # also of a chunk that is refused, since it was there before
            append(part, chunk)

        self._patch = mock.patch.object(PartFile, "append", counted)

    def __enter__(self) -> None:
        self._patch.start()
        told = {"on_progress": self._note}
        self._far.download = lambda *given, **named: self._whole(*given, **named, **told)  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        self._patch.stop()

    def _note(self, told: DownloadProgress) -> None:
        name = re.sub(r"[.][0-9a-f]{16}[.]", " ", told.file_name)
        self.files[name] = told.bytes_done
        if name.startswith("model.onnx") and self.cuts < CUTS:
            self.cuts += bool(self._proxy.reset())
