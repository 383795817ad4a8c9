"""How a gradient becomes a step: torch.optim's optimizers, with parameter groups that can grow and be stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Protocol

import torch
from torch import nn

from everlearn.learners.gradient.network import Layered
from everlearn.spec.recipe import Optimizer

ROWS: Final = 32
"""A declared learning rate is that of a step of this many rows."""


class Moving(Protocol):
    """What an optimizer moves: `top.` parameters, and `tail.` ones below them."""

    @property
    def tail(self) -> nn.Module | None:
        """The part of a backbone, if there is one."""

    def moving(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters that learn, by stable names."""


def optimizer_for(declared: Optimizer, network: Moving) -> torch.optim.Optimizer:
    """As declared, without state. Biases and norms do not decay; each block takes `layer_decay` of the one above."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.moving():
        share = declared.layer_decay ** _below_head(name, network.tail)
        decay = declared.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((share, decay), []).append(parameter)
    parts = [{"params": found, "weight_decay": decay, "share": share} for (share, decay), found in groups.items()]
    rate = declared.learning_rate or 0.0
    # One kernel a parameter, half the time on a small head. On CUDA torch's own choice, which keeps counts on the host.
    fused = True if network.moving()[0][1].device.type == "cpu" else None
    match declared.kind:
        case "sgd":
            momentum = declared.momentum or 0.0
            nesterov = bool(declared.nesterov) and momentum > 0  # of no momentum there is none to look ahead by
            return _with_momentum(torch.optim.SGD(parts, lr=rate, momentum=momentum, nesterov=nesterov, fused=fused))
        case "adam":
            return torch.optim.Adam(parts, lr=rate, fused=fused)
        case "adamw":
            return torch.optim.AdamW(parts, lr=rate, fused=fused)
        case "rmsprop":
            return torch.optim.RMSprop(parts, lr=rate, momentum=declared.momentum or 0.0)
        case "adagrad":
            return torch.optim.Adagrad(parts, lr=rate, fused=fused)


def set_rate(optimizer: torch.optim.Optimizer, declared: Optimizer, *, share: float, rows: int) -> float:
    """The head's rate of a step with so many rows; `share` is the schedule's.

    Linear: Goyal et al. 2017, section 2.1. Square root: Krizhevsky 2014, section 5.
    """
    scale = {"no": 1.0, "linear": rows / ROWS, "sqrt": math.sqrt(rows / ROWS)}[declared.scale_with_batch]
    rate = (declared.learning_rate or 0.0) * share * scale
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]
    return rate


def follow(optimizer: torch.optim.Optimizer, replaced: Mapping[nn.Parameter, nn.Parameter]) -> None:
    """Takes up grown parameters; what was kept of them grows with zeros."""
    for group in optimizer.param_groups:
        group["params"] = [replaced.get(parameter, parameter) for parameter in group["params"]]
    for old, grown in replaced.items():
        kept = optimizer.state.pop(old, None)
        if kept:
            optimizer.state[grown] = {key: _padded(value, old, grown) for key, value in kept.items()}


def state_of(optimizer: torch.optim.Optimizer, network: Moving) -> dict[str, torch.Tensor]:
    """`parameter.key` -> live tensor."""
    return {
        f"{name}.{key}": value
        for name, parameter in network.moving()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }


def restore(optimizer: torch.optim.Optimizer, network: Moving, state: Mapping[str, torch.Tensor]) -> None:
    """What `state_of` gave, but of what no longer moves; nothing else is kept. Adam's step count stays on the host, as
    torch has it."""
    optimizer.state.clear()
    parameters = dict(network.moving())
    for full_name, value in state.items():
        name, _, key = full_name.rpartition(".")
        if name not in parameters:
            continue
        device = value.device if value.ndim == 0 else parameters[name].device
        optimizer.state[parameters[name]][key] = value.to(device).clone()
    _with_momentum(optimizer)


def _with_momentum(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Zeros where SGD has no momentum yet, which is what it begins with: its fused step takes all of a group or none,
    and blocks may begin to learn later than their head."""
    for group in optimizer.param_groups:
        if isinstance(optimizer, torch.optim.SGD) and group["momentum"]:
            for parameter in group["params"]:
                optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter.detach()))
    return optimizer


def _below_head(name: str, tail: nn.Module | None) -> int:
    part, _, parameter = name.partition(".")
    if part == "top":
        return 0
    return 1 + len(tail.cut_blocks) - tail.depth_of(parameter) if isinstance(tail, Layered) else 1


def _padded(value: Any, old: nn.Parameter, grown: nn.Parameter) -> Any:
    if not isinstance(value, torch.Tensor) or value.shape != old.shape:
        return value
    return torch.cat([value, value.new_zeros(len(grown) - len(old), *value.shape[1:])])
