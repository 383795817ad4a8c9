"""Any ONNX file that maps one image tensor to a feature vector. Needs no torch.

The file is foreign, so it is checked as data before ONNX Runtime sees it, and then brought into the shape of a trunk:
input `pixels` of the front's size, output `features`, a dynamic batch, nothing that is not needed for them.

Axes: N images, H W pixels, d features.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime

from everlearn.backbones._onnx_bounds import check_bounded
from everlearn.backbones.base import BackboneDefaults, Loader, image_front, provenance_of, read_verified, weights_name
from everlearn.backbones.onnx_graph import axes_of, feature_output, image_input, parse, trunk_graph
from everlearn.backbones.probes import finish
from everlearn.errors import BackboneError
from everlearn.runtime.session import TrunkSession
from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles, Front, FrontConfig, Trunk

_DEFAULT_SIZE = 224


class OnnxLoader(Loader):
    """Cuts the graph at the feature vector, makes its batch dynamic, and shows that rows do not touch each other."""

    def describe(self, backbone: Backbone, files: BackboneFiles | None) -> BackboneDefaults:
        """Size from the graph (224 where it is dynamic); the rest is ImageNet's convention, which no graph tells."""
        if files is None:
            raise BackboneError("an ONNX backbone tells its size only by its file; fetch it first")
        model = _model(backbone, files)
        _, _, height, width = axes_of(image_input(model))
        return BackboneDefaults(
            architecture=None,
            height=height or _DEFAULT_SIZE,
            width=width or _DEFAULT_SIZE,
            fixed_size=height is not None or width is not None,
            crop_pct=0.875,
            interpolation="bilinear",
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            feature_dim=None,
            licence=None,
        )

    def build(self, backbone: Backbone, files: BackboneFiles, front: Front, *, bits: int) -> Trunk:
        """See the base class. The parity is 0: the source is this very graph."""
        front = image_front(front)
        model = _model(backbone, files)
        source = image_input(model)
        _, _, height, width = axes_of(source)
        if height not in (None, front.height) or width not in (None, front.width):
            raise BackboneError(
                f"the graph takes {height} x {width} pixels only, not {front.height} x {front.width}",
                field="spec.input.size",
            )
        check_bounded(model.graph, source.name)
        output = feature_output(model, backbone.output)
        trunk = trunk_graph(model, source.name, output, front.height, front.width, flatten=False)
        shape = _shape_of_features(trunk, front)
        if len(shape) == 4 and shape[2:] == (1, 1):
            trunk = trunk_graph(model, source.name, output, front.height, front.width, flatten=True)
        elif len(shape) != 2:
            raise BackboneError(
                f"tensor {output!r} is {['N', *shape[1:]]}; a feature vector, [N, d] or [N, d, 1, 1], is needed: "
                "declare the tensor after the pooling",
                field="spec.backbone.output",
            )
        features = onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["N", shape[1]])
        trunk.graph.output[0].CopyFrom(features)
        provenance = provenance_of(backbone, files) | {"output": output, "onnxruntime": onnxruntime.__version__}
        return finish(trunk.SerializeToString(deterministic=True), front, bits, provenance)


def _model(backbone: Backbone, files: BackboneFiles) -> onnx.ModelProto:
    if backbone.format != "onnx":
        raise BackboneError("loader onnx reads onnx files", field="spec.backbone.format")
    if backbone.keys != "same":
        raise BackboneError("an ONNX graph carries its weights; `keys` has no meaning here", field="spec.backbone.keys")
    return parse(read_verified(files, weights_name(backbone, files)))


def _shape_of_features(trunk: onnx.ModelProto, front: FrontConfig) -> tuple[int, ...]:
    session = TrunkSession(trunk.SerializeToString())
    return tuple(session.run(np.zeros((1, 3, front.height, front.width), np.float32)).shape)
