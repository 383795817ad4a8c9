"""Random sequences of learning and erasing: each ends in the state of those who never met the erased, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.faults import erasure_run

SHORT: Mapping[str, int] = {"sequences": 200}
LONG: Mapping[str, int] = {"sequences": 20_000}


def run(folder: Path, *, sequences: int, seed: int = 0) -> Mapping[str, object]:
    """Nothing is written into `folder`."""
    found = erasure_run.run(sequences, seed=seed)
    assert found.differing == [], f"seed {seed}, sequences {found.differing[:10]} differ"
    return {
        "sequences": found.sequences,
        "batches": found.batches,
        "erasures": found.erasures,
        "samples erased": found.samples,
        "differing": 0,
    }
