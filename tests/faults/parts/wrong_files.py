"""Model files, weights' headers and tokenizers made wrong by the thousand: refused in our words, and nobody dies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.faults import mutated_files

SHORT: Mapping[str, int] = {"onnx": 100, "safetensors": 60, "tokenizer": 60}
LONG: Mapping[str, int] = {"onnx": 10_000, "safetensors": 10_000, "tokenizer": 5_000}


def run(folder: Path, *, onnx: int, safetensors: int, tokenizer: int) -> Mapping[str, object]:
    """So many files of each kind."""
    counts: dict[str, object] = {}
    for kind, files in {"onnx": onnx, "safetensors": safetensors, "tokenizer": tokenizer}.items():
        found = mutated_files.run(kind, files, 20261121)
        assert not found["violations"], f"{kind}: {found['violations']}"
        counts[f"of {kind}"] = " + ".join(f"{count} {what}" for what, count in sorted(found["counts"].items()))
        if found["deaths"]:
            counts[f"{kind} that ended a child"] = "; ".join(death[:200] for death in found["deaths"])
    return counts
