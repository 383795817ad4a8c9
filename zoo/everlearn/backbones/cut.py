"""Cuts a network in two: a frozen trunk below, a trainable tail above, so that tail(trunk(x)) is the network.

Nothing is known here of any architecture. timm says which modules are blocks (`group_matcher`); one forward pass with
hooks shows what each module was given and what it gave. A cut is possible before a block if from there on each module
takes exactly what the one before it made, up to the end: then the rest is a chain, and the chain is the tail. What the
two halves compute is compared with the whole network, so a wrong chain cannot pass.

Axes: N images, d features, d_cut values of an image at the cut.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from everlearn.errors import BackboneError

MAX_REL_DIFF = 1e-5
"""Of the largest feature: the halves do the same operations in the same order, so on a CPU it is 0."""
_FIELD = "spec.recipe.adapt"


class TrunkModule(nn.Module):  # type: ignore[misc]  # torch's types are skipped, see pyproject
    """Pixels [N, 3, H, W] -> values at the cut, flat: [N, d_cut]."""

    def __init__(self, shell: nn.Module) -> None:
        super().__init__()
        self.net = shell
        # The wrapper too: torch's exporter gives back the mode it found at the top to everything below.
        self.eval()

    def forward(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return self.net.forward_features(pixels_NCHW).flatten(1)


class WholeTrunk(nn.Module):  # type: ignore[misc]  # torch's types are skipped, see pyproject
    """The trunk where all of the network learns: the pixels, flat."""

    def forward(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return pixels_NCHW.flatten(1)


class TailModule(nn.Module):  # type: ignore[misc]  # torch's types are skipped, see pyproject
    """Values at the cut, flat [N, d_cut] -> pooled features [N, d]. Parameters keep the names of the whole network.

    Batch norm keeps its statistics in training too: a stream's batches are small and not independent, and what serves
    must compute what was trained. Its scale and shift do learn. Dropout and stochastic depth follow `train()`.
    """

    def __init__(self, shell: nn.Module, steps: tuple[str, ...], blocks: tuple[str, ...], shape: tuple[int, ...]):
        super().__init__()
        # One registry for both: names are the network's own, and who replaces a module here replaces it there.
        self._parameters, self._buffers, self._modules = shell._parameters, shell._buffers, shell._modules
        # In a tuple it is no submodule, which would put its name before every parameter's.
        self._shell = (shell,)
        self.cut_steps = steps
        """Modules in the order in which they run; empty where all of the network is tail."""
        self.cut_blocks = blocks
        """Of the network's blocks those in here, lowest first."""
        self.cut_shape = shape
        """Of one image's values at the cut: [C, H, W] or [H, W, C] or [tokens, width]."""
        self.eval()

    def forward(self, flat_Nd: torch.Tensor) -> torch.Tensor:
        """See the class."""
        x = flat_Nd.reshape(-1, *self.cut_shape)
        net = self._shell[0]
        if not self.cut_steps:
            return net.forward_head(net.forward_features(x), pre_logits=True)
        for step in self.cut_steps:
            x = self.get_submodule(step)(x)
        return net.forward_head(x, pre_logits=True)

    def train(self, mode: bool = True) -> TailModule:
        """As any module's, but batch norm stays in evaluation."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.training = False
        return self

    def depth_of(self, parameter: str) -> int:
        """How far above the cut a parameter lies: 0 for the lowest block, len(cut_blocks) for what follows the last.

        For layer-wise learning rates. What belongs to no block counts to the next one above it.
        """
        module = parameter.rpartition(".")[0]
        below = 0
        # Modules are registered in the order in which they work.
        for name, _ in self.named_modules():
            below += name in self.cut_blocks
            if name == module:
                inside = any(_within(module, block) for block in self.cut_blocks)
                return below - 1 if inside else below
        raise KeyError(f"the tail has no parameter {parameter!r}")


@dataclass(frozen=True, kw_only=True)
class Halves:
    """A network in two."""

    trunk: nn.Module
    tail: TailModule
    cut: str
    """The lowest block of the tail; empty where all of the network is tail."""
    channel_axis: int
    """Of the values at the cut, the batch's not counted."""


@dataclass(eq=False)
class _Call:
    """One module at work."""

    name: str
    given: tuple[Any, ...]
    gave: Any = None
    end: int = 0
    """Index of the first call that began after this one had ended."""


@dataclass
class _Record:
    """A forward pass, by its modules, in the order in which they began."""

    body: list[_Call] = field(default_factory=list)
    """Calls within forward_features."""
    features: Any = None
    """What forward_features gave."""
    head: set[str] = field(default_factory=set)
    """Modules that worked in forward_head."""


def split(model: nn.Module, blocks: int | None, pixels_NCHW: torch.Tensor) -> Halves:
    """Cuts before the last `blocks` blocks; None leaves everything to the tail. The model stays as it is.

    `pixels_NCHW`: images of the size that is to be used, on which the halves are held against the whole.
    Raises BackboneError, naming what can be cut, for a network that has no such cut.
    """
    model = model.eval()
    # Not inference_mode: copies made in it could never learn.
    with torch.no_grad():
        if blocks is None:
            shape = tuple(pixels_NCHW.shape[1:])
            halves = Halves(
                trunk=WholeTrunk(),
                tail=TailModule(copy.deepcopy(model), (), tuple(block_names(model)), shape),
                cut="",
                channel_axis=0,
            )
        else:
            halves = _split_before(model, blocks, pixels_NCHW)
        _check(model, halves, pixels_NCHW)
    return halves


def block_names(model: nn.Module) -> list[str]:
    """Full names of the network's blocks, lowest first, as timm groups them.

    Raises BackboneError for a network that says nothing of its blocks.
    """
    usable = all(hasattr(model, name) for name in ("group_matcher", "forward_features", "forward_head"))
    told = model.group_matcher(coarse=False).get("blocks") if usable else None
    if not told:
        raise BackboneError(
            f"{type(model).__name__} does not say which of its modules are blocks; it can be frozen or learn in full",
            field=_FIELD,
        )
    # Patterns with a number of their own are not blocks but what timm counts to the first or last.
    patterns = [told] if isinstance(told, str) else [pattern for pattern, order in told if order is None]
    found = [name for name, _ in model.named_modules() if any(re.fullmatch(each, name) for each in patterns)]
    if not found:
        raise BackboneError(f"no module of {type(model).__name__} is one of {patterns}", field=_FIELD)
    return found


def _split_before(model: nn.Module, blocks: int, pixels_NCHW: torch.Tensor) -> Halves:
    names = block_names(model)
    record = _record(model, pixels_NCHW[:1])
    chains = {name: _chain(record, name) for name in names}
    possible = [len(names) - index for index, name in enumerate(names) if chains[name]]
    if blocks not in possible:
        raise BackboneError(
            f"{type(model).__name__} cannot be cut before its last {blocks} of {len(names)} blocks; it can be before "
            f"the last {_spans(possible)} (blocks {names[0]} to {names[-1]})",
            field=_FIELD,
        )
    cut = names[-blocks]
    chain = chains[cut]
    given = chain[0].given[0]
    shape = tuple(given.shape[1:])
    steps = tuple(call.name for call in chain)
    return Halves(
        trunk=TrunkModule(_without(model, steps)),
        tail=TailModule(_only(model, {*steps, *record.head}), steps, tuple(names[-blocks:]), shape),
        cut=cut,
        channel_axis=len(shape) - 1 if len(shape) == 2 or getattr(model, "output_fmt", "NCHW") == "NHWC" else 0,
    )


def _record(model: nn.Module, pixels_NCHW: torch.Tensor) -> _Record:
    record, calls, open_calls = _Record(), list[_Call](), list[_Call]()
    names = {module: name for name, module in model.named_modules() if name}

    def begins(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = (*args, *(value for value in kwargs.values() if value is not None))
        call = _Call(names[module], given)
        calls.append(call)
        open_calls.append(call)

    def ends(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call = open_calls.pop()
        call.gave, call.end = output, len(calls)

    hooks = [module.register_forward_pre_hook(begins, with_kwargs=True) for module in names]
    hooks += [module.register_forward_hook(ends) for module in names]
    try:
        record.features = model.forward_features(pixels_NCHW)
        record.body = calls[:]
        model.forward_head(record.features, pre_logits=True)
        record.head = {call.name for call in calls[len(record.body) :]}
    finally:
        for hook in hooks:
            hook.remove()
    return record


def _chain(record: _Record, block: str) -> list[_Call]:
    """The calls from `block` to the end, if each takes just what the one before gave; else nothing."""
    begun = [index for index, call in enumerate(record.body) if call.name == block]
    if len(begun) != 1:
        return []
    chain: list[_Call] = []
    at, current = begun[0], record.body[begun[0]].given[0] if record.body[begun[0]].given else None
    while at < len(record.body):
        call = record.body[at]
        if len(call.given) == 1 and call.given[0] is current and torch.is_tensor(call.gave):
            chain.append(call)
            at, current = call.end, call.gave
        else:
            at += 1
    names = [call.name for call in chain]
    whole = bool(chain) and chain[0].name == block and current is record.features and len(set(names)) == len(names)
    return chain if whole else []


def _without(model: nn.Module, steps: Sequence[str]) -> nn.Module:
    """A copy in which the steps do nothing, and whose head is gone."""
    shell = copy.deepcopy(model)
    for step in steps:
        shell.set_submodule(step, nn.Identity())
    return shell


def _only(model: nn.Module, kept: set[str]) -> nn.Module:
    """A copy with nothing in it but some modules, at their places."""
    shell = copy.deepcopy(model)
    for parent, name, full in list(_children(shell, "")):
        needed = any(_within(full, keep) or _within(keep, full) for keep in kept)
        if not needed:
            setattr(parent, name, nn.Identity())
    for name in list(shell._parameters):
        # Class tokens and positions, added below the cut. Where the tail needs one after all, it fails its check.
        shell._parameters[name] = None
    return shell


def _children(module: nn.Module, prefix: str) -> Iterator[tuple[nn.Module, str, str]]:
    for name, child in list(module.named_children()):
        yield module, name, f"{prefix}{name}"
        yield from _children(child, f"{prefix}{name}.")


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _check(model: nn.Module, halves: Halves, pixels_NCHW: torch.Tensor) -> None:
    name = type(model).__name__
    try:
        whole_Nd = model(pixels_NCHW)
        at_cut_Nd = halves.trunk(pixels_NCHW)
        kept_Nd = at_cut_Nd.clone()
        halves_Nd = halves.tail(at_cut_Nd)
    # A chain that is none fails on whatever it meets first.
    except Exception as error:
        raise BackboneError(f"{name} does not work in two halves at {halves.cut}: {error}", field=_FIELD) from error
    size = float(whole_Nd.abs().max())
    difference = float((whole_Nd - halves_Nd).abs().max()) if whole_Nd.shape == halves_Nd.shape else float("inf")
    if not difference <= MAX_REL_DIFF * size:
        raise BackboneError(
            f"the halves of {name} at {halves.cut} differ from the whole by {difference:.1e} of {size:.1e}; it cannot "
            "be cut there",
            field=_FIELD,
        )
    if not torch.equal(kept_Nd, at_cut_Nd):
        raise BackboneError(f"the tail of {name} at {halves.cut} writes into its input", field=_FIELD)


def _spans(counts: Sequence[int]) -> str:
    """`1 to 5, 7` of [7, 5, 4, 3, 2, 1]; `none` of nothing."""
    spans: list[list[int]] = []
    for count in sorted(counts):
        if spans and spans[-1][1] == count - 1:
            spans[-1][1] = count
        else:
            spans.append([count, count])
    return ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in spans) or "none"
