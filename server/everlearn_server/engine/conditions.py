"""What a model's status says about its backbone (Kubernetes' conditions)."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from everlearn.errors import DataLossError, EverlearnError, PreconditionError, UnavailableError
from everlearn_server.engine.damages import Damage
from everlearn_server.store.rows import ModelRow


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


def not_ready(row: ModelRow, damaged: Sequence[Damage]) -> EverlearnError:
    """What a caller meets who wants a model that does not learn."""
    if damaged and row.state != "READY":
        return DataLossError(f"model {row.name!r} cannot go on: {damaged[0].message}")
    if row.state == "READY":  # stopped for a moment, or for good
        return UnavailableError(f"model {row.name!r} is stopped for the moment; try again")
    return PreconditionError(
        f"model {row.name!r} is {row.state.lower()}; see `everlearn describe {row.name}`", reason="MODEL_NOT_READY"
    )
