"""Between a tail as a value and as a torch module: built, read back, and traced once.

Axes: N images, d features, d_cut values of an image at the cut.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import safetensors.numpy
import torch
from torch import nn
from torch.nn.utils import parametrize

from everlearn import backbones
from everlearn.backbones.base import Loader
from everlearn.backbones.cut import Halves, TailModule
from everlearn.backbones.probes import MAX_REL_DIFF, relative_difference
from everlearn.backbones.tail import Argument, Tail, TailSession, Weights, check_weights, emptied, fill
from everlearn.errors import BackboneError
from everlearn.plugins import load
from everlearn.values import FeaturesBd

OPSET = 20
"""Newest that torch's TorchScript exporter writes."""


def make_tail(
    halves: Halves,
    architecture: str,
    arguments: Mapping[str, Argument],
    size: tuple[int, int],
    *,
    blocks: int | None,
    activations_Nd: FeaturesBd,
) -> Tail:
    """The value of a cut network's upper half, held against it on `activations_Nd`.

    `activations_Nd`: values at the cut of ordinary samples. `size`: height and width of the network's input in pixels;
    of a text 0, and its places at the cut. Raises BackboneError if ONNX Runtime computes other features from it than
    torch.
    """
    module = halves.tail
    graph, names = trace(module)
    with torch.inference_mode():
        features_Nd: FeaturesBd = module(torch.from_numpy(activations_Nd)).numpy()
    state = weights_of(module)
    tail = Tail(
        architecture=architecture,
        arguments=dict(arguments),
        blocks=blocks,
        cut=halves.cut,
        shape=module.cut_shape,
        channel_axis=halves.channel_axis,
        height=size[0],
        width=size[1],
        feature_dim=int(features_Nd.shape[1]),
        graph=graph,
        weights=safetensors.numpy.save({name: state[name] for name in sorted(names)}),
    )
    difference = relative_difference(TailSession(tail).run(activations_Nd), features_Nd)
    if not difference <= MAX_REL_DIFF:
        raise BackboneError(f"the exported tail differs from torch's by {difference:.1e} of its features")
    return tail


def build_tail_module(tail: Tail) -> TailModule:
    """The module that a tail stands for, in evaluation mode, on the CPU.

    Raises BackboneError if this version cuts the network elsewhere, or the weights do not fit.
    """
    loader = load(backbones, tail.loader, Loader, field="spec.backbone.loader")  # type: ignore[type-abstract]  # the kind found is concrete
    module = loader().rebuild(tail)
    if module.cut_shape != tail.shape:
        raise BackboneError(
            f"this version has {list(module.cut_shape)} at the cut of {tail.architecture}, the tail "
            f"{list(tail.shape)}; it was made by another version"
        )
    load_weights(module, tail)
    return module


def load_weights(module: TailModule, tail: Tail) -> None:
    """Overwrites a module's weights with the tail's, strictly. Raises BackboneError if they do not fit."""
    arrays = tail.arrays
    check_weights(tail, arrays)
    wanted = _learned(module)
    if wanted.keys() != arrays.keys() or any(tuple(wanted[n].shape) != arrays[n].shape for n in wanted):
        other = sorted(wanted.keys() ^ arrays.keys())[:5]
        raise BackboneError(f"the tail's weights are not those of {tail.architecture} at {tail.cut}: {other}")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(torch.from_numpy(np.array(arrays[name])))


def export_tail(module: TailModule, tail: Tail) -> bytes:
    """The tail's ONNX with what the module has learned inside, LoRA folded in: no trace, only other numbers.

    Raises BackboneError for a module that is not this tail's, or has learned what is no number.
    """
    learned = tail.with_weights(weights_of(module))
    return fill(learned.graph, learned.arrays)


def weights_of(module: nn.Module) -> Weights:
    """What a module computes with now, by plain names: adapters folded in, on the CPU, float32, copied."""
    return {
        name: tensor.detach().to("cpu", torch.float32, copy=True).numpy() for name, tensor in _learned(module).items()
    }


def trace(module: TailModule) -> tuple[bytes, frozenset[str]]:
    """The graph without weights, and their names. Raises BackboneError where a weight has no place in it.

    Traced with weights of its own, all different: the exporter merges equal tensors into one, such as biases that are
    all zero, and what was merged could never learn apart. Folding stays off, so that each weight keeps its name.
    """
    scratch = copy.deepcopy(module).cpu().eval()
    learned = _learned(scratch)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in learned.values():
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    model = onnx.load_model_from_string(_export(scratch))
    model.ClearField("producer_version")
    found = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    lost = sorted(learned.keys() - found)
    if lost:
        raise BackboneError(f"torch's exporter keeps no place for {lost[:5]}; this tail cannot take new weights")
    names = frozenset(learned)
    return emptied(model, names), names


def _learned(module: nn.Module) -> dict[str, torch.Tensor]:
    """Float parameters and buffers by plain names, parametrised ones as they work."""
    found: dict[str, torch.Tensor] = {}
    for prefix, each in module.named_modules():
        if prefix.rpartition(".")[2] == "parametrizations" or ".parametrizations." in f".{prefix}.":
            continue
        owned: dict[str, Any] = {**dict(each.named_parameters(recurse=False)), **_buffers(each)}
        if parametrize.is_parametrized(each):
            owned |= {name: getattr(each, name) for name in each.parametrizations}
        found |= {f"{prefix}.{name}" if prefix else name: tensor for name, tensor in owned.items()}
    return {name: tensor for name, tensor in found.items() if tensor.is_floating_point()}


def _buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    # Those that are not kept are made anew from the sizes: they are no weights.
    skipped = module._non_persistent_buffers_set
    return {name: buffer for name, buffer in module.named_buffers(recurse=False) if name not in skipped}


def _export(module: TailModule) -> bytes:
    sample = torch.ones(1, int(np.prod(module.cut_shape)))
    buffer = io.BytesIO()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.onnx.export(
                module,
                (sample,),
                buffer,
                dynamo=False,
                opset_version=OPSET,
                # As it is, which is evaluation; "evaluation" by name would fold batch norm into the convolutions.
                training=torch.onnx.TrainingMode.PRESERVE,
                do_constant_folding=False,
                input_names=["activations"],
                output_names=["features"],
                dynamic_axes={"activations": {0: "N"}, "features": {0: "N"}},
            )
    # The exporter has no base error.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise BackboneError(f"torch cannot export the tail to ONNX: {reason}") from error
    return buffer.getvalue()
