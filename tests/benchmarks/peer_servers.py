"""The servers that people would otherwise take, each in an environment of its own, started as their manuals say.

They serve the same ONNX file, two calls at once with one thread each. Environments are made once, with pip, below
`.cache/bench-peers`; a peer that does not install or start says so in the table.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort
import psutil

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).with_name("peers")
_START_S = 180.0


class PeerError(Exception):
    """Why a peer is not measured."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One of them."""

    name: str
    packages: tuple[str, ...]
    speaks: str
    """`oip` or `http`."""
    command: str
    """With {bin}, {scripts}, {onnx}, {port}, {http_port}, {folder}."""

    @property
    def shown(self) -> str:
        """With its version."""
        return self.packages[0].replace("==", " ")


PEERS = (
    Peer(
        name="kserve",
        packages=("kserve==0.21.0",),
        speaks="oip",
        command="{bin}/python {scripts}/kserve_server.py {onnx} {port} {http_port}",
    ),
    Peer(
        name="pytriton",
        packages=("nvidia-pytriton==0.7.0",),
        speaks="oip",
        command="{bin}/python {scripts}/pytriton_server.py {onnx} {port} {http_port}",
    ),
    Peer(
        # With uvloop 0.22 and later its workers find no event loop.
        name="mlserver",
        packages=("mlserver==1.7.1", "uvloop<0.22"),
        speaks="oip",
        command="{bin}/mlserver start {folder}",
    ),
    Peer(
        name="bentoml",
        packages=("bentoml==1.4.39",),
        speaks="http",
        command="{bin}/bentoml serve bentoml_server:Lite0 --port {port} --host 127.0.0.1 --working-dir {scripts}",
    ),
    Peer(
        name="litserve",
        packages=("litserve==0.2.19",),
        speaks="http",
        command="{bin}/python {scripts}/litserve_server.py {onnx} {port}",
    ),
)


def environment_of(peer: Peer) -> Path:
    """The peer's own environment, made if need be. Raises PeerError."""
    folder = ROOT / ".cache" / "bench-peers" / peer.name
    if (folder / ".ready").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    wanted = [*peer.packages, f"onnxruntime=={ort.__version__}", "numpy"]
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerError(f"does not install: {_last(done.stderr)}")
    (folder / ".ready").touch()
    return folder


@contextmanager
def running(peer: Peer, onnx: Path, folder: Path) -> Iterator[tuple[str, int]]:
    """Its address and process id, once it answers. Raises PeerError."""
    environment = environment_of(peer)
    port, http_port, metrics_port = _free_ports(3)
    folder.mkdir(parents=True)
    if peer.name == "mlserver":
        _write_mlserver(folder, port, http_port, metrics_port)
    parts = {"bin": environment / "bin", "scripts": SCRIPTS, "onnx": onnx, "folder": folder}
    command = peer.command.format(port=port, http_port=http_port, **parts).split()
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=_variables(environment, onnx), cwd=folder)
    try:
        _await(process, port, log)
        yield f"127.0.0.1:{port}", process.pid
    finally:
        _end(process)


def family_cpu_s(pid: int) -> float:
    """CPU seconds of a process and all that descend from it."""
    total = 0.0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        times = process.cpu_times()
        total += times.user + times.system
    return total


def family_mb(pid: int) -> float:
    """Their memory, what they share counted once (PSS)."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return float(sum(process.memory_full_info().pss for process in processes) / 1e6)


def _variables(environment: Path, onnx: Path) -> dict[str, str]:
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    library = subprocess.run(
        [str(environment / "bin" / "python"), "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    keep = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    own = {"PYTHONPATH": str(SCRIPTS), "LD_LIBRARY_PATH": library, "PEER_ONNX": str(onnx), "PATH": path}
    return {**keep, **own, "BENTOML_DO_NOT_TRACK": "true", "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}


def _write_mlserver(folder: Path, port: int, http_port: int, metrics_port: int) -> None:
    settings = {
        "host": "127.0.0.1",
        "grpc_port": port,
        "http_port": http_port,
        "metrics_port": metrics_port,
        "parallel_workers": 0,
        "grpc_max_message_length": 2**24,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    model = {"name": "lite0", "implementation": "mlserver_model.Lite0"}
    (folder / "model-settings.json").write_text(json.dumps(model))


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _await(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    give_up_s = time.monotonic() + _START_S
    while True:
        if process.poll() is not None or time.monotonic() > give_up_s:
            raise PeerError(f"does not start: {_last(log.read_text(errors='replace'))}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=20)
    for each in alive:
        each.kill()


def _last(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"
