"""A trunk that is itself in 8 bits: what learns, answers and ships is one graph, made from the first images.

    observing:   pixels -> the trunk -> how far each tensor reaches, in bins [N, 2T]     in a trunk's place, at first
    calibrated:  a sketch of those bins -> ranges -> QDQ graph, its own scale            the trunk ever after

An observing trunk has the form of a trunk, so that images come to it on the way that they always take; what it gives
are places in a sketch (`export.ranges`), two small integers a tensor and image, and no features.

U8S8 with weights in 7 bits. x86 without VNNI adds two products of 8 bits up in 16 bits and saturates: with weights of
64 steps that cannot happen (2 * 255 * 64 < 2^15), so that a device without VNNI and a server with it add up the same
integers. Products are then rescaled in float32, whose last bit may still move a feature by a step elsewhere.

Axes: N images, T tensors, d features.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from everlearn.backbones.probes import feature_scale, probes_of, relative_difference
from everlearn.errors import BackboneError, DataLossError
from everlearn.export.int8 import observer, plan, quantised
from everlearn.export.ranges import BINS_AN_OCTAVE, HIGHEST, LOWEST, RangeSketch
from everlearn.runtime.session import TrunkSession
from everlearn.values import FeaturesBd, FeatureScale, Trunk

OBSERVES: Final = "int8.observes"
"""Of the provenance of an observing trunk: the digest of the one that it observes."""
RANGES: Final = "int8.ranges"
"""Of one in 8 bits: lowest and highest value of each tensor; with the source it makes the same graph again."""
CALIBRATED_ON: Final = "int8.calibrated_on"
"""Of one in 8 bits: images that its ranges are from."""
_BITS: Final = 16
"""Of bins, which are far fewer: nothing of them is rounded."""


def observing(trunk: Trunk) -> Trunk:
    """What stands in a trunk's place until it is calibrated. Raises BackboneError where it has nothing to quantise."""
    planned = plan(trunk.onnx)
    model = onnx.load_model_from_string(observer(planned))
    _tell_bins(model.graph, len(planned.tensors))
    return replace(
        trunk,
        onnx=bytes(model.SerializeToString(deterministic=True)),
        scale=FeatureScale(step_d=np.ones(2 * len(planned.tensors), np.float32), bits=_BITS),
        provenance={**trunk.provenance, OBSERVES: trunk.digest},
    )


def calibrated(trunk: Trunk, sketch: RangeSketch) -> Trunk:
    """The trunk in 8 bits, and the scale of its own features. `sketch`: of its tensors, in the plan's order.

    Raises BackboneError where it gives nothing that a head could learn on.
    """
    return _made(trunk, list(sketch.ranges().values()), sketch.samples)


def made_again(trunk: Trunk, provenance: Mapping[str, str], digest: str) -> Trunk:
    """The trunk in 8 bits whose provenance that is, from its source. Raises DataLossError where it is not of `digest`,
    as where ONNX Runtime's quantizer has changed."""
    ranges = [(float(low), float(high)) for low, high in json.loads(provenance[RANGES])]
    made = _made(trunk, ranges, int(provenance[CALIBRATED_ON]))
    if made.digest != digest:
        raise DataLossError(
            f"the trunk in 8 bits cannot be made again as it was ({made.digest[:12]}..., it was {digest[:12]}...); "
            "restore a backup"
        )
    return made


def observes(provenance: Mapping[str, str]) -> bool:
    """Whether a trunk only stands in the place of one in 8 bits."""
    return OBSERVES in provenance


def calibrated_on(provenance: Mapping[str, str]) -> int:
    """Images that a trunk in 8 bits was calibrated on; 0 for another one."""
    return int(provenance.get(CALIBRATED_ON, 0))


def _made(trunk: Trunk, ranges: list[tuple[float, float]], samples: int) -> Trunk:
    planned = plan(trunk.onnx)
    graph = quantised(planned, dict(zip(planned.tensors, ranges, strict=True)), reduce_range=True)
    features_Bd = _on_probes(graph, trunk)
    return replace(
        trunk,
        onnx=graph,
        scale=feature_scale(features_Bd, trunk.scale.bits),
        # To the graph in fp32: it is what it costs, and no fault.
        parity_max_rel_diff=relative_difference(features_Bd, _on_probes(trunk.onnx, trunk)),
        provenance={**trunk.provenance, CALIBRATED_ON: str(samples), RANGES: json.dumps(ranges)},
    )


def _on_probes(graph: bytes, trunk: Trunk) -> FeaturesBd:
    session = TrunkSession(graph, arena=False)
    features_Bd = np.concatenate([session.run(probe) for probe in probes_of(trunk.front, trunk.tokenizer)])
    if not np.isfinite(features_Bd).all() or not (features_Bd != features_Bd[0]).any():
        raise BackboneError(
            "in 8 bits the backbone's features are not finite, or the same for every image; leave int8_trunk out",
            field="spec.int8_trunk",
        )
    return features_Bd


def _tell_bins(graph: onnx.GraphProto, tensors: int) -> None:
    """`extremes` [N, T, 2] become `features` [N, 2T], as `RangeSketch.add` counts them."""
    for node in graph.node:  # the name is taken by what the trunk gives
        for names in (node.input, node.output):
            names[:] = ["bin/seen" if name == "features" else name for name in names]
    constants = {
        "sign": np.array([-1, 1], np.float32),
        "none": np.zeros((), np.float32),
        "octaves": np.array(1 / math.log(2), np.float32),
        "lowest": np.array(LOWEST, np.float32),
        "highest": np.array(HIGHEST, np.float32),
        "bins": np.array(BINS_AN_OCTAVE, np.float32),
        "flat": np.array([0, 2 * tensors], np.int64),
    }
    graph.initializer.extend(numpy_helper.from_array(values, f"bin/{name}") for name, values in constants.items())
    steps = [
        ("Mul", ["extremes", "bin/sign"]),
        ("Max", ["bin/1", "bin/none"]),
        ("Log", ["bin/2"]),
        ("Mul", ["bin/3", "bin/octaves"]),
        ("Clip", ["bin/4", "bin/lowest", "bin/highest"]),
        ("Sub", ["bin/5", "bin/lowest"]),
        ("Mul", ["bin/6", "bin/bins"]),
        ("Ceil", ["bin/7"]),
    ]
    for number, (kind, inputs) in enumerate(steps, start=1):
        graph.node.append(helper.make_node(kind, inputs, [f"bin/{number}"]))
    graph.node.append(helper.make_node("Reshape", [f"bin/{len(steps)}", "bin/flat"], ["features"]))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 2 * tensors]))
