"""Small torch models and steps for tests of what learns by gradients."""

from __future__ import annotations

import copy

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from everlearn.regularizers.base import Regularizer

_WAITS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2", "to_list")


class NoWaiting(TorchDispatchMode):
    """Refuses the operators through which a host waits for a device: they would do so on CUDA."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        assert name not in _WAITS, f"{name} waits for the device"
        if name in ("_to_copy", "copy_"):
            assert "device" not in (kwargs or {}), "a copy to another device"
        return func(*args, **(kwargs or {}))


class Tailed(torch.nn.Module):
    """A convolution-free tail with a norm and dropout, and a linear head."""

    def __init__(self, dim: int, classes: int, *, hidden: int = 12, dropout: float = 0.0) -> None:
        super().__init__()
        self.tail = torch.nn.Sequential(
            torch.nn.Linear(dim, hidden), torch.nn.BatchNorm1d(hidden), torch.nn.GELU(), torch.nn.Dropout(dropout)
        )
        self.head = torch.nn.Linear(hidden, classes)

    def forward(self, inputs_Bd: torch.Tensor) -> torch.Tensor:
        return self.head(self.tail(inputs_Bd))


def linear(dim: int = 5, classes: int = 3, *, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(dim, classes))


def tailed(dim: int = 5, classes: int = 3, *, seed: int = 0, dropout: float = 0.0) -> Tailed:
    torch.manual_seed(seed)
    model = Tailed(dim, classes, dropout=dropout)
    model.tail[1].eval()  # batch norms are frozen by default
    return model


def batch(rows: int = 8, dim: int = 5, classes: int = 3, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(rows, dim, generator=random), torch.randint(classes, (rows,), generator=random)


def step(
    model: torch.nn.Module,
    regularizers: list[Regularizer],
    given: tuple[torch.Tensor, torch.Tensor],
    *,
    rate: float = 0.1,
) -> None:
    """One step of plain gradient descent, as a learner takes it."""
    inputs_Bd, class_B = given
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    logits_BC = model(inputs_Bd)
    loss = functional.cross_entropy(logits_BC, class_B)
    for regularizer in regularizers:
        loss = loss + regularizer.penalty(model, inputs_Bd, logits_BC)
    loss.backward()
    for regularizer in regularizers:
        regularizer.observe(model, inputs_Bd, logits_BC)
    optimizer.step()
    for regularizer in regularizers:
        regularizer.moved(model)
    optimizer.zero_grad()


def grown(model: torch.nn.Module, rows: int) -> torch.nn.Module:
    """The same, its head with `rows` more classes."""
    model = copy.deepcopy(model)
    head = model.head if isinstance(model, Tailed) else model[-1]
    head.weight = torch.nn.Parameter(torch.cat((head.weight.detach(), torch.randn(rows, head.weight.shape[1]))))
    head.bias = torch.nn.Parameter(torch.cat((head.bias.detach(), torch.randn(rows))))
    return model
