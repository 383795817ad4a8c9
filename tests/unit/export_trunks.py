"""Small real trunks and heads for the tests of the export, and what a server makes of an image with them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from everlearn.inputs.front import to_pixels
from everlearn.runtime.session import TrunkSession
from everlearn.values import FeatureScale, FrontConfig, ImageHWC, LinearHead, Trunk

DIM = 16
FRONT = FrontConfig(height=32, width=32)


def conv_graph(*, opset: int = 20, mean_by_attribute: bool = False, names: str = "") -> bytes:
    """Two convolutions and a global mean. `mean_by_attribute`: through ReduceMean as opsets before 18 wrote it."""
    random = np.random.default_rng(0)
    weights = {
        "first": random.normal(0, 0.3, (8, 3, 3, 3)),
        "second": random.normal(0, 0.3, (DIM, 8, 3, 3)),
    }
    mean = helper.make_node("GlobalAveragePool", ["active"], ["pooled"])
    if mean_by_attribute:
        mean = helper.make_node("ReduceMean", ["active"], ["pooled"], axes=[2, 3], keepdims=1)
    nodes = [
        helper.make_node("Conv", ["pixels", "first"], [f"{names}low"], strides=[2, 2]),
        helper.make_node("Relu", [f"{names}low"], ["rectified"]),
        helper.make_node("Conv", ["rectified", "second"], ["high"], strides=[2, 2]),
        helper.make_node("Relu", ["high"], ["active"]),
        mean,
        helper.make_node("Flatten", ["pooled"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes,
        "trunk",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, FRONT.height, FRONT.width])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", DIM])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def conv_trunk(graph: bytes | None = None, *, front: FrontConfig = FRONT, source: str = "hf://acme/tiny") -> Trunk:
    return Trunk(
        onnx=graph or conv_graph(),
        scale=FeatureScale(step_d=np.full(DIM, 0.01, np.float32)),
        front=front,
        parity_max_rel_diff=0.0,
        provenance={"source": source, "revision": "a" * 40, "licence": "apache-2.0", "loader": "onnx"},
    )


def random_head(
    classes: int, *, dim: int = DIM, normalise: bool = False, labels: tuple[str, ...] | None = None, seed: int = 1
) -> LinearHead:
    random = np.random.default_rng(seed)
    return LinearHead(
        # Column-major, as LAPACK leaves a solution.
        weight_dC=np.asfortranarray(random.normal(size=(dim, classes)).astype(np.float32)),
        bias_C=random.normal(size=classes).astype(np.float32),
        normalise=normalise,
        labels=labels or tuple(f"class {index}" for index in range(classes)),
        regularization=0.125,
    )


class Server:
    """What a server computes: the front in Pillow and NumPy, the trunk in its own session, the head in NumPy."""

    def __init__(self, trunk: Trunk, head: LinearHead) -> None:
        self.session = TrunkSession(trunk.onnx)
        self._front = trunk.front
        self._head = head

    def __call__(self, image: ImageHWC) -> npt.NDArray[np.float32]:
        return self._head.scores(self.session.run(to_pixels(image, self._front)[None]))[0]
