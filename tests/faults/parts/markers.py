"""Thousands of marked payloads of every kind, found nowhere: neither once durable or refused, nor after a crash."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.faults import markers_run

SHORT: Mapping[str, int] = {"payloads": 64, "seed": 20261121}
LONG: Mapping[str, int] = {"payloads": 1_000, "seed": 20261121}
"""Of each kind."""


def run(folder: Path, *, payloads: int, seed: int) -> Mapping[str, object]:
    """All kinds through one server, two that die and one that is traced."""
    found = markers_run.run(payloads, seed)
    assert not found["hits"], found["places"]
    counts: dict[str, object] = {kind: _told(counts) for kind, counts in found["sent"].items()}
    return counts | {
        "payloads in all": found["payloads"],
        "hits": found["hits"],
        "looked through": ", ".join(sorted(found["places"])),
        "processes whose memory was read": _told(found["processes"]),
        "processes whose writes were traced": _told(found["traced"]),
        "labels and names at rest, which stay": found["allowed_strings_at_rest"],
        "not looked through here": "; ".join(f"{place}: {why}" for place, why in found["not_here"].items())
        or "nothing",
    }


def _told(counts: Mapping[str, int]) -> str:
    return " + ".join(f"{count} {what}" for what, count in counts.items())
