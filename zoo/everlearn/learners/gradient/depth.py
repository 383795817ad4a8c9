"""Stochastic depth: a residual block is left out for a row at random while its tail learns.

Networks say where: timm's blocks keep a `drop_path` (or `drop_path1`, `drop_path2`) on the branch that their shortcut
goes round, whatever their architecture. There the drawing is put, from a generator of the learner's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import nn

from everlearn.errors import InvalidError

_BRANCHES: Final = ("drop_path", "drop_path1", "drop_path2")


@dataclass(eq=False)
class Draws:
    """Where chance in a network comes from, and whether there is any: only within a step's own forward pass."""

    random: torch.Generator
    is_on: bool = False

    def __deepcopy__(self, memo: object) -> Self:
        """A copied network (a teacher, say) shares it: it never draws, for it runs when this is off."""
        return self


class Branch(nn.Module):  # type: ignore[misc]  # torch's types are skipped, see pyproject
    """What a block adds to its input, or nothing, for each row; the rest is scaled so that the mean stays."""

    def __init__(self, rate: float, draws: Draws) -> None:
        super().__init__()
        self.rate = rate
        self._draws = draws

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape [N, ...]."""
        if not self._draws.is_on:
            return x
        kept = x.new_empty((len(x),) + (1,) * (x.ndim - 1))
        return x * kept.bernoulli_(1 - self.rate, generator=self._draws.random).div_(1 - self.rate)


def leave_out(tail: nn.Module | None, rate: float, draws: Draws) -> int:
    """Gives every block of a tail its rate, from a share of `rate` for the lowest to all of it for the highest
    (Huang et al. 2016, eq. 4). Returns how many branches there are.

    Raises InvalidError for a tail that has none.
    """
    modules = () if tail is None else tail.modules()
    found = [module for module in modules if any(_is_branch(module, name) for name in _BRANCHES)]
    for place, block in enumerate(found, start=1):
        for name in _BRANCHES:
            if _is_branch(block, name):
                setattr(block, name, Branch(rate * place / len(found), draws))
    if not found:
        raise InvalidError(
            "no block of this tail has a branch that could be left out; write train.stochastic_depth: 0",
            field="spec.train.stochastic_depth",
        )
    return len(found)


def _is_branch(block: nn.Module, name: str) -> bool:
    # None where an architecture makes no module of a rate of 0. Some blocks have a branch and no shortcut round it.
    found = getattr(block, name, "none")
    return (found is None or isinstance(found, nn.Module)) and bool(getattr(block, "has_skip", True))
