"""What is committed of tests before learning: the model's record, and beside it what each client's batches showed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from everlearn.metrics.fleet import FleetTally

FLEET: Final = "fleet"
"""Beside the record's own keys; earlier releases pass over it."""


def records_json(told: Mapping[str, Any], fleet: FleetTally) -> str:
    """As one JSON object. `told`: what the record's `to_dict` gives."""
    return json.dumps({**told, FLEET: fleet.to_dict()})
