"""Accuracy over time as a plain SVG: no plotting library, the same bytes for the same figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 860, 420
LEFT, RIGHT, TOP, BOTTOM = 50, 240, 40, 40
COLOURS = ("#0b6e4f", "#1f77b4", "#9467bd", "#d62728", "#ff7f0e", "#17a2a2", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22")
"""Repeated dashed beyond ten."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One learner: accuracy on what had been seen."""

    name: str
    share_E: Sequence[float]
    """Of the stream, 0 to 1, ascending."""
    accuracy_E: Sequence[float]
    is_peer: bool


def svg(title: str, curves: Sequence[Curve], marks: Sequence[float] = ()) -> str:
    """The picture. `marks`: shares of the stream at which a step ends. everlearn is solid, peers are dashed."""
    low = min((min(curve.accuracy_E) for curve in curves), default=0.0)
    low = max(0.0, np.floor(low * 10) / 10)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>',
        *_axes(low, marks),
    ]
    for index, curve in enumerate(curves):
        colour = COLOURS[index % len(COLOURS)]
        dash = ' stroke-dasharray="5 4"' if curve.is_peer else ""
        line = " ".join(
            f"{_x(share):.1f},{_y(value, low):.1f}"
            for share, value in zip(curve.share_E, curve.accuracy_E, strict=True)
        )
        at = TOP + 10 + 18 * index
        parts += [
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>',
            f'<line x1="{WIDTH - RIGHT + 15}" x2="{WIDTH - RIGHT + 45}" y1="{at}" y2="{at}" stroke="{colour}" '
            f'stroke-width="2"{dash}/>',
            f'<text x="{WIDTH - RIGHT + 52}" y="{at + 4}">{escape(curve.name)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def _axes(low: float, marks: Sequence[float]) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    lines = []
    for value in np.arange(round(low * 10), 11) / 10:
        at = _y(float(value), low)
        lines.append(f'<line x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{value:.0%}</text>')
    for share in marks:
        lines.append(f'<line x1="{_x(share):.1f}" x2="{_x(share):.1f}" y1="{TOP}" y2="{bottom}" stroke="#eee"/>')
    lines.append(
        f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 10}" text-anchor="middle">'
        "share of the stream learned; accuracy on what had been seen; dashed: peers</text>"
    )
    return lines


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(value: float, low: float) -> float:
    return HEIGHT - BOTTOM - (value - low) / (1 - low) * (HEIGHT - TOP - BOTTOM)
