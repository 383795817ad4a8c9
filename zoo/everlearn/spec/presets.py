"""Recipes by the names the literature knows them by: each is data, and expands to the axes of a declaration.

What a declaration says itself wins over its recipe; `plan` shows the whole.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

DEFAULT: Final = "analytic"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One named recipe."""

    title: str
    """What it does and where it comes from, in a line."""
    axes: Mapping[str, Any] = field(default_factory=dict)
    """Parts of `spec` that it sets."""
    advice: str = ""
    """When to use it and when not, with what was measured."""


PRESETS: Final[Mapping[str, Preset]] = {
    "analytic": Preset(
        title="class-balanced ridge on exact sums: equals joint training on all that was streamed",
        advice="the default; use it wherever the backbone sees what matters",
    ),
    "ranpac": Preset(
        title="ridge on random features of the frozen backbone (RanPAC, McDonnell 2023, phase 2)",
        axes={"projection": {"dim": 2000}, "head": {"kind": "ridge"}},
        advice="up to a point or two more where classes are not linearly separable; exports grow by 4 d * dim bytes",
    ),
    "slda": Preset(
        title="streaming linear discriminant analysis with a shrunk shared covariance (Hayes & Kanan 2020)",
        axes={"head": {"kind": "lda"}},
        advice="good scores as probabilities; on a par with analytic where classes have about one shape",
    ),
}


def expand(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec with its recipe's axes filled in below what it says itself; an unknown recipe is left to its field.

    >>> expand({"recipe": "slda", "head": {"regularization": 0.1}})["head"]
    {'kind': 'lda', 'regularization': 0.1}
    """
    preset = PRESETS.get(str(spec.get("recipe", DEFAULT)))
    if preset is None:
        return dict(spec)
    merged = dict(spec)
    for axis, chosen in preset.axes.items():
        given = spec.get(axis)
        if given is None:
            merged[axis] = copy.deepcopy(chosen)
        elif isinstance(chosen, Mapping) and isinstance(given, Mapping):
            # Another kind has other options: then nothing of the recipe's choice is left.
            same = given.get("kind", chosen.get("kind")) == chosen.get("kind")
            merged[axis] = {**chosen, **given} if same else given
    return merged
