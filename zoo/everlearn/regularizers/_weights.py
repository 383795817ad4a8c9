"""Weights by name, and what is kept of them while a head grows: shared by the regularisers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from everlearn.errors import InputError, PreconditionError


def trained(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The parameters that move, by name."""
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)


def padded(kept: torch.Tensor, weight: torch.Tensor, name: str) -> torch.Tensor:
    """`kept` beside `weight`: on its device, with rows of zeros for those that came since.

    Raises PreconditionError where rows went or another axis differs.
    """
    fits(kept, weight, name)
    kept = kept.to(weight.device)
    if kept.shape == weight.shape:
        return kept
    rows = kept.new_zeros((weight.shape[0] - kept.shape[0], *weight.shape[1:]))
    return torch.cat((kept, rows))


def known_rows(weight: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The rows of `weight` that `kept` is about."""
    # No slice where all are: its backward pass would fill another tensor.
    return weight if weight.shape == kept.shape else weight[: kept.shape[0]]


def fits(kept: torch.Tensor, weight: torch.Tensor, name: str) -> None:
    """Raises PreconditionError unless `weight` is `kept`, grown along its first axis or not at all."""
    same = kept.ndim == weight.ndim and kept.shape[1:] == weight.shape[1:]
    if not same or (kept.ndim > 0 and kept.shape[0] > weight.shape[0]):
        raise PreconditionError(
            f"what a regulariser keeps of {name} is {list(kept.shape)} and the model's is {list(weight.shape)}; a "
            "weight may only grow along its first axis, anything else begins a new state",
            reason="REGULARIZER_STATE",
        )


def named(group: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies for a state, as `group/name`."""
    return {f"{group}/{name}": tensor.detach().clone() for name, tensor in tensors.items()}


def grouped(state: Mapping[str, torch.Tensor], *groups: str) -> dict[str, dict[str, torch.Tensor]]:
    """Copies out of a state, by group. Raises InputError for a name of no group."""
    taken: dict[str, dict[str, torch.Tensor]] = {group: {} for group in groups}
    for path, tensor in state.items():
        group, slash, name = path.partition("/")
        if not slash or group not in taken:
            raise InputError(f"a state with {path!r}; this kind keeps {', '.join(groups)}", field="state")
        taken[group][name] = tensor.detach().clone()
    return taken
