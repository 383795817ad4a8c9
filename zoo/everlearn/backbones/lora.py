"""LoRA: a few layers learn a difference of low rank, everything else rests (Hu et al. 2021, arXiv:2106.09685).

A layer's weight, as a matrix [outputs, inputs x kernel], becomes W + (alpha / r) B A with B zero at first, so that the
network starts as it was. Written as torch parametrisations of the weight: it works for linear layers and convolutions
alike, in whatever way their forward uses it, and `everlearn.backbones.tail_torch.weights_of` reads the sum, so that
an export has plain weights and no trace of the adapters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.utils import parametrize

from everlearn.errors import BackboneError

_FIELD = "spec.recipe.adapt.lora"
_ATTENTION = (
    *("*.attn.qkv", "*.attn.proj", "*.attn.q", "*.attn.k", "*.attn.v", "*.attn.kv"),
    *("*.attention.self.*", "*.attention.output.dense", "*.attention.?_lin", "*.attention.out_lin", "*.attn.o"),
)
"""Where the paper puts them (section 4.2), by timm's names and by Transformers'; the output projection is cheap and
helps."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """The adapters in a module, and what of it learns."""

    rank: int
    targets: tuple[str, ...]
    """Names of the layers that have one."""
    parameters: tuple[nn.Parameter, ...]
    """All that learns."""


class LowRank(nn.Module):  # type: ignore[misc]  # torch's types are skipped, see pyproject
    """Weight -> weight + scale * B A."""

    def __init__(self, weight: torch.Tensor, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        outputs, inputs = weight.shape[0], weight[0].numel()
        self.scale = scale
        # nn.Linear's own bounds, as in the authors' code: uniform within 1 / sqrt(inputs).
        drawn = (2 * torch.rand(rank, inputs, generator=generator) - 1) / math.sqrt(inputs)
        self.down = nn.Parameter(drawn.to(weight))
        self.up = nn.Parameter(weight.new_zeros(outputs, rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return weight + (self.scale * (self.up @ self.down)).view_as(weight)


def add_lora(
    module: nn.Module,
    rank: int,
    *,
    targets: Sequence[str] | None = None,
    alpha: float | None = None,
    seed: int = 0,
) -> Lora:
    """Puts an adapter on each target layer and lets nothing else learn. The output stays as it was.

    `targets`: patterns of layer names, as in the shell; None takes the attention's projections, or, where there is
    none, all pointwise convolutions and linear layers. `alpha`: the difference is scaled by alpha / rank; by default
    the rank. `seed`: of the adapters' first weights. Raises BackboneError if no layer is meant, a layer is smaller
    than the rank, or has an adapter already.
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    chosen = _default(layers) if targets is None else _matching(layers, targets)
    for name in chosen:
        largest = min(layers[name].weight.shape[0], layers[name].weight[0].numel())
        if parametrize.is_parametrized(layers[name]):
            raise BackboneError(f"{name} has an adapter already; one is enough", field=_FIELD)
        if not 1 <= rank <= largest:
            raise BackboneError(f"{name} takes ranks of 1 to {largest}, not {rank}", field=f"{_FIELD}.rank")
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    scale = (rank if alpha is None else alpha) / rank
    generator = torch.Generator().manual_seed(seed)
    learns: list[nn.Parameter] = []
    for name in chosen:
        adapter = LowRank(layers[name].weight.detach(), rank, scale, generator)
        parametrize.register_parametrization(layers[name], "weight", adapter)
        learns += [adapter.down, adapter.up]
    return Lora(rank=rank, targets=tuple(chosen), parameters=tuple(learns))


def merge_lora(module: nn.Module) -> None:
    """Folds every adapter into its layer's plain weight, in place; all of the module may learn again."""
    for layer in list(module.modules()):
        if parametrize.is_parametrized(layer, "weight") and isinstance(layer.parametrizations.weight[0], LowRank):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    for parameter in module.parameters():
        parameter.requires_grad_(True)


def _default(layers: dict[str, nn.Module]) -> list[str]:
    found = [name for name in layers if any(fnmatchcase(name, pattern) for pattern in _ATTENTION)]
    found = found or [name for name, layer in layers.items() if _pointwise(layer)]
    if not found:
        raise BackboneError(
            f"there is neither attention nor a pointwise layer; name some of {list(layers)[:8]} in targets",
            field=f"{_FIELD}.targets",
        )
    return found


def _pointwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (layer.kernel_size == (1, 1) and layer.groups == 1)


def _matching(layers: dict[str, nn.Module], targets: Sequence[str]) -> list[str]:
    for pattern in targets:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise BackboneError(
                f"no layer is called {pattern!r}; there are {', '.join(list(layers)[:8])}"
                + (f" and {len(layers) - 8} more" if len(layers) > 8 else ""),
                field=f"{_FIELD}.targets",
            )
    return [name for name in layers if any(fnmatchcase(name, pattern) for pattern in targets)]
