"""Tier `aggregate`: how often a linear decoder names the image that was in a step, from disk and from heads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.faults.inversion import Observer

SHORT: Mapping[str, int] = {"dim": 256, "steps": 200}
LONG: Mapping[str, int] = {"dim": 512, "steps": 400}


def run(folder: Path, *, dim: int, steps: int) -> Mapping[str, object]:
    """Candidates: 667. What is promised is asserted, what is not is counted. Nothing is written into `folder`."""
    observer, counts = Observer(dim), dict[str, object]()
    for samples, one_class in ((1, True), (8, True), (8, False), (64, False)):
        name = f"k {samples}, {'one class' if one_class else 'ten classes'}"
        disk = observer.from_sums(samples, steps=steps, one_class=one_class)
        heads = observer.from_heads(samples, steps=steps, one_class=one_class)
        counts[name] = f"named from disk {disk}, from heads {heads}"
        if samples == 1:
            assert min(disk.rate, heads.rate) > 0.6, f"the control, {counts[name]}"
        elif one_class:
            assert max(disk.rate, heads.rate) <= 0.10, f"{name}: {counts[name]}"
        elif samples == 64:
            assert max(disk.rate, heads.rate) <= 0.13, f"{name}: {counts[name]}"
    counts["not promised: membership of known features, k 64, from disk"] = str(observer.spans(64, steps=20))
    return counts
