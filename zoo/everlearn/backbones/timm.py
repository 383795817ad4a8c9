"""Any architecture of timm (PyTorch Image Models), with weights from verified safetensors.

Only timm's own, installed code runs: a repository's config.json names an architecture of the installed registry and
gives numbers, nothing else of it is used, and nothing is downloaded.

Axes: N images, d features.
"""

from __future__ import annotations

import difflib
import io
import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import safetensors
import timm
import torch
from safetensors.torch import load as load_safetensors

from everlearn.backbones.base import BackboneDefaults, Loader, image_front, provenance_of, read_verified, weights_name
from everlearn.backbones.cut import TailModule, split
from everlearn.backbones.probes import Reference, finish, probes_of
from everlearn.backbones.tail import Tail
from everlearn.backbones.tail_torch import make_tail
from everlearn.backbones.torch_file import ORDER, with_safetensors
from everlearn.errors import BackboneError
from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles, FeaturesBd, Front, FrontConfig, Interpolation, Trunk, TrunkInput

OPSET = 20
"""Newest that torch's TorchScript exporter writes."""

_CONFIG = "config.json"
_ARGUMENTS = frozenset(
    {"img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "global_pool", "class_token"}
    | {"reg_tokens", "init_values", "qkv_bias", "dynamic_img_size", "no_embed_class", "pre_norm", "fc_norm"}
)
"""Of a config's `model_args`: sizes and switches of the architecture; none that names code or files."""
_BOOKKEEPING = "num_batches_tracked"
"""A counter in each BatchNorm that inference never reads; old files lack it."""

State = dict[str, torch.Tensor]


class TimmLoader(Loader):
    """Loads weights strictly into a timm architecture without its classifier, and exports the pooled features."""

    def describe(self, backbone: Backbone, files: BackboneFiles | None) -> BackboneDefaults:
        """From the config's `pretrained_cfg`, what it lacks from timm's own for the architecture."""
        config = _config(files)
        architecture = _architecture(backbone, config)
        own = timm.get_pretrained_cfg(_with_tag(backbone, architecture))
        told: dict[str, Any] = (own.to_dict() if own is not None else {}) | _pretrained_cfg(config)
        channels, height, width = told.get("input_size", (3, 224, 224))
        if channels != 3:
            raise BackboneError(f"{architecture} takes {channels} channels; images have 3")
        return BackboneDefaults(
            architecture=architecture,
            height=int(height),
            width=int(width),
            fixed_size=bool(told.get("fixed_input_size", False)),
            crop_pct=float(told.get("crop_pct") or 0.875),
            interpolation=_interpolation(told.get("interpolation", "bicubic")),
            mean=_triple(told.get("mean"), (0.485, 0.456, 0.406)),
            std=_triple(told.get("std"), (0.229, 0.224, 0.225)),
            feature_dim=config.get("num_features") if isinstance(config.get("num_features"), int) else None,
            licence=str(told["license"]) if told.get("license") else None,
        )

    def build(self, backbone: Backbone, files: BackboneFiles, front: Front, *, bits: int) -> Trunk:
        """See the base class."""
        front = image_front(front)
        model, provenance = self._loaded(backbone, files, front)
        return finish(_export(model, front), front, bits, provenance, _reference(model))

    def build_cut(
        self, backbone: Backbone, files: BackboneFiles, front: Front, *, bits: int, blocks: int | None
    ) -> tuple[Trunk, Tail]:
        """See the base class."""
        front = image_front(front)
        model, provenance = self._loaded(backbone, files, front)
        probes = probes_of(front)
        halves = split(model, blocks, torch.from_numpy(np.concatenate(probes[:4])))
        reference = _reference(halves.trunk)
        config = _config(files)
        tail = make_tail(
            halves,
            _architecture(backbone, config),
            _arguments(config),
            (front.height, front.width),
            blocks=blocks,
            # One by one: the values of 24 images at an early cut may be large.
            activations_Nd=np.concatenate([reference(probe) for probe in probes]),
        )
        provenance |= {"cut": halves.cut or "pixels", "cut_shape": "x".join(map(str, tail.shape))}
        graph = _export(halves.trunk, front)
        if blocks is None:  # pixels are pixels: only a name tells such trunks, and so what belongs to each, apart
            graph = _named(graph, f"pixels-{tail.digest[:16]}")
        return finish(graph, front, bits, provenance, reference, channels_d=tail.channels), tail

    def rebuild(self, tail: Tail) -> TailModule:
        """See the base class."""
        model = _create(tail.architecture, tail.arguments, classes=0)
        generator = torch.Generator().manual_seed(0)
        return split(model, tail.blocks, torch.randn(2, 3, tail.height, tail.width, generator=generator)).tail

    def _loaded(
        self, backbone: Backbone, files: BackboneFiles, front: FrontConfig
    ) -> tuple[torch.nn.Module, dict[str, str]]:
        """The network with its weights and without its classifier, and what is to be told of it."""
        torch.set_num_threads(1)
        told = self.describe(backbone, files)
        if told.fixed_size and (front.height, front.width) != (told.height, told.width):
            raise BackboneError(
                f"{told.architecture} takes {told.height} x {told.width} pixels only, "
                f"not {front.height} x {front.width}",
                field="spec.input.size",
            )
        config = _config(files)
        model = _create(_architecture(backbone, config), _arguments(config), classes=0)
        _load_strictly(model, self._weights(backbone, files, model, config))
        provenance = provenance_of(backbone, files) | {
            "architecture": str(told.architecture),
            "licence": told.licence or "unknown",
            "timm": timm.__version__,
            "torch": torch.__version__,
        }
        return model.eval(), provenance

    def _weights(
        self, backbone: Backbone, files: BackboneFiles, model: torch.nn.Module, config: Mapping[str, Any]
    ) -> State:
        name = weights_name(backbone, files)
        if backbone.format == "safetensors":
            state, order = _read_safetensors(read_verified(files, name))
        elif backbone.format == "torch":
            state, order = _read_converted(backbone, files, name)
        else:
            raise BackboneError("loader timm reads safetensors or torch files", field="spec.backbone.format")
        if backbone.keys == "by_order":
            whole = _create(_architecture(backbone, config), _arguments(config), classes=None)
            state = rename_by_order(state, order, whole.state_dict())
        return _without_classifier(state, _classifiers(model))


def _reference(module: torch.nn.Module) -> Reference:
    def reference(pixels_BCHW: TrunkInput) -> FeaturesBd:
        with torch.inference_mode():
            features_Bd: FeaturesBd = module(torch.from_numpy(pixels_BCHW)).numpy()
        return features_Bd

    return reference


def rename_by_order(state: State, order: list[str] | None, wanted: State) -> State:
    """Gives tensors the names of a model with classifier, position by position.

    Raises BackboneError unless count, every shape and every leaf name agree, or if the file keeps no order.
    """
    field = "spec.backbone.keys"
    if order is None:
        raise BackboneError(
            "a safetensors file keeps no order of its tensors; `keys: by_order` needs format torch", field=field
        )
    if len(order) != len(wanted):
        raise BackboneError(f"the file has {len(order)} tensors, the architecture {len(wanted)}", field=field)
    for position, (name, target) in enumerate(zip(order, wanted, strict=True)):
        found, needed = _sketch(name, state[name]), _sketch(target, wanted[target])
        if found != needed:
            raise BackboneError(
                f"tensor {position} is {name} {list(state[name].shape)} in the file and {target} "
                f"{list(wanted[target].shape)} in the architecture; `by_order` needs equal shapes and last names",
                field=field,
            )
    return {target: state[name] for name, target in zip(order, wanted, strict=True)}


def _sketch(name: str, tensor: torch.Tensor) -> tuple[str, tuple[int, ...]]:
    return name.rpartition(".")[2], tuple(tensor.shape)


def _create(architecture: str, arguments: Mapping[str, Any], *, classes: int | None) -> torch.nn.Module:
    number = {} if classes is None else {"num_classes": classes}
    try:
        model: torch.nn.Module = timm.create_model(architecture, pretrained=False, **arguments, **number)
    # Constructors raise whatever a wrong number leads them into.
    except Exception as error:
        raise BackboneError(
            f"timm cannot create {architecture} with {dict(arguments)}: {error}", field="spec.backbone.architecture"
        ) from error
    return model


def _load_strictly(model: torch.nn.Module, state: State) -> None:
    wanted = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(_BOOKKEEPING)}
    given = {name: tensor for name, tensor in state.items() if not name.endswith(_BOOKKEEPING)}
    problems = [f"missing {name}" for name in wanted if name not in given]
    problems += [f"unexpected {name}" for name in given if name not in wanted]
    for name in wanted.keys() & given.keys():
        mine, theirs = wanted[name], given[name]
        if mine.shape != theirs.shape:
            problems.append(f"{name} is {list(theirs.shape)}, not {list(mine.shape)}")
        elif mine.is_floating_point() != theirs.is_floating_point() or theirs.dtype == torch.float64:
            problems.append(f"{name} is {theirs.dtype}, not {mine.dtype}")
        elif theirs.is_floating_point() and not bool(torch.isfinite(theirs).all()):
            problems.append(f"{name} holds NaN or infinity")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise BackboneError(
            f"the weights do not fit {type(model).__name__}: {', '.join(sorted(problems)[:5])}{more}",
            field="spec.backbone.architecture",
        )
    model.load_state_dict(state, strict=False)


def _classifiers(model: torch.nn.Module) -> tuple[str, ...]:
    told = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return (told,) if isinstance(told, str) else tuple(told)


def _without_classifier(state: State, classifiers: tuple[str, ...]) -> State:
    prefixes = tuple(f"{classifier}." for classifier in classifiers)
    return {name: tensor for name, tensor in state.items() if not name.startswith(prefixes)}


def _export(model: torch.nn.Module, front: FrontConfig) -> bytes:
    sample = torch.zeros(1, 3, front.height, front.width)
    buffer = io.BytesIO()
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            # Traced branches on shapes are what is wanted: the size is fixed, and the batch is tried by `finish`.
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            if model(sample).ndim != 2:
                raise BackboneError(
                    f"{type(model).__name__} gives no pooled feature vector", field="spec.backbone.architecture"
                )
            torch.onnx.export(
                model,
                (sample,),
                buffer,
                # The TorchScript exporter is far quicker, and ONNX Runtime runs what either makes equally fast.
                dynamo=False,
                opset_version=OPSET,
                input_names=["pixels"],
                output_names=["features"],
                dynamic_axes={"pixels": {0: "N"}, "features": {0: "N"}},
            )
    except BackboneError:
        raise
    # The exporter has no base error; an operator it does not know ends here too.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise BackboneError(f"torch cannot export {type(model).__name__} to ONNX: {reason}") from error
    return buffer.getvalue()


def _named(data: bytes, name: str) -> bytes:
    model = onnx.load_model_from_string(data)
    model.graph.name = name
    return bytes(model.SerializeToString(deterministic=True))


def _read_safetensors(data: bytes) -> tuple[State, None]:
    try:
        return load_safetensors(data), None
    except safetensors.SafetensorError as error:
        raise BackboneError(f"not a safetensors file: {error}", field="spec.backbone.format") from error


def _read_converted(backbone: Backbone, files: BackboneFiles, name: str) -> tuple[State, list[str]]:
    """Tensors of a torch file and their order, by way of the limited child."""
    with tempfile.TemporaryDirectory(prefix="everlearn-") as folder:
        if f"{name}.safetensors" not in files.paths:
            files = with_safetensors(backbone, files, name, Path(folder))
        path = files.paths[f"{name}.safetensors"]
        with safetensors.safe_open(path, "pt") as opened:
            order: list[str] = json.loads(opened.metadata()[ORDER])
        return load_safetensors(path.read_bytes()), order


def _config(files: BackboneFiles | None) -> dict[str, Any]:
    if files is None or _CONFIG not in files.paths:
        return {}
    try:
        config = json.loads(read_verified(files, _CONFIG))
    except (ValueError, RecursionError) as error:
        raise BackboneError(f"config.json is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise BackboneError("config.json is not an object")
    return config


def _pretrained_cfg(config: Mapping[str, Any]) -> dict[str, Any]:
    told = config.get("pretrained_cfg", {})
    return {key: value for key, value in told.items() if value is not None} if isinstance(told, dict) else {}


def _architecture(backbone: Backbone, config: Mapping[str, Any]) -> str:
    """The declared architecture, or the config's; without the tag. Raises BackboneError unless timm has it."""
    declared = backbone.architecture.partition(".")[0] if backbone.architecture else None
    told = config.get("architecture")
    name = declared or told
    field = "spec.backbone.architecture"
    if not isinstance(name, str):
        raise BackboneError("the source has no config.json that names an architecture; declare one", field=field)
    if name not in timm.list_models():
        near = ", ".join(difflib.get_close_matches(name, timm.list_models(), 3))
        raise BackboneError(
            f"timm {timm.__version__} has no architecture {name!r}" + (f"; near: {near}" if near else ""), field=field
        )
    if declared and isinstance(told, str) and told != declared:
        raise BackboneError(f"declared is {declared}, the source's config.json says {told}", field=field)
    return name


def _with_tag(backbone: Backbone, architecture: str) -> str:
    tagged = backbone.architecture
    return tagged if tagged and tagged in timm.list_pretrained() else architecture


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    told = config.get("model_args") or {}
    plain = isinstance(told, dict) and all(
        isinstance(value, bool | int | float | str | list) for value in told.values()
    )
    unknown = sorted(set(told) - _ARGUMENTS - {"num_classes"}) if plain else ["model_args"]
    if unknown:
        raise BackboneError(f"config.json sets {unknown}, which are not allowed; allowed are {sorted(_ARGUMENTS)}")
    return {key: value for key, value in told.items() if key != "num_classes"}


def _interpolation(told: str) -> Interpolation:
    if told == "bilinear":
        return "bilinear"
    if told == "bicubic":
        return "bicubic"
    raise BackboneError(
        f"the backbone wants {told!r} interpolation; bilinear and bicubic are there, declare one of them"
    )


def _triple(told: object, default: tuple[float, float, float]) -> tuple[float, float, float]:
    if not isinstance(told, list | tuple) or len(told) != 3:
        return default
    return float(told[0]), float(told[1]), float(told[2])
