"""A trunk at rest: its ONNX bytes as they are, and beside them a JSON manifest with everything else."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from everlearn.errors import DataLossError
from everlearn.values import FeatureScale, Front, FrontConfig, TensorFront, TextFront, Trunk

_FORMAT = 1
_FRONTS: dict[str, type[FrontConfig] | type[TensorFront] | type[TextFront]] = {
    "image": FrontConfig,
    "tensor": TensorFront,
    "text": TextFront,
}


def front_data(front: Front) -> dict[str, Any]:
    """A front as plain data, for JSON; `front_of` reads it back."""
    modality = next(name for name, kind in _FRONTS.items() if isinstance(front, kind))
    # Manifests of images, which were there first, name no modality.
    return asdict(front) if modality == "image" else {"modality": modality, **asdict(front)}


def front_of(data: Mapping[str, Any]) -> Front:
    """The front that `front_data` described. Raises TypeError, KeyError for what is none."""
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    return _FRONTS[fields.pop("modality", "image")](**fields)


def dump_manifest(trunk: Trunk) -> bytes:
    """Canonical JSON: front, scale, parity, provenance, and the sha256 of the ONNX bytes."""
    body = {
        "format": _FORMAT,
        "onnx_sha256": trunk.digest,
        "front": front_data(trunk.front),
        "scale": {
            "bits": trunk.scale.bits,
            "step_d": base64.b64encode(trunk.scale.step_d.astype("<f4").tobytes()).decode(),
            "sha256": trunk.scale.digest,
        },
        "parity_max_rel_diff": trunk.parity_max_rel_diff,
        "provenance": dict(trunk.provenance),
    }
    if trunk.tokenizer:
        body["tokenizer"] = trunk.tokenizer.decode()
    return json.dumps(body, sort_keys=True, indent=1).encode()


def provenance_in(manifest: bytes) -> dict[str, str]:
    """What a trunk tells of its source, without its bytes. Raises DataLossError."""
    try:
        return {str(name): str(value) for name, value in json.loads(manifest)["provenance"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataLossError(f"the trunk's manifest cannot be read ({type(error).__name__})") from error


def load_trunk(onnx: bytes, manifest: bytes) -> Trunk:
    """The trunk that was dumped. Raises DataLossError if the manifest is broken or does not belong to these bytes."""
    try:
        body = json.loads(manifest)
        if body["format"] != _FORMAT:
            raise DataLossError(f"trunk manifest of format {body['format']}; this version reads {_FORMAT}")
        found = hashlib.sha256(onnx).hexdigest()
        if found != body["onnx_sha256"]:
            raise DataLossError(f"trunk is {found}, its manifest says {body['onnx_sha256']}; delete it, it is rebuilt")
        steps = np.frombuffer(base64.b64decode(body["scale"]["step_d"], validate=True), "<f4").astype(np.float32)
        scale = FeatureScale(step_d=steps, bits=body["scale"]["bits"])
        if scale.digest != body["scale"]["sha256"]:
            raise DataLossError("the feature scale in the trunk's manifest does not match its digest")
        front, tokenizer = front_of(body["front"]), body.get("tokenizer", "").encode()
        if isinstance(front, TextFront) and hashlib.sha256(tokenizer).hexdigest() != front.tokenizer:
            raise DataLossError("the tokenizer in the trunk's manifest does not match its digest")
        return Trunk(
            onnx=onnx,
            scale=scale,
            front=front,
            parity_max_rel_diff=float(body["parity_max_rel_diff"]),
            provenance=dict(body["provenance"]),
            tokenizer=tokenizer,
        )
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise DataLossError(f"the trunk's manifest cannot be read ({type(error).__name__})") from error
