"""What a model card says where the file is not in the precision that the server computes in."""

from __future__ import annotations

from dataclasses import dataclass

from everlearn.export.parity import ReleaseReport
from everlearn.export.precision import Precision

_HOW = {
    "fp16": "The weights of the pretrained network are stored as 16-bit floats, which halves the file. ONNX Runtime "
    "makes 32-bit floats of them when it loads it: answers take the time and the memory that they take in fp32. Front "
    "and head are as they were.",
}


@dataclass(frozen=True, kw_only=True)
class PrecisionFacts:
    """What is to be said of it."""

    precision: Precision
    tolerance: float
    """Most that a score was allowed to differ by, relative to max(1, the sample's largest)."""


def section(facts: PrecisionFacts | None, parity: ReleaseReport) -> list[str]:
    """A part of the card; none for the server's own precision."""
    if facts is None:
        return []
    lines = [
        _HOW[facts.precision],
        f"Against the server, which computes in fp32, scores differ by at most {parity.composed.max_rel_diff:.1e} of "
        f"their size; {facts.tolerance:g} is allowed. Labels agree on {100 * parity.composed.label_agreement:.1f} % of "
        f"{parity.composed.probes} probes, and on all whose two best scores are further apart than that can move them.",
    ]
    return [f"## Precision: {facts.precision}\n\n" + "\n\n".join(lines)]
