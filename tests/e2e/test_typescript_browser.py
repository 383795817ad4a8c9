"""An export in a real browser: Chromium loads a page, pulls from a web server and answers as everlearn's server does.

`make typescript` and a Chromium are needed (of Debian: `apt-get install chromium`); without, this says what was not
tested. 127.0.0.1 is a secure context, which Web Crypto asks for, as https is.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from tests import tiny
from tests.e2e.typescript import ROOT, Quiet, built, check, exported, image_of, serving
from tests.faults.not_here import NotHereError
from tests.real_server import RealServer

from everlearn_client import Client

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_S = 240.0
"""For a browser to start, compile 12 MB of WebAssembly and answer, on a slow and busy machine."""
LABELS = ("ash", "birch", "cédre")
Ask = Callable[..., dict[str, Any]]


class Site(Quiet):
    """The page, the client as it was built, the export, the question; and an ear for the answer."""

    export: Path
    base: Path
    """Of an earlier version."""
    asked: dict[str, Any]
    answers: queue.Queue[dict[str, Any]]

    def do_GET(self) -> None:  # noqa: N802  # names are http.server's
        if self.path == "/asked":
            body = json.dumps(self.asked).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        else:
            super().do_GET()

    def do_POST(self) -> None:  # noqa: N802
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.answers.put(told)

    def translate_path(self, path: str) -> str:
        top, _, rest = path.partition("?")[0].removeprefix("/").partition("/")
        below = {"client": ROOT, "export": self.export, "base": self.base}.get(top)
        if below is None or ".." in rest.split("/"):
            return str(ROOT / "test" / "page.html") if path == "/" else str(self.export / "missing")
        return str(below / rest)


@functools.cache
def browser() -> str:
    """Raises NotHereError, each time anew."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise NotHereError("there is no Chromium on this machine, so no export was run in a browser")
    return found


@pytest.fixture(scope="module")
def folder(server: RealServer, backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a model that abstains."""
    server.declare(tiny.declaration(backbone, unknown="abstain"))
    with server.client(client_id="teacher") as teacher:
        teacher.learn("tiny", [(tiny.images(40, index), [label] * 40) for index, label in enumerate(LABELS)])
    return exported(server, "tiny", tmp_path_factory.mktemp("export"))


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """Opens the page for one question at a time, each in a browser that has nothing of the one before."""
    built()
    program = browser()
    opened = iter(range(100))

    def asking(export: Path, base: Path | None = None, **asked: Any) -> dict[str, Any]:
        told = {"export": export, "base": base or export, "asked": {**asked, "base": base is not None}}
        site = type("ThisSite", (Site,), {**told, "answers": queue.Queue()})
        with serving(site) as address:
            return opening(program, address + "/", tmp_path / f"profile{next(opened)}", site.answers)

    return asking


def opening(program: str, address: str, profile: Path, answers: queue.Queue[dict[str, Any]]) -> dict[str, Any]:
    """What the page tells. Raises where it tells nothing in time, with what the browser said."""
    # Without the sandbox, for CI is root in a container; of our own pages only.
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    quiet = [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--enable-logging=stderr",
    ]
    with (profile.parent / f"{profile.name}.log").open("w+") as log:
        command = [program, *options, *quiet, f"--user-data-dir={profile}", address]
        running = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        ended = threading.Thread(target=lambda: answers.put({"ended": running.wait()}), daemon=True)
        ended.start()
        try:
            told = answers.get(timeout=PATIENCE_S)
        except queue.Empty:
            told = {"silent": PATIENCE_S}
        finally:
            running.terminate()
            try:
                running.wait(timeout=60)
            except subprocess.TimeoutExpired:
                running.kill()
            ended.join(timeout=60)
        log.seek(0)
        assert not {"ended", "silent"} & told.keys(), f"{told}\n{log.read()[-4000:]}"
    return told


def png_of(pixels_HWC: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """As the page decodes it, into a canvas."""
    file = io.BytesIO()
    Image.fromarray(pixels_HWC).save(file, "PNG")
    return {"png": base64.b64encode(file.getvalue()).decode()}


def test_in_a_browser_it_answers_as_the_server_does_from_pixels_and_from_a_canvas(
    ask: Ask, server: RealServer, client: Client, folder: Path
) -> None:
    known = [tiny.images(1, index, seed=5)[0] for index in range(3)]
    foreign = np.indices((16, 16)).sum(axis=0)[:, :, None] % 2 * np.full(3, 255)
    images = [*known, foreign.astype(np.uint8), tiny.images(1, 1, seed=3, side=40)[0]]
    key = client.info().public_key
    samples = [*(image_of(image) for image in images), *(png_of(image) for image in images)]
    told = ask(folder, options={"serverKey": key}, samples=samples)
    assert "error" not in told, told
    assert "Chrom" in told["browser"]
    assert (told["name"], tuple(told["labels"]), told["signed"]) == ("tiny", LABELS, True)
    version = told["number"]
    served = [client.predict("tiny", image[None], version=version) for image in images]
    for answer, prediction in zip(told["answers"], [*served, *served], strict=True):
        check(answer, prediction)
    abstained = [answer["abstained"] for answer in told["answers"]]
    assert True in abstained
    assert False in abstained


def test_a_browser_runs_nothing_that_is_not_what_was_exported_or_signed(
    ask: Ask, client: Client, folder: Path, tmp_path: Path
) -> None:
    key, other = client.info().public_key, "ab" * 32
    assert ask(folder, options={"serverKey": key})["signed"] is True
    wrong = ask(folder, options={"serverKey": other})
    assert (wrong["error"], f"not signed by the server with the key {other}" in wrong["message"]) == ("DataLoss", True)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    model = bytearray((copy / "model.onnx").read_bytes())
    model[len(model) // 2] ^= 1
    (copy / "model.onnx").write_bytes(model)
    flipped = ask(copy, options={"serverKey": key})
    assert (flipped["error"], "not what was exported" in flipped["message"]) == ("DataLoss", True)
    (copy / "model.onnx").unlink()
    assert ask(copy, options={"serverKey": key})["error"] == "Unavailable"


def test_a_browser_makes_a_new_version_of_the_one_it_has_and_a_difference(
    ask: Ask, server: RealServer, client: Client, folder: Path, tmp_path: Path
) -> None:
    client.learn("tiny", [(tiny.images(8, index, seed=9), [label] * 8) for index, label in enumerate(LABELS)])
    new = exported(server, "tiny", tmp_path / "new", "--difference-from", str(folder))
    image = tiny.images(1, 2, seed=5)[0]
    (new / "model.onnx").rename(tmp_path / "model.onnx")  # so that there is no other way
    key = client.info().public_key
    told = ask(new, base=folder, options={"serverKey": key}, samples=[image_of(image)])
    assert "error" not in told, told
    assert told["signed"] is True
    check(told["answers"][0], client.predict("tiny", image[None], version=told["number"]))
    assert ask(new, options={"serverKey": key})["error"] == "Unavailable"
