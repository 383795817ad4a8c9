"""Makes the one file that leaves the house: front + trunk + head, from a sample to a label.

    image uint8 [N, H, W, 3] -> front -> trunk -> head -> scores      float32 [N, C]
                                                          label_index int64   [N]
                                                          label       string  [N]
                                                          labels      string  [C]   (the table)

Where samples may be unknown (`LinearHead.novelty`) there is one output more, `novelty` float32 [N]: how unlike all
learned classes the sample is. Beyond 1 its `label_index` is -1 and its `label` empty; the scores stay what they are.

A plain tensor needs no front: there the input is `tensor` float32 [N, *shape]. Of a text it is `input_ids` int64
[N, L], which the tokenizer.json that is exported beside the file makes of it.

All of that is the same in every precision that a file may be made in (`export.precision`).

Of several labels a sample the scores are probabilities, and instead of one label there is `present` bool [N, C], where
they are at least 0.5. A regression has one output, `values` float32 [N, K], whose columns the metadata names.

The file needs nothing else but ONNX Runtime: labels and provenance are in its metadata. Equal inputs give equal
bytes, so an export is known by its sha256 and the same version again is the same file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from everlearn import __version__
from everlearn.backbones.tail import Tail, fill
from everlearn.errors import BackboneError, InputError
from everlearn.export.front import front_graph
from everlearn.export.graphs import IR_VERSION, LOWEST_OPSET, TAIL_FEATURES, alone, join, with_tail
from everlearn.export.head_nodes import node, tensor, text_tensor
from everlearn.export.int8 import head_in_8_bits
from everlearn.export.int8_trunk import RANGES, calibrated_on
from everlearn.export.novelty import BEST, add_novelty, add_unknown, tell_novelty
from everlearn.export.precision import Precision, halve
from everlearn.inputs.front import crop_targets
from everlearn.metrics.label_sets import THRESHOLD
from everlearn.values import Front, FrontConfig, LinearHead, Task, TextFront, Trunk

MAX_BYTES = 2**31 - 2**20
"""protobuf's limit for one message, with room for the head's nodes."""
METADATA_PREFIX = "everlearn."
"""Of every metadata key in the file."""


def input_contract(front: Front) -> str:
    """What the file takes, for people."""
    if isinstance(front, FrontConfig):
        return "image: uint8 [N, H, W, 3], RGB, 0..255, any H and W, the images of one call of one size"
    if isinstance(front, TextFront):
        return (
            f"input_ids: int64 [N, L], L up to {front.max_tokens}, from the tokenizer.json with sha256 "
            f"{front.tokenizer}, shorter rows filled up with -1"
        )
    sizes = ", ".join(str(size) for size in front.shape)
    return f"tensor: float32 [N, {sizes}], in the unit of the data it learned from"


class Composer:
    """Composes exports of all versions on one trunk: joins front and trunk once, then only adds heads.

    Holds the joined graph in memory (about the trunk's size). `compose` may be called from several threads.
    """

    def __init__(self, trunk: Trunk) -> None:
        """Raises BackboneError where front and trunk cannot be one model."""
        if len(trunk.onnx) > MAX_BYTES:
            raise BackboneError(
                f"the trunk has {len(trunk.onnx)} bytes; one ONNX file holds at most {MAX_BYTES}", field="backbone"
            )
        model = onnx.load_model_from_string(trunk.onnx)
        front = trunk.front
        self._skeleton = join(front_graph(front), model) if isinstance(front, FrontConfig) else alone(model)
        self._dim = trunk.feature_dim
        self._is_in_8_bits = calibrated_on(trunk.provenance) > 0
        self._metadata = _provenance(trunk)

    def compose(
        self,
        head: LinearHead,
        metadata: Mapping[str, str],
        tail: Tail | None = None,
        *,
        precision: Precision = "fp32",
    ) -> bytes:
        """The file. `metadata`: what the caller knows (model, version, head, samples, ...), keys without the prefix.

        `tail`: what is between trunk and head, where a part of the backbone has learned. Raises InputError for a head
        that does not fit what is below it, for a metadata key that the composer fills in, and as `halve`. For `int8`
        the composer's trunk is one in 8 bits; the file has the head that is `int8.rounded`.
        """
        model = onnx.ModelProto()
        if tail is None:
            check_head(head, self._dim)
            model.CopyFrom(self._skeleton)
        else:
            check_head(head, tail.feature_dim)
            model = with_tail(self._skeleton, onnx.load_model_from_string(fill(tail.graph, tail.arrays)))
        model.producer_name, model.producer_version = "everlearn", __version__
        if precision == "fp16":
            halve(model)
        del model.graph.output[:]
        features = "features" if tail is None else TAIL_FEATURES
        _add_head(model.graph, head, features, in_8_bits=precision == "int8")
        if head.novelty is not None:
            add_novelty(model.graph, head.novelty, features)
        _add_answers(model.graph, head)
        if head.novelty is not None:
            tell_novelty(model.graph)
        model.graph.name = "everlearn"
        learned = _learned(head) | ({"tail_digest": tail.digest} if tail is not None else {})
        known = self._metadata
        if self._is_in_8_bits:
            known = known | {"precision": "int8", "server_precision": "int8"}
        elif precision != "fp32":
            # Its features are not quite the server's: nobody is to send them as such.
            digest = hashlib.sha256(f"{known['feature_digest']} in {precision}".encode()).hexdigest()
            known = known | {"feature_digest": digest, "precision": precision}
        _add_metadata(model, known | learned, metadata)
        return bytes(model.SerializeToString(deterministic=True))


def head_graph(head: LinearHead, dim: int) -> bytes:
    """The head alone: `features` float32 [N, dim] -> `scores` float32 [N, C], or `values` of a regression; and
    `novelty` where it has that.

    For the gate, which checks a head on features before any file is made, and for devices that already have the trunk.
    Raises InputError for a head of another dimension.
    """
    check_head(head, dim)
    graph = helper.make_graph(
        [], "everlearn-head", [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", dim])], []
    )
    _add_head(graph, head)
    if head.novelty is not None:
        add_novelty(graph, head.novelty, "features")
        tell_novelty(graph)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", LOWEST_OPSET)], ir_version=IR_VERSION, producer_name="everlearn"
    )
    return bytes(model.SerializeToString(deterministic=True))


def check_head(head: LinearHead, dim: int) -> None:
    """Raises InputError for a head without classes, of another dimension than `dim`, or with numbers that are none."""
    classes = len(head.labels)
    if not classes:
        raise InputError("the head has no class; an export needs at least one", field="head.labels")
    if head.weight_dC.shape != (dim, classes) or head.bias_C.shape != (classes,):
        raise InputError(
            f"the head has weights {head.weight_dC.shape} and bias {head.bias_C.shape}; "
            f"with {classes} labels on this trunk they must be ({dim}, {classes}) and ({classes},)",
            field="head.weight",
        )
    if not (np.isfinite(head.weight_dC).all() and np.isfinite(head.bias_C).all()):
        raise InputError("the head has weights that are infinite or NaN; all must be finite", field="head.weight")


def _add_head(graph: onnx.GraphProto, head: LinearHead, features: str = "features", *, in_8_bits: bool = False) -> None:
    # Node for node what LinearHead.scores does.
    if head.normalise:
        graph.initializer.append(tensor("head/floor", np.array([1e-12], np.float32)))
        graph.initializer.append(tensor("head/axis", np.array([1], np.int64)))
        graph.node.extend(
            [
                node("ReduceL2", [features, "head/axis"], "head/length", keepdims=1),
                node("Max", ["head/length", "head/floor"], "head/divisor"),
                node("Div", [features, "head/divisor"], "head/unit"),
            ]
        )
        features = "head/unit"
    if in_8_bits:
        steps_dC, scale_C = head_in_8_bits(head)
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(steps_dC), "head/steps"))
        graph.initializer.append(tensor("head/scale", scale_C))
        # No DequantizeLinear: ONNX Runtime would make a product in 8 bits of it, and the scores would be others.
        graph.node.append(node("Cast", ["head/steps"], "head/whole", to=TensorProto.FLOAT))
        graph.node.append(node("Mul", ["head/whole", "head/scale"], "head/weight"))
    else:
        graph.initializer.append(tensor("head/weight", head.weight_dC.astype(np.float32, copy=False)))
    graph.initializer.append(tensor("head/bias", head.bias_C.astype(np.float32, copy=False)))
    linear = "head/logits" if head.task == "multilabel" else score_output(head.task)
    graph.node.append(node("Gemm", [features, "head/weight", "head/bias"], linear))
    if head.task == "multilabel":
        graph.node.append(node("Sigmoid", [linear], "scores"))
    shape = ["N", len(head.labels)]
    graph.output.append(helper.make_tensor_value_info(score_output(head.task), TensorProto.FLOAT, shape))


def score_output(task: Task) -> str:
    """Name of the output that holds a head's numbers."""
    return "values" if task == "regression" else "scores"


def _add_answers(graph: onnx.GraphProto, head: LinearHead) -> None:
    if head.task == "regression":
        return
    _add_table(graph, head.labels)
    if head.task == "classification":
        best = "label_index" if head.novelty is None else BEST
        graph.node.append(
            # The first of equal scores wins, as in numpy.argmax.
            node("ArgMax", ["scores"], best, axis=1, keepdims=0, select_last_index=0)
        )
        answers = "head/labels" if head.novelty is None else add_unknown(graph, head.labels)
        graph.node.append(node("Gather", [answers, "label_index"], "label", axis=0))
        outputs: list[tuple[str, int, list[str | int]]] = [
            ("label_index", TensorProto.INT64, ["N"]),
            ("label", TensorProto.STRING, ["N"]),
        ]
    else:
        graph.initializer.append(tensor("head/threshold", np.array([THRESHOLD], np.float32)))
        graph.node.append(node("GreaterOrEqual", ["scores", "head/threshold"], "present"))
        outputs = [("present", TensorProto.BOOL, ["N", len(head.labels)])]
    # A graph's output has to come from a node.
    graph.node.append(node("Identity", ["head/labels"], "labels"))
    outputs.append(("labels", TensorProto.STRING, [len(head.labels)]))
    graph.output.extend(helper.make_tensor_value_info(*output) for output in outputs)


def _add_table(graph: onnx.GraphProto, labels: Sequence[str]) -> None:
    graph.initializer.append(text_tensor("head/labels", labels))


def _provenance(trunk: Trunk) -> dict[str, str]:
    left_out = ("source", "revision", "licence", RANGES)  # the ranges are in the graph
    known = {key: value for key, value in trunk.provenance.items() if key not in left_out}
    return {
        "created_by": f"everlearn {__version__}",
        "trunk_digest": trunk.digest,
        "feature_digest": trunk.feature_digest,
        "front_digest": trunk.front.digest,
        **_size(trunk.front),
        "source": public_source(trunk.provenance.get("source", "unknown")),
        "revision": trunk.provenance.get("revision", ""),
        "licence": trunk.provenance.get("licence", "unknown"),
        "input": input_contract(trunk.front),
        **{f"provenance.{key}": value for key, value in known.items()},
    }


def _size(front: Front) -> dict[str, str]:
    if isinstance(front, FrontConfig):
        height, width = (front.height, front.width) if front.resize == "squash" else crop_targets(front)
        size = {"front_size": f"{front.height}x{front.width}", "front_resized": f"{height}x{width}"}
        return {"modality": "image", **size, "front_resize": front.resize}
    if isinstance(front, TextFront):
        return {"modality": "text", "tokenizer_sha256": front.tokenizer, "max_tokens": str(front.max_tokens)}
    ranges = [list(pair) for pair in zip(front.low, front.high, strict=True)]
    return {"modality": "tensor", "shape": json.dumps(front.shape), "range": json.dumps(ranges)}


def public_source(source: str) -> str:
    """A source without the folders of the machine it was read on: an export goes to people who must not see them.

    >>> public_source("folder:/srv/acme/secret-project/net.onnx"), public_source("hf://timm/vit_tiny")
    ('folder:net.onnx', 'hf://timm/vit_tiny')
    """
    folder = re.fullmatch(r"folder:(.+)", source)
    return f"folder:{PurePosixPath(folder[1]).name}" if folder else source


def _learned(head: LinearHead) -> dict[str, str]:
    names = json.dumps(head.labels, ensure_ascii=False)
    told = {"outputs": names} if head.task == "regression" else {"labels": names, "classes": str(len(head.labels))}
    return {
        **told,
        "task": head.task,
        "normalise": json.dumps(head.normalise),
        "regularization": repr(float(head.regularization)),
    }


def _add_metadata(model: onnx.ModelProto, ours: Mapping[str, str], callers: Mapping[str, str]) -> None:
    taken = sorted(ours.keys() & callers.keys())
    if taken:
        raise InputError(
            f"metadata {', '.join(taken)} are filled in from trunk and head; leave them out", field="metadata"
        )
    for key, value in sorted({**ours, **callers}.items()):
        entry = model.metadata_props.add()
        entry.key, entry.value = METADATA_PREFIX + key, value
