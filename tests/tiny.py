"""Backbones small enough for any test, real enough for the whole path: one convolution, a rectifier, a mean.

Axes: N images, 3 channels, d features.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from everlearn.backbones.onnx import OnnxLoader
from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles, FrontConfig, Trunk

SIZE = 16
"""Pixels of a side."""
HALF = (0.5, 0.5, 0.5)
FRONT = FrontConfig(
    height=SIZE, width=SIZE, resize="squash", crop_pct=1.0, interpolation="bilinear", mean=HALF, std=HALF
)
"""What `declaration` makes of the input."""


def backbone_onnx(dim: int = 16, *, seed: int = 0) -> bytes:
    """An ONNX file, pixels [N, 3, 16, 16] -> features [N, dim], the same bytes for the same arguments."""
    weight = np.random.default_rng(seed).normal(0, 0.4, (dim, 3, 4, 4)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "weight"], ["high"], strides=[4, 4]),
            helper.make_node("Relu", ["high"], ["active"]),
            helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["vector"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["N", dim])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def write_backbone(folder: Path, dim: int = 16, *, seed: int = 0) -> Path:
    """The file on disk, for a `folder:` source."""
    path = folder / f"tiny-{dim}-{seed}.onnx"
    path.write_bytes(backbone_onnx(dim, seed=seed))
    return path


def declaration(backbone: Path, /, name: str = "tiny", **spec: object) -> str:
    """A model on that file as YAML; `spec` adds sections, e.g. `gate={"min_samples": 10}`."""
    sections: dict[str, object] = {
        "backbone": {
            "source": f"folder:{backbone.absolute()}",
            "sha256": hashlib.sha256(backbone.read_bytes()).hexdigest(),
            "format": "onnx",
            "loader": "onnx",
        },
        "input": {"size": SIZE, "resize": "squash", "interpolation": "bilinear", "mean": HALF, "std": HALF},
        **spec,
    }
    metadata = {"name": name}
    # YAML 1.2 contains JSON.
    return json.dumps({"apiVersion": "everlearn/v1", "kind": "Model", "metadata": metadata, "spec": sections}, indent=1)


def trunk_of(backbone: Path) -> Trunk:
    """The trunk that a server makes of `declaration(backbone)`: same graph, front and feature scale."""
    digest = hashlib.sha256(backbone.read_bytes()).hexdigest()
    files = BackboneFiles(
        source=f"folder:{backbone.absolute()}",
        revision="",
        paths={backbone.name: backbone},
        sha256={backbone.name: digest},
    )
    declared = Backbone(source=files.source, sha256=digest, format="onnx", loader="onnx")
    return OnnxLoader().build(declared, files, FRONT, bits=12)


def images(count: int, label: int, *, seed: int = 0, side: int = SIZE) -> npt.NDArray[np.uint8]:
    """uint8 [N, side, side, 3]: noise around a colour of the class's own, so that a head can learn it."""
    colour = np.random.default_rng(label).uniform(40, 215, 3)
    noise = np.random.default_rng((seed, label)).normal(0, 25, (count, side, side, 3))
    return (colour + noise).clip(0, 255).astype(np.uint8)


def features(count: int, label: int, dim: int, *, seed: int = 0) -> npt.NDArray[np.float32]:
    """float32 [N, dim]: non-negative, around a centre of the class's own."""
    centre_d = np.abs(np.random.default_rng(label).normal(0, 1, dim))
    noise_Nd = np.random.default_rng((seed, label)).normal(0, 0.5, (count, dim))
    return np.maximum(centre_d + noise_Nd, 0).astype(np.float32)
