"""What moves: an optional tail of the backbone, and a head whose rows grow as labels arrive.

Features are judged by their direction: logits = 20 * W x / |x| + b. That needs no statistics of data still to come,
makes one learning rate fit any backbone (a step's size depends on |x|^2 = 400 alone; raw features would want a rate of
their own for each), and is folded into the served head without loss.

A tensor's values are judged as they are (`RangeTop`): of a temperature alone the direction is its sign.

Axes: B rows, C classes, K new classes, n values at the cut, d features.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Protocol, Self, runtime_checkable

import torch
from torch import nn
from torch.nn import functional

from everlearn.errors import InvalidError

LENGTH = 20.0
"""Of the feature vectors that the linear head sees, and the cosine head's first gain."""
_SHORTEST = 1e-12
"""As `LinearHead.scores` has it."""


class Top(nn.Module):  # type: ignore[misc]  # torch's types are skipped, see pyproject
    """A head: a row of weights a class, over feature vectors of unit length."""

    weight: nn.Parameter
    """[C, d]"""
    normalises = True
    """Whether it sees unit features."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(0, dim))

    @abstractmethod
    def score(self, features_Bd: torch.Tensor, inverse_B1: torch.Tensor) -> torch.Tensor:
        """Logits [B, C]; `inverse_B1` is 1 / |x|."""

    @abstractmethod
    def rows(self, direction_Kd: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """What is appended to each growing parameter for new classes whose mean unit features are given."""

    @abstractmethod
    def folded(self, weights: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """weight_dC and bias_C, of these parameters; over unit features where it normalises."""


class LinearTop(Top):
    """20 * W x / |x| + b. New rows are zero: a new class starts without opinion (rows along the class's mean direction
    were tried: within noise of this)."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.bias = nn.Parameter(torch.zeros(0))

    def score(self, features_Bd: torch.Tensor, inverse_B1: torch.Tensor) -> torch.Tensor:
        """See Top. The products are scaled, not the features: C numbers a row and not d."""
        return torch.addcmul(self.bias, features_Bd @ self.weight.T, inverse_B1, value=LENGTH)

    def rows(self, direction_Kd: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """See Top."""
        return {"weight": torch.zeros_like(direction_Kd), "bias": direction_Kd.new_zeros(len(direction_Kd))}

    def folded(self, weights: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """See Top."""
        return LENGTH * weights["weight"].T, weights["bias"]


class RangeTop(LinearTop):
    """20 / sqrt(d) * W x + b, of values in -1 to 1: no vector is longer than 20, so that a rate fits as above."""

    normalises = False

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self._gain = LENGTH / dim**0.5

    def score(self, features_Bd: torch.Tensor, inverse_B1: torch.Tensor) -> torch.Tensor:
        """See Top."""
        return torch.addmm(self.bias, features_Bd, self.weight.T, alpha=self._gain)

    def folded(self, weights: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """See Top."""
        return self._gain * weights["weight"].T, weights["bias"]


class CosineTop(Top):
    """gain * cos(w, x), with one learned gain (LUCIR, Hou et al. 2019, eq. 3). New rows are the class's mean direction
    (weight imprinting, Qi et al. 2018)."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.gain = nn.Parameter(torch.tensor(LENGTH))

    def score(self, features_Bd: torch.Tensor, inverse_B1: torch.Tensor) -> torch.Tensor:
        """See Top."""
        return features_Bd @ functional.normalize(self.weight, eps=_SHORTEST).T * (inverse_B1 * self.gain)

    def rows(self, direction_Kd: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """See Top."""
        return {"weight": functional.normalize(direction_Kd, eps=_SHORTEST)}

    def folded(self, weights: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """See Top."""
        weight_Cd = functional.normalize(weights["weight"], eps=_SHORTEST)
        return weights["gain"] * weight_Cd.T, weight_Cd.new_zeros(len(weight_Cd))


TOPS: Mapping[str, type[Top]] = {"linear": LinearTop, "range": RangeTop, "cosine": CosineTop}
"""By `Recipe.top`."""


@runtime_checkable
class Layered(Protocol):
    """A tail that knows how its parameters lie."""

    cut_blocks: tuple[str, ...]

    def depth_of(self, parameter: str) -> int:
        """How far above the cut a parameter lies: 0 for the lowest block, len(cut_blocks) above the last."""


class Network(nn.Module):  # type: ignore[misc]  # torch's types are skipped, see pyproject
    """Values at the cut [B, n] -> logits [B, C].

    The tail stays in evaluation mode: batch norm keeps its statistics (a stream's batches are small and not
    independent), and nothing in it draws from the global generator. Its parameters move all the same.
    """

    def __init__(self, top: Top, tail: nn.Module | None = None) -> None:
        super().__init__()
        self.top = top
        self.tail = None if tail is None else tail.eval()
        self._moving: list[tuple[str, nn.Parameter]] | None = None
        self._loaded: set[str] = set()

    @property
    def classes(self) -> int:
        """C."""
        return len(self.top.weight)

    def train(self, mode: bool = True) -> Network:
        """Never changes the tail's mode, see the class."""
        self.training = mode
        return self

    def placed(self, device: str) -> Self:
        """On a device; on CUDA with convolutions channels-last, as its tensor cores want them."""
        self.to(device)
        if torch.device(device).type == "cuda":
            self.to(memory_format=torch.channels_last)
        self._moving = None
        return self

    def moving(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters that learn, by stable names."""
        if self._moving is None:
            self._moving = [(name, found) for name, found in self.named_parameters() if found.requires_grad]
        return self._moving

    def moved(self) -> list[tuple[str, nn.Parameter]]:
        """Those that learn or once did, and are frozen by now."""
        learn = {name for name, _ in self.moving()} | self._loaded
        return [(name, found) for name, found in self.named_parameters() if name in learn]

    def forget_moving(self) -> None:
        """Somebody has changed what learns."""
        self._moving = None

    def freeze(self, blocks: int) -> None:
        """Keeps the tail's lowest `blocks` blocks as they are, and what lies below them.

        Raises InvalidError for a tail that has no more blocks than that, or does not know them.
        """
        known = len(self.tail.cut_blocks) if isinstance(self.tail, Layered) else 0
        if blocks >= known:
            raise InvalidError(
                f"train.freeze_blocks is {blocks}, and {known} blocks learn; freeze fewer than learn",
                field="spec.train.freeze_blocks",
            )
        assert isinstance(self.tail, nn.Module)
        for name, parameter in self.tail.named_parameters():
            if self.tail.depth_of(name) < blocks:
                parameter.requires_grad_(False)
        self._moving = None

    def features(
        self, inputs_Bn: torch.Tensor, through: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> torch.Tensor:
        """What the head sees: [B, d]. On CUDA the tail computes in bfloat16; what follows does not. `through`: what
        computes as the tail does, in its stead."""
        if self.tail is None:
            return inputs_Bn
        with torch.autocast("cuda", torch.bfloat16, enabled=inputs_Bn.is_cuda):
            return (self.tail if through is None else through)(inputs_Bn).float()

    def score(self, features_Bd: torch.Tensor, kept_Bd: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [B, C]. `kept_Bd`: dropout's mask, already scaled."""
        inverse_B1 = torch.linalg.vector_norm(features_Bd, dim=1, keepdim=True).clamp_min(_SHORTEST).reciprocal()
        return self.top.score(features_Bd if kept_Bd is None else features_Bd * kept_Bd, inverse_B1)

    def forward(self, inputs_Bn: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return self.score(self.features(inputs_Bn))

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch's types are skipped, see pyproject
    def grow(self, direction_Kd: torch.Tensor) -> dict[nn.Parameter, nn.Parameter]:
        """Appends a row a new class; what each replaced parameter is now."""
        replaced = {}
        for name, more in self.top.rows(direction_Kd).items():
            old = getattr(self.top, name)
            grown = nn.Parameter(torch.cat([old.detach(), more.to(old)]))
            setattr(self.top, name, grown)
            replaced[old] = grown
        self._moving = None
        return replaced

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch's types are skipped, see pyproject
    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Takes up what was `moving` or `moved`, of however many classes; the rest of a tail stays as it is.

        Raises KeyError where a head's part is missing or one is unknown, ValueError for another shape.
        """
        known = dict(self.named_parameters())
        missing = {name for name in known if name.startswith("top.")} - weights.keys() or weights.keys() - known.keys()
        if missing:
            raise KeyError(f"{sorted(missing)[:5]} on one side only")
        self._loaded |= weights.keys()
        for name, given in weights.items():
            parameter = known[name]
            value = given.to(parameter)
            if value.shape == parameter.shape:
                parameter.copy_(value)
            elif name.startswith("top.") and value.shape[1:] == parameter.shape[1:]:
                setattr(self.top, name.removeprefix("top."), nn.Parameter(value.clone()))
            else:
                raise ValueError(f"{name} has shape {tuple(value.shape)}; here it has {tuple(parameter.shape)}")
        self._moving = None
