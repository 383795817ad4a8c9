"""What a model card says where the file is not in the precision that the server computes in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from everlearn.export.parity import ParityReport
from everlearn.export.precision import Precision

_HOW = {
    "fp16": "The weights of the pretrained network are stored as 16-bit floats, which halves the file. ONNX Runtime "
    "makes 32-bit floats of them when it loads it: answers take the time and the memory that they take in fp32. Front "
    "and head are as they were.",
    "int8": "The pretrained network computes in 8 bits (activations uint8 with a zero point, weights int8 with a scale "
    "for each channel), in ranges that its activations had while it learned. The head's weights are int8 with a scale "
    "for each label, and computed with in fp32. The front is as it was. Processors without VNNI or dot products gain "
    "less, and may differ in the last steps.",
}


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a graph in 8 bits has shown beside the server, on labelled samples that neither had learned."""

    tested: int
    """Samples, the newest of them."""
    accuracy: float
    fp32_accuracy: float
    """Of the server on the same samples."""
    max_drop: float
    """Allowed."""
    observed: int
    """Images that the ranges are from."""

    def told(self) -> dict[str, Any]:
        """For a record."""
        return dict(self.__dict__)


@dataclass(frozen=True, kw_only=True)
class PrecisionFacts:
    """What is to be said of it."""

    precision: Precision
    distance: ParityReport
    """To the server, which computes in fp32, on the probes."""
    tolerance: float | None = None
    """Most that a score was allowed to differ by, relative to max(1, the sample's largest); None: as far as it will."""
    evidence: Evidence | None = None
    calibrated_on: int = 0
    """Where the server learns and answers in 8 bits itself: images that its ranges are from."""

    def told(self) -> dict[str, Any]:
        """For a record."""
        parity = {
            "max_rel_diff": self.distance.max_rel_diff,
            "label_agreement": self.distance.label_agreement,
            "tolerance": self.tolerance,
        }
        own = (
            {"trunk": {"precision": self.precision, "calibrated_on": self.calibrated_on}} if self.calibrated_on else {}
        )
        return {"parity": parity} | own | ({"accuracy": self.evidence.told()} if self.evidence is not None else {})


def section(facts: PrecisionFacts | None) -> list[str]:
    """A part of the card; none for the server's own precision."""
    if facts is None:
        return []
    apart = facts.distance
    agreed = f"Labels agree on {100 * apart.label_agreement:.1f} % of {apart.probes} probes"
    differ = (
        f"Against the server, which computes in fp32, scores differ by at most {apart.max_rel_diff:.1e} of their size"
    )
    lines = [_HOW[facts.precision]]
    if facts.calibrated_on:
        own = (
            "It learned on this very graph, and the server answers with it: nothing was rounded afterwards. The ranges "
            f"are from the first {facts.calibrated_on} images. Weights of the network have 7 of the 8 bits, so that "
            f"processors without VNNI add up the same integers. Against the server scores differ by at most "
            f"{apart.max_rel_diff:.1e} of their size. {agreed}."
        )
        return [f"## Precision: {facts.precision}\n\n" + "\n\n".join([lines[0], own])]
    if facts.evidence is not None:
        lines.append(_tested(facts.evidence))
    if facts.tolerance is None:
        lines.append(f"{differ}. {agreed}, synthetic ones, which no range was made for.")
    else:
        lines.append(
            f"{differ}; {facts.tolerance:g} is allowed. {agreed}, and on all whose two best scores are further apart "
            "than that can move them."
        )
    return [f"## Precision: {facts.precision}\n\n" + "\n\n".join(lines)]


def _tested(evidence: Evidence) -> str:
    return (
        f"Tested beside the server on {evidence.tested} labelled samples of the stream, each before it was learned: "
        f"{100 * evidence.accuracy:.1f} % right, the server in fp32 {100 * evidence.fp32_accuracy:.1f} % on the same; "
        f"it may lose {100 * evidence.max_drop:.1f} points. The ranges are from {evidence.observed} images."
    )
