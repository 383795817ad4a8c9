"""Cuts a text encoder in two: embeddings and lower blocks below, a trainable tail of the last blocks above.

    input_ids [N, L] -> trunk -> values at the cut, flat [N, T * width] -> tail -> features [N, d]

A tail takes a fixed number of values, a text has any number of tokens: the trunk fills up with zeros to T places, the
front's most tokens, and a place whose values are all zero is one without a token (behind a layer norm no other is).
So the mask travels with the values: through memories, over the wire, and rounded to integers.

Axes: N texts, L tokens, T places, d features.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from everlearn.backbones.cut import MAX_REL_DIFF, Halves, TailModule
from everlearn.backbones.encoder_torch import Attended, Pooled, bias_of, config_of, encoder_of, pool
from everlearn.backbones.pooling import Pooling
from everlearn.backbones.tail import Argument, Tail
from everlearn.errors import BackboneError

ENCODERS = "transformers/"
"""What the architecture of an encoder's tail begins with; timm's have no such prefix."""
_BLOCK = re.compile(r"(encoder|transformer)\.layer\.\d+")
_FIELD = "spec.recipe.adapt"


class EncoderTrunk(nn.Module):  # type: ignore[misc]  # torch's types are skipped, see pyproject
    """Token ids [N, L] -> values at the cut, zero where there is no token, flat: [N, T * width]."""

    def __init__(self, encoder: nn.Module, places: int) -> None:
        super().__init__()
        self.attended, self._places = Attended(encoder), places
        # The wrapper too: torch's exporter gives back the mode it found at the top to everything below.
        self.eval()

    def forward(self, input_ids_NL: torch.Tensor) -> torch.Tensor:
        """See the class."""
        hidden_NLw, weight_NL = self.attended(input_ids_NL)
        there_NLw = hidden_NLw * weight_NL[:, :, None]
        empty_NTw = there_NLw.new_zeros(there_NLw.shape[0], self._places, there_NLw.shape[2])
        return torch.cat([there_NLw, empty_NTw], dim=1)[:, : self._places].flatten(1)


class EncoderTail(TailModule):
    """Values at the cut, flat [N, T * width] -> pooled features [N, d]; see `TailModule`."""

    def __init__(self, shell: nn.Module, blocks: tuple[str, ...], shape: tuple[int, int], pooling: Pooling) -> None:
        super().__init__(shell, blocks, blocks, shape)
        self._pooling = pooling
        self._is_mpnet = shell.config.model_type == "mpnet"

    def forward(self, flat_Nd: torch.Tensor) -> torch.Tensor:
        """See the class."""
        x = flat_Nd.reshape(-1, *self.cut_shape)
        weight_NT = (x.abs().amax(-1) > 0).to(torch.float32)
        arguments = [bias_of(weight_NT)]
        if self._is_mpnet:
            arguments.append(self._shell[0].encoder.compute_position_bias(x))
        for step in self.cut_steps:
            x = self.get_submodule(step)(x, *arguments)
            x = x[0] if self._is_mpnet else x
        return pool(x, weight_NT, self._pooling)


def encoder_blocks(encoder: nn.Module) -> list[str]:
    """Full names of the encoder's blocks in the loaded module tree, lowest first."""
    return [name for name, _ in encoder.named_modules() if _BLOCK.fullmatch(name)]


def split_encoder(whole: Pooled, blocks: int | None, places: int, input_ids_NL: torch.Tensor) -> Halves:
    """Cuts before the last `blocks` blocks; the module stays as it is.

    `input_ids_NL`: texts on which the halves are held against the whole. Raises BackboneError for a number of blocks
    that the encoder has not, and for None: ids are no values that a memory may round.
    """
    names = encoder_blocks(whole.encoder)
    if blocks is None or not 1 <= blocks <= len(names):
        wanted = "all of an encoder, embeddings included, cannot learn" if blocks is None else f"it has not {blocks}"
        raise BackboneError(
            f"{type(whole.encoder).__name__} can be cut before the last 1 to {len(names)} of its blocks; {wanted}",
            field=_FIELD,
        )
    upper = tuple(names[-blocks:])
    width = int(whole.encoder.config.hidden_size)
    halves = Halves(
        trunk=EncoderTrunk(_below(whole.encoder, blocks), places),
        tail=EncoderTail(_above(whole.encoder, upper), upper, (places, width), whole.pooling),
        cut=upper[0],
        channel_axis=1,
    )
    _check(whole, halves, input_ids_NL)
    return halves


def arguments_of(whole: Pooled, numbers: Mapping[str, Any]) -> dict[str, Argument]:
    """What `rebuilt` makes the encoder from: config.json's numbers, and how it pools."""
    return {**numbers, "pooling": whole.pooling.kind, "normalise": whole.pooling.normalise}


def rebuilt(tail: Tail) -> TailModule:
    """The module that an encoder's tail stands for, with random weights. Raises BackboneError."""
    numbers = dict(tail.arguments)
    kind: Any = numbers.pop("pooling")
    pooling = Pooling(kind=kind, normalise=bool(numbers.pop("normalise")))
    whole = Pooled(encoder_of(config_of(tail.architecture.removeprefix(ENCODERS), numbers)), pooling).eval()
    first = int(whole.encoder.config.pad_token_id) + 1
    return split_encoder(whole, tail.blocks, tail.width, torch.arange(first, first + 5)[None]).tail


def _below(encoder: nn.Module, blocks: int) -> nn.Module:
    """A copy without the last blocks."""
    shell = copy.deepcopy(encoder)
    stack = _stack(shell)
    stack.layer = stack.layer[:-blocks]
    return shell


def _above(encoder: nn.Module, blocks: tuple[str, ...]) -> nn.Module:
    """A copy with nothing in it but some blocks, at their places, and what all of them share."""
    shell = copy.deepcopy(encoder)
    for name, child in list(shell.named_children()):
        if child is not _stack(shell):
            setattr(shell, name, nn.Identity())
    layers = _stack(shell).layer
    for index in range(len(layers) - len(blocks)):
        layers[index] = nn.Identity()
    return shell


def _stack(encoder: nn.Module) -> nn.Module:
    stack: nn.Module = encoder.transformer if hasattr(encoder, "transformer") else encoder.encoder
    return stack


def _check(whole: Pooled, halves: Halves, input_ids_NL: torch.Tensor) -> None:
    with torch.no_grad():
        expected_Nd = whole(input_ids_NL)
        found_Nd = halves.tail(halves.trunk(input_ids_NL))
    size = float(expected_Nd.abs().max())
    difference = float((expected_Nd - found_Nd).abs().max()) if found_Nd.shape == expected_Nd.shape else float("inf")
    if not difference <= MAX_REL_DIFF * size:
        raise BackboneError(
            f"the halves of {type(whole.encoder).__name__} at {halves.cut} differ from the whole by {difference:.1e} "
            f"of {size:.1e}; it cannot be cut there",
            field=_FIELD,
        )
