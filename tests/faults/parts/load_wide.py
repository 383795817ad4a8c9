"""The same load with feature vectors of 1280 numbers: what a batch of images comes to.

A commit is megabytes here, and has its pause from that: with as few batches under way as elsewhere, streams would wait
for it rather than for anything that they do.
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.faults.parts import load

SHORT: Mapping[str, int] = {**load.SHORT, "dim": 1280, "window": 8}
LONG: Mapping[str, int] = {**load.LONG, "dim": 1280, "window": 8, "seconds": 300, "overload": 1}
run = load.run
