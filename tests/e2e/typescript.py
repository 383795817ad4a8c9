"""The TypeScript client as tests use it: built once, asked in Node or in a page, both with the same questions."""

from __future__ import annotations

import base64
import functools
import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tests.faults.not_here import NotHereError
from tests.real_server import RealServer
from typer.testing import CliRunner

from everlearn_client import Predictions
from everlearn_client.cli.app import app

ROOT = Path(__file__).parents[2] / "clients" / "typescript"
RUNTIMES = ("onnxruntime-node", "onnxruntime-web")


@functools.cache
def built() -> str:
    """The path of Node, with the client built from what lies here now. Raises NotHereError, each time anew."""
    found = shutil.which("node")
    if found is None:
        raise NotHereError("there is no node on this machine, so the TypeScript client was not run")
    if not (ROOT / "node_modules" / "typescript").is_dir():
        raise NotHereError("`make typescript` has not been run here, so the TypeScript client was not")
    compiler = ROOT / "node_modules" / "typescript" / "bin" / "tsc"
    done = subprocess.run(
        [found, str(compiler), "--project", str(ROOT)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout
    return found


def exported(server: RealServer, model: str, into: Path, *more: str) -> Path:
    """What `everlearn export` writes."""
    done = CliRunner().invoke(app, ["export", model, "-d", str(into), "--server", server.address, *more])
    assert done.exit_code == 0, done.output
    return into


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A plain web server that writes nothing to the terminal."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@contextmanager
def serving(handler: Any) -> Iterator[str]:
    """Its address, while it answers."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{web.server_address[1]}"
        finally:
            web.shutdown()
            thread.join(timeout=60)


def ask(node: str, **asked: Any) -> dict[str, Any]:
    """What the client answers in Node, by test/answer.mjs."""
    asked.setdefault("runtime", RUNTIMES[0])
    done = subprocess.run(
        [node, str(ROOT / "test" / "answer.mjs")],
        input=json.dumps({key: str(value) if isinstance(value, Path) else value for key, value in asked.items()}),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def image_of(pixels_HWC: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """As answering.mjs reads it."""
    height, width, _ = pixels_HWC.shape
    return {"image": {"data": base64.b64encode(pixels_HWC.tobytes()).decode(), "width": width, "height": height}}


def tensor_of(values_Nd: npt.NDArray[np.float32]) -> dict[str, Any]:
    """As answering.mjs reads it."""
    return {"values": base64.b64encode(values_Nd.tobytes()).decode(), "shape": list(values_Nd.shape)}


def check(answer: dict[str, Any], served: Predictions) -> None:
    """Of a model that abstains: the client's answer is the server's."""
    (best,) = served.top[0]
    assert answer["top"][0]["label"] == best.label
    assert answer["top"][0]["score"] == pytest.approx(best.score, abs=1e-3)
    assert answer["novelty"] == pytest.approx(served.novelty[0], rel=1e-2, abs=1e-2)
    assert answer["abstained"] == served.abstained[0]
    assert answer["label"] == (None if served.abstained[0] else best.label)
