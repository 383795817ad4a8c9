"""What a gradient learner is, as a value, and its bytes (`layout`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors

from everlearn.errors import DataLossError
from everlearn.learners.gradient import layout


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything that a learner is, without code."""

    tensors: Mapping[str, torch.Tensor]
    header: Mapping[str, Any]
    """JSON-able."""
    memory: bytes = b""

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """Tensors whose names begin so, without it."""
        return {name[len(prefix) :]: value for name, value in self.tensors.items() if name.startswith(prefix)}


def pack(state: State) -> bytes:
    """Bytes of a state; equal states give equal bytes."""
    # Copies: safetensors refuses views and tensors that share memory.
    tensors = {name: state.tensors[name].detach().cpu().clone().contiguous() for name in sorted(state.tensors)}
    return layout.join(state.header, safetensors.save(tensors), state.memory)


def unpack(data: bytes) -> State:
    """What `pack` wrote. Raises DataLossError for anything else."""
    parts = layout.split(data)
    try:
        tensors = safetensors.load(parts.tensors)
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataLossError(f"these bytes are sealed but not a gradient learner: {error}") from error
    return State(tensors=tensors, header=parts.header, memory=parts.memory)
