"""A trunk at rest: its ONNX bytes as they are, and beside them a JSON manifest with everything else."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import asdict

import numpy as np

from everlearn.errors import DataLossError
from everlearn.values import FeatureScale, FrontConfig, Trunk

_FORMAT = 1


def dump_manifest(trunk: Trunk) -> bytes:
    """Canonical JSON: front, scale, parity, provenance, and the sha256 of the ONNX bytes."""
    body = {
        "format": _FORMAT,
        "onnx_sha256": trunk.digest,
        "front": asdict(trunk.front),
        "scale": {
            "bits": trunk.scale.bits,
            "step_d": base64.b64encode(trunk.scale.step_d.astype("<f4").tobytes()).decode(),
            "sha256": trunk.scale.digest,
        },
        "parity_max_rel_diff": trunk.parity_max_rel_diff,
        "provenance": dict(trunk.provenance),
    }
    return json.dumps(body, sort_keys=True, indent=1).encode()


def load_trunk(onnx: bytes, manifest: bytes) -> Trunk:
    """The trunk that was dumped. Raises DataLossError if the manifest is broken or does not belong to these bytes."""
    try:
        body = json.loads(manifest)
        if body["format"] != _FORMAT:
            raise DataLossError(f"trunk manifest of format {body['format']}; this version reads {_FORMAT}")
        found = hashlib.sha256(onnx).hexdigest()
        if found != body["onnx_sha256"]:
            raise DataLossError(f"trunk is {found}, its manifest says {body['onnx_sha256']}; delete it, it is rebuilt")
        front = body["front"] | {"mean": tuple(body["front"]["mean"]), "std": tuple(body["front"]["std"])}
        steps = np.frombuffer(base64.b64decode(body["scale"]["step_d"], validate=True), "<f4").astype(np.float32)
        scale = FeatureScale(step_d=steps, bits=body["scale"]["bits"])
        if scale.digest != body["scale"]["sha256"]:
            raise DataLossError("the feature scale in the trunk's manifest does not match its digest")
        return Trunk(
            onnx=onnx,
            scale=scale,
            front=FrontConfig(**front),
            parity_max_rel_diff=float(body["parity_max_rel_diff"]),
            provenance=dict(body["provenance"]),
        )
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise DataLossError(f"the trunk's manifest cannot be read ({type(error).__name__})") from error
