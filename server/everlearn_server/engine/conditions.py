"""What a model's status says about its backbone (Kubernetes' conditions)."""

from __future__ import annotations

import json
import time

from everlearn.errors import EverlearnError


def conditions_json(error: EverlearnError | None) -> str:
    """`BackboneReady`: true, or false with the reason and message of what went wrong."""
    return json.dumps(
        [
            {
                "type": "BackboneReady",
                "status": error is None,
                "reason": error.reason if error else "",
                "message": error.message if error else "",
                "time_s": time.time(),
            }
        ]
    )
