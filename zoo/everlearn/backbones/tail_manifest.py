"""A tail at rest: its graph and weights as they are, and beside them a JSON manifest with everything else."""

from __future__ import annotations

import hashlib
import json

from everlearn.backbones.tail import Tail
from everlearn.errors import DataLossError

_FORMAT = 1
_PLAIN = ("architecture", "blocks", "cut", "channel_axis", "height", "width", "feature_dim")


def dump_tail(tail: Tail) -> bytes:
    """Canonical JSON: structure, and the sha256 of graph and weights."""
    body = {
        "format": _FORMAT,
        "graph_sha256": hashlib.sha256(tail.graph).hexdigest(),
        "weights_sha256": hashlib.sha256(tail.weights).hexdigest(),
        "arguments": dict(tail.arguments),
        "shape": list(tail.shape),
        **{name: getattr(tail, name) for name in _PLAIN},
    }
    return json.dumps(body, sort_keys=True, indent=1).encode()


def load_tail(graph: bytes, weights: bytes, manifest: bytes) -> Tail:
    """The tail that was dumped. Raises DataLossError if the manifest is broken or does not belong to these bytes."""
    try:
        body = json.loads(manifest)
        if body["format"] != _FORMAT:
            raise DataLossError(f"tail manifest of format {body['format']}; this version reads {_FORMAT}")
        for what, data in (("graph", graph), ("weights", weights)):
            found = hashlib.sha256(data).hexdigest()
            if found != body[f"{what}_sha256"]:
                raise DataLossError(f"the tail's {what} is {found}, its manifest says {body[f'{what}_sha256']}")
        plain = {name: body[name] for name in _PLAIN}
        return Tail(
            graph=graph, weights=weights, shape=tuple(body["shape"]), arguments=dict(body["arguments"]), **plain
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataLossError(f"the tail's manifest cannot be read ({type(error).__name__})") from error
