"""Text encoders of the Transformers library: BERT, DistilBERT, RoBERTa and XLM-RoBERTa, MPNet, from verified weights.

Only the library's own, installed code runs: config.json names a kind of encoder and gives numbers, nothing else of it
is used, and nothing is downloaded.

    text -> tokenizer.json -> input_ids [N, L] -> encoder -> mean over tokens, or the first -> (unit length) -> features

The graph makes the attention mask by itself from the padding, so that it has one input. Pooling as the repository's
own files for Sentence Transformers say (Reimers & Gurevych 2019, section 3), the mean where they say nothing.

Axes: N texts, L tokens, d features.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
import transformers
from safetensors.torch import load as load_safetensors

from everlearn.backbones.base import BackboneDefaults, Loader, provenance_of, read_verified, weights_name
from everlearn.backbones.cut import TailModule
from everlearn.backbones.encoder_cut import ENCODERS, arguments_of, rebuilt, split_encoder
from everlearn.backbones.encoder_torch import KINDS, Pooled, config_of, encoder_of
from everlearn.backbones.pooling import pooling_of, trained_tokens
from everlearn.backbones.probes import Reference, finish, probes_of
from everlearn.backbones.tail import Tail
from everlearn.backbones.tail_torch import make_tail
from everlearn.backbones.torch_file import with_safetensors
from everlearn.errors import BackboneError
from everlearn.inputs.text import own_max_tokens, tokenizer_of
from everlearn.runtime.session import join
from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles, FeaturesBd, Front, TextFront, Trunk, TrunkInput

OPSET = 20
"""Newest that torch's TorchScript exporter writes."""
MAX_TOKENS = 512
"""Longest text by default, where tokenizer.json says nothing."""
_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"
_NUMBERS = frozenset(
    {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"}
    | {"max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id", "bos_token_id", "eos_token_id"}
    | {"relative_attention_num_buckets", "dim", "hidden_dim", "n_layers", "n_heads", "activation"}
    | {"sinusoidal_pos_embds"}
)
"""Of a config.json: sizes and switches of the encoder; none that names code or files."""
_FOREIGN = frozenset(
    {"auto_map", "trust_remote_code", "_attn_implementation_internal", "custom_generate", "custom_pipelines"}
    | {"is_decoder", "add_cross_attention", "pruned_heads", "quantization_config"}
)
"""Of a config.json, at any depth: code of its own, or another network than the kind stands for."""
_MOST = {"num_hidden_layers": 512, "n_layers": 512}
_MOST_OF_ANY = 2**21
"""Largest number in a config.json; vocabularies have 250,000 tokens."""
_HEADS = ("pooler.", "cls.", "lm_head.", "classifier.", "pre_classifier.", "vocab_", "qa_outputs.")
"""Parts of a checkpoint behind the encoder."""
_LEGACY = {".gamma": ".weight", ".beta": ".bias"}

State = dict[str, torch.Tensor]


class TransformersLoader(Loader):
    """Loads weights strictly into an encoder without its heads, and exports the pooled, normalised features."""

    def describe(self, backbone: Backbone, files: BackboneFiles | None) -> BackboneDefaults:
        """Kind and width from config.json, tokenizer and its length from tokenizer.json."""
        if files is None:
            raise BackboneError("a text encoder is described by its config.json and tokenizer.json; fetch them first")
        config = _config(backbone, files)
        tokenizer = _tokenizer(files)
        places = _places(config)
        return BackboneDefaults(
            modality="text",
            architecture=config.model_type,
            tokenizer=hashlib.sha256(tokenizer).hexdigest(),
            max_tokens=min(trained_tokens(files) or own_max_tokens(tokenizer) or MAX_TOKENS, places),
            most_tokens=places,
            feature_dim=config.hidden_size,
            licence=None,
        )

    def build(self, backbone: Backbone, files: BackboneFiles, front: Front, *, bits: int) -> Trunk:
        """See the base class."""
        front = _text_front(front)
        whole, tokenizer, provenance = self._loaded(backbone, files, front)
        return finish(_export(whole), front, bits, provenance, _reference(whole), tokenizer=tokenizer)

    def build_cut(
        self, backbone: Backbone, files: BackboneFiles, front: Front, *, bits: int, blocks: int | None
    ) -> tuple[Trunk, Tail]:
        """See the base class. The tail takes as many places as the front has tokens, those without a token zero."""
        front = _text_front(front)
        whole, tokenizer, provenance = self._loaded(backbone, files, front)
        probes = probes_of(front, tokenizer)
        halves = split_encoder(whole, blocks, front.max_tokens, torch.from_numpy(join(probes[:4])))

        def reference(input_ids: TrunkInput) -> FeaturesBd:
            with torch.inference_mode():
                flat_Bd: FeaturesBd = halves.trunk(torch.from_numpy(input_ids)).numpy()
            return flat_Bd

        tail = make_tail(
            halves,
            f"{ENCODERS}{whole.encoder.config.model_type}",
            arguments_of(whole, _numbers(files)),
            (0, front.max_tokens),
            blocks=blocks,
            activations_Nd=np.concatenate([reference(probe) for probe in probes]),
        )
        provenance |= {"cut": halves.cut, "cut_shape": "x".join(map(str, tail.shape))}
        trunk = finish(
            _export(halves.trunk),
            front,
            bits,
            provenance,
            reference,
            channels_d=tail.channels,
            tokenizer=tokenizer,
        )
        return trunk, tail

    def rebuild(self, tail: Tail) -> TailModule:
        """See the base class."""
        return rebuilt(tail)

    def _loaded(
        self, backbone: Backbone, files: BackboneFiles, front: TextFront
    ) -> tuple[Pooled, bytes, dict[str, str]]:
        """The encoder with its weights and its pooling, its tokenizer, and what is to be told of it."""
        torch.set_num_threads(1)
        config, tokenizer = _config(backbone, files), _tokenizer(files)
        _check_tokens(config, tokenizer, front)
        pooling = pooling_of(files)
        encoder = encoder_of(config)
        _load_strictly(encoder, _weights(backbone, files), config.model_type)
        provenance = provenance_of(backbone, files) | {
            "architecture": str(config.model_type),
            "licence": "unknown",
            "pooling": f"{pooling.kind}, {'unit length' if pooling.normalise else 'as it is'}",
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        }
        # The exporter leaves a module as it found it: one that trains would drop activations from then on.
        return Pooled(encoder, pooling).eval(), tokenizer, provenance


def _text_front(front: Front) -> TextFront:
    if not isinstance(front, TextFront):
        raise BackboneError("the backbone takes texts; write modality: text", field="spec.input.modality")
    return front


def _reference(whole: Pooled) -> Reference:
    """The library's own way, with a mask of its own, on one text without padding."""
    encoder, pooling = whole.encoder, whole.pooling

    def reference(input_ids: TrunkInput) -> FeaturesBd:
        ids_1L = torch.from_numpy(input_ids)
        with torch.inference_mode():
            hidden_1Ld = encoder(input_ids=ids_1L, attention_mask=torch.ones_like(ids_1L)).last_hidden_state
        pooled_Bd: FeaturesBd = (hidden_1Ld[:, 0] if pooling.kind == "cls" else hidden_1Ld.mean(1)).numpy()
        return pooled_Bd / np.linalg.norm(pooled_Bd, axis=1, keepdims=True) if pooling.normalise else pooled_Bd

    return reference


def _export(module: torch.nn.Module) -> bytes:
    sample = torch.tensor([[5, 6, 7, -1, -1], [5, 6, 7, 8, 9]])
    buffer = io.BytesIO()
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            # Traced branches on shapes are what is wanted, and texts of other lengths are tried by `finish`.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (sample,),
                buffer,
                dynamo=False,
                opset_version=OPSET,
                input_names=["input_ids"],
                output_names=["features"],
                dynamic_axes={"input_ids": {0: "N", 1: "L"}, "features": {0: "N"}},
            )
    # The exporter has no base error; an operator it does not know ends here too.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise BackboneError(f"torch cannot export {type(module).__name__} to ONNX: {reason}") from error
    return buffer.getvalue()


def _foreign(told: Any) -> set[str]:
    """Which of _FOREIGN are set anywhere below."""
    found: set[str] = set()
    waiting = [told]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            found |= {name for name in _FOREIGN & each.keys() if each[name]}
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
    return found


def _config(backbone: Backbone, files: BackboneFiles) -> Any:
    if _CONFIG not in files.paths:
        raise BackboneError("there is no config.json beside the weights, which tells what encoder they are of")
    try:
        told = json.loads(read_verified(files, _CONFIG))
        kind = told.get("model_type")
    except (ValueError, AttributeError, RecursionError) as error:
        raise BackboneError("config.json is not a JSON object") from error
    if not isinstance(kind, str) or kind not in KINDS:
        raise BackboneError(
            f"config.json names a model of type {str(kind)[:40]!r}; encoders are {', '.join(KINDS)}",
            field="spec.backbone.source",
        )
    if backbone.architecture not in (None, kind):
        raise BackboneError(
            f"declared is {backbone.architecture}, the source's config.json says {kind}",
            field="spec.backbone.architecture",
        )
    foreign = sorted(_foreign(told))
    if foreign:
        raise BackboneError(
            f"config.json sets {foreign[0]}, which is not an encoder of the library as it is; choose another repository"
        )
    if told.get("position_embedding_type", "absolute") != "absolute":
        raise BackboneError("only absolute position embeddings are known; choose another encoder")
    numbers = _numbers(files)
    if any(not isinstance(value, int | float | str | None) for value in numbers.values()):
        raise BackboneError("config.json has sizes that are no numbers")
    large = [
        name
        for name, value in numbers.items()
        if isinstance(value, int | float) and not abs(value) <= _MOST.get(name, _MOST_OF_ANY)
    ]
    if large:
        raise BackboneError(f"config.json has a {large[0]} beyond that of any encoder; choose another repository")
    config = config_of(kind, numbers)
    if not isinstance(config.pad_token_id, int):
        raise BackboneError("config.json names no pad_token_id")
    return config


def _numbers(files: BackboneFiles) -> dict[str, Any]:
    told = json.loads(read_verified(files, _CONFIG))
    return {name: value for name, value in told.items() if name in _NUMBERS and value is not None}


def _tokenizer(files: BackboneFiles) -> bytes:
    if _TOKENIZER not in files.paths:
        raise BackboneError(
            "there is no tokenizer.json beside the weights; save the tokenizer in that form (a fast one "
            "of transformers does, with save_pretrained)",
            field="spec.backbone.source",
        )
    return read_verified(files, _TOKENIZER)


def _places(config: Any) -> int:
    """Longest text in tokens; RoBERTa and MPNet number places from behind the padding's."""
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "mpnet") else 0
    return int(config.max_position_embeddings) - offset


def _check_tokens(config: Any, tokenizer: bytes, front: TextFront) -> None:
    found = hashlib.sha256(tokenizer).hexdigest()
    if found != front.tokenizer:
        raise BackboneError(
            f"tokenizer.json has sha256 {found}, and {front.tokenizer} is declared", field="spec.input.tokenizer"
        )
    if front.max_tokens > _places(config):
        raise BackboneError(
            f"the encoder reads {_places(config)} tokens at most, not {front.max_tokens}",
            field="spec.input.max_tokens",
        )
    largest = tokenizer_of(tokenizer, front.max_tokens).largest_id
    if largest >= config.vocab_size:
        raise BackboneError(f"the tokenizer has token {largest}, the encoder only {config.vocab_size} of them")


def _weights(backbone: Backbone, files: BackboneFiles) -> State:
    if backbone.format not in ("safetensors", "torch"):
        raise BackboneError("loader transformers reads safetensors or torch files", field="spec.backbone.format")
    if backbone.keys != "same":
        raise BackboneError("encoders carry their names; leave `keys` out", field="spec.backbone.keys")
    name = weights_name(backbone, files)
    try:
        if backbone.format == "safetensors":
            return load_safetensors(read_verified(files, name))
        with tempfile.TemporaryDirectory(prefix="everlearn-") as folder:
            if f"{name}.safetensors" not in files.paths:
                files = with_safetensors(backbone, files, name, Path(folder))
            return load_safetensors(files.paths[f"{name}.safetensors"].read_bytes())
    except safetensors.SafetensorError as error:
        raise BackboneError(f"not a safetensors file: {error}", field="spec.backbone.format") from error


def _load_strictly(encoder: torch.nn.Module, state: State, kind: str) -> None:
    wanted = encoder.state_dict()
    given = _plain_names(state, encoder.base_model_prefix)
    problems = [f"missing {name}" for name in wanted if name not in given]
    for name, tensor in given.items():
        if name not in wanted:
            problems.append(f"unexpected {name}")
        elif tensor.shape != wanted[name].shape:
            problems.append(f"{name} is {list(tensor.shape)}, not {list(wanted[name].shape)}")
        elif tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16) or not tensor.isfinite().all():
            problems.append(f"{name} is {tensor.dtype}, or holds NaN or infinity")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise BackboneError(
            f"the weights do not fit {kind}: {', '.join(sorted(problems)[:5])}{more}", field="spec.backbone.source"
        )
    encoder.load_state_dict({name: tensor.float() for name, tensor in given.items()})


def _plain_names(state: Mapping[str, torch.Tensor], prefix: str) -> State:
    """The encoder's tensors by its own names: without a whole model's prefix, its heads, and buffers of places."""
    plain: State = {}
    for name, tensor in state.items():
        short = name.removeprefix(f"{prefix}.")
        for old, new in _LEGACY.items():
            short = short.removesuffix(old) + new if short.endswith(old) else short
        if not short.startswith(_HEADS) and not short.endswith("position_ids"):
            plain[short] = tensor
    return plain
