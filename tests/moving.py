"""What tests of moving to another backbone share: a stream of four classes, calibration images, a backbone of noise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from tests import tiny
from tests.real_server import RealServer

from everlearn_client import Client

CLASSES = 4
Images = npt.NDArray[np.uint8]


def calibration(count: int = 600, *, classes: int = CLASSES, seed: int = 100) -> Iterator[Images]:
    """Unlabelled images of all classes, in batches."""
    for turn in range(count // (4 * classes)):
        yield np.concatenate([tiny.images(4, label, seed=seed + turn) for label in range(classes)])


def taught(turn: int, size: int = 8) -> tuple[Images, list[str]]:
    label = turn % CLASSES
    return tiny.images(size, label, seed=turn), [f"c{label}"] * size


def asked() -> tuple[Images, list[str]]:
    images = np.concatenate([tiny.images(25, label, seed=9_000) for label in range(CLASSES)])
    return images, [f"c{label}" for label in range(CLASSES) for _ in range(25)]


def accuracy(client: Client, model: str) -> float:
    images, labels = asked()
    found = client.predict(model, images).top
    return float(np.mean([top[0].label == label for top, label in zip(found, labels, strict=True)]))


def noise_backbone(folder: Path) -> Path:
    """Features that a small change of any pixel turns over: nothing of what an image shows is in them."""
    weight = np.random.default_rng(5).normal(0, 3_000, (3 * tiny.SIZE**2, 20)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["wild"]),
            helper.make_node("Sin", ["wild"], ["vector"]),
        ],
        "noise",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, tiny.SIZE, tiny.SIZE])],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["N", 20])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    path = folder / "noise.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path))
    return path


def declared(server: RealServer, backbone: Path, name: str, batches: int = 40, **spec: object) -> None:
    server.declare(tiny.declaration(backbone, name, **spec))
    with server.client(client_id="teacher") as teacher:
        teacher.learn(name, [taught(turn) for turn in range(batches)])
