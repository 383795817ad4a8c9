"""The upper layers of an MLP as a torch module, where they learn. `everlearn.backbones.mlp` has all the rest.

Axes: N samples, i inputs and o outputs of a layer.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from everlearn.backbones.cut import TailModule
from everlearn.backbones.tail import Tail


class _Shell(nn.Module):  # type: ignore[misc]  # torch's types are skipped, see pyproject
    """Layers by their number in the whole network, as timm's networks have two halves of their forward pass."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)

    def forward_features(self, x_Ni: torch.Tensor) -> torch.Tensor:
        """Through all layers."""
        for layer in self.layers.values():
            x_Ni = layer(x_Ni)
        return x_Ni

    def forward_head(self, x_No: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Nothing: what the last layer gives are the features."""
        return x_No


def rebuilt(tail: Tail) -> TailModule:
    """The module that an MLP's tail stands for, with torch's own first weights."""
    widths = [int(width) for width in tail.architecture.partition("/")[2].split("x")]
    first = 0 if tail.blocks is None else len(widths) - tail.blocks
    upper = widths[first:]
    sizes = zip([tail.input_dim, *upper], upper, strict=False)
    layers = {f"{first + place}": _layer(before, width) for place, (before, width) in enumerate(sizes)}
    names = tuple(f"layers.{name}" for name in layers)
    return TailModule(_Shell(layers), () if tail.blocks is None else names, names, tail.shape)


def _layer(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(OrderedDict(linear=nn.Linear(inputs, outputs), relu=nn.ReLU()))
