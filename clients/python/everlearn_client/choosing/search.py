"""Random search over the options of a recipe: what may vary, and the candidates that a seed draws from it.

A space is YAML: a mapping from the path of an option below `spec` to the values it may take, or a list of such mappings
where options depend on each other; first one of the list is drawn, then a value for each of its options. A value is
anything the option takes; `{low: 0.001, high: 1, log: true}` is a number in between, with `whole: true` a whole one;
null leaves the option out.

Random, not a grid: of several options few matter, and a random draw tries a new value of those every time (Bergstra &
Bengio 2012, "Random search for hyper-parameter optimization").
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from everlearn_client.errors import InvalidArgument

SOLVED = """
- recipe: [analytic]
  head.kind: [balanced_ridge, ridge, balanced_lda]
  head.regularization: [auto, {low: 1.0e-4, high: 10, log: true}]
  projection: [null, {dim: 500}, {dim: 1000}, {dim: 2000}]
- recipe: [analytic]
  head.kind: [lda]
  head.regularization: [auto, {low: 0.001, high: 1, log: true}]
  projection: [null, {dim: 500}, {dim: 1000}, {dim: 2000}]
- recipe: [analytic]
  head.kind: [ncm]
  head.regularization: [null]
  projection: [null]
"""
"""Heads that are solved, each with its regularization, and random features: few different ones, since each is a trunk
of its own to build. The recipe is `analytic`, which sets nothing that is not drawn."""
BY_GRADIENT = """
- head.kind: [linear, cosine]
  train.optimizer: [{kind: sgd}]
  train.optimizer.learning_rate: [{low: 0.003, high: 0.3, log: true}]
  train.steps: [1, 2, 4, 8]
  train.replay: [32, 64, 128]
- head.kind: [linear, cosine]
  train.optimizer: [{kind: adamw}]
  train.optimizer.learning_rate: [{low: 1.0e-4, high: 0.01, log: true}]
  train.steps: [1, 2, 4, 8]
  train.replay: [32, 64, 128]
"""
"""Heads that learn by steps. Whatever else is declared (loss, memory, regularisers) stays."""
_SPAN = {"low", "high", "log", "whole"}
_DIGITS = 3


@dataclass(frozen=True, kw_only=True)
class Span:
    """Numbers between two ends."""

    low: float
    high: float
    log: bool
    whole: bool

    def draw(self, source: random.Random) -> float | int:
        """One of them, of 3 significant digits."""
        share = source.random()
        if self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        value = float(f"{value:.{_DIGITS}g}")
        return round(value) if self.whole else value


Options = Mapping[str, Any]
"""Path below `spec` -> value; None leaves it out."""
Branch = Mapping[str, Sequence[Any]]
"""Path -> what it may be; a Span stands for all numbers in it."""
Space = Sequence[Branch]


def parse_space(text: str) -> Space:
    """A space in YAML. Raises InvalidArgument that says what would be right."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _wrong(f"not YAML: {error}") from error
    branches = document if isinstance(document, list) else [document]
    if not branches or not all(isinstance(branch, dict) and branch for branch in branches):
        raise _wrong("a mapping from paths such as head.kind to lists of values is needed, or a list of such mappings")
    return [{str(path): _axis(str(path), values) for path, values in branch.items()} for branch in branches]


def draw(space: Space, source: random.Random) -> Options:
    """One candidate."""
    branch = source.choice(space)
    chosen = {path: source.choice(values) for path, values in branch.items()}
    return {path: value.draw(source) if isinstance(value, Span) else value for path, value in chosen.items()}


def with_options(declaration: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """The declaration with these options, shorter paths first; nothing of the original is shared.

    >>> with_options({"spec": {"head": {"kind": "lda"}}}, {"head.kind": "ridge", "projection": None})
    {'spec': {'head': {'kind': 'ridge'}}}
    """
    changed = copy.deepcopy(dict(declaration))
    for path in sorted(options, key=lambda each: each.count(".")):
        *parents, last = path.split(".")
        part = changed["spec"]
        for parent in parents:
            if not isinstance(part.get(parent), dict):
                part[parent] = {}
            part = part[parent]
        if options[path] is None:
            part.pop(last, None)
        else:
            part[last] = copy.deepcopy(options[path])
    return changed


def describe(options: Options) -> str:
    """The options in few words, for a table.

    >>> describe({"head.kind": "lda", "head.regularization": 0.02, "projection": {"dim": 500}, "recipe": "analytic"})
    'lda, regularization 0.02, projection dim 500'
    """
    return ", ".join(_words(path, value) for path, value in options.items() if value is not None and path != "recipe")


def _words(path: str, value: Any) -> str:
    last = path.rpartition(".")[2]
    if isinstance(value, Mapping):
        inner = " ".join(str(item) if key == "kind" else f"{key} {item}" for key, item in value.items())
        return inner if "kind" in value else f"{last} {inner}"
    return str(value) if last == "kind" else f"{last} {value}"


def _axis(path: str, values: object) -> list[Any]:
    if not path or any(not part for part in path.split(".")) or path.startswith("spec."):
        raise _wrong(f"{path!r} is not the path of an option below spec, such as head.kind")
    if isinstance(values, dict) and values.keys() <= _SPAN:
        values = [values]
    if not isinstance(values, list) or not values:
        raise _wrong(f"{path} must have a list of values, or {{low: ..., high: ...}}")
    return [_span(path, value) if isinstance(value, dict) and "low" in value else value for value in values]


def _span(path: str, value: Mapping[str, Any]) -> Span:
    flags = [value.get(name, False) for name in ("log", "whole")]
    if not value.keys() <= _SPAN or not all(isinstance(flag, bool) for flag in flags):
        raise _wrong(f"{path} has {sorted(value)}; low and high, and if need be log: true and whole: true, are known")
    low, high = (_number(value.get(end)) for end in ("low", "high"))
    if not low < high:  # also where one is no number: YAML reads 1e-4 as a text
        raise _wrong(
            f"{path} goes from {value.get('low')!r} to {value.get('high')!r}; low must be a number below high, such as "
            "1.0e-4"
        )
    if flags[0] and low <= 0:
        raise _wrong(f"{path} is on a logarithmic scale from {low:g}; low must be above 0")
    return Span(low=low, high=high, log=flags[0], whole=flags[1])


def _number(value: object) -> float:
    """NaN for what is none, and for what is not finite."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else math.nan  # type: ignore[arg-type]  # a number, as `usable` says


def _wrong(message: str) -> InvalidArgument:
    return InvalidArgument(message, field="--space")
