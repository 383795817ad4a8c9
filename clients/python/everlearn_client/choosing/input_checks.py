"""Whether inputs are what a backbone expects: from figures of images, or from the numbers themselves, to findings.

Pure functions, so that every threshold can be read and tested here. Axes: N samples, k places of a sample's last axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from everlearn_client.choosing.findings import Finding, bad, ok, warn

SATURATES = 4.0
"""Times the declared range, from its middle: beyond, values count as this many (everlearn.spec.input)."""


CHARACTERS_A_TOKEN = 6
"""More than a token of ordinary words is long (about 4), so that what is called cut is cut."""


@dataclass(frozen=True, kw_only=True)
class ImageFigures:
    """One image before it is resized; values in [0, 1]."""

    height: int
    width: int
    mean: float
    std: float
    greatest: float
    colour: float
    """Mean over the pixels of the largest channel less the smallest."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the backbone was trained on."""

    mean: float
    """Of values in [0, 1], over the channels."""
    std: float
    side: int
    """Shorter side the trunk takes, in pixels."""


def check_images(images: Sequence[ImageFigures], expected: Expected) -> list[Finding]:
    """Range, flat images, brightness and contrast, size, colour. `images` must not be empty."""
    return [
        _range(images),
        _flat(images),
        _brightness(images, expected),
        _size(images, expected),
        _colour(images),
    ]


def check_tensors(
    values_N: npt.NDArray[np.float32], ranges: Sequence[tuple[float, float]], *, bits: int | None
) -> list[Finding]:
    """Numbers against the range that the input declares: one for all, or one for each place of the last axis.

    `bits`: of a quantised feature, where the values themselves are the features (source identity); else None.
    """
    values_Nk = np.asarray(values_N, np.float64).reshape(-1, values_N.shape[-1])
    low_k, high_k = np.array(ranges, np.float64).T
    scaled_Nk = (values_Nk - (low_k + high_k) / 2) / ((high_k - low_k) / 2)
    findings = [_outside(scaled_Nk), _constant(values_Nk)]
    return findings if bits is None else [*findings, _resolution(scaled_Nk, bits)]


def check_texts(texts: Sequence[str], *, max_tokens: int) -> list[Finding]:
    """Texts with nothing in them, and those whose end is not read. `texts` must not be empty."""
    return [_empty(texts), _length(texts, max_tokens)]


def _empty(texts: Sequence[str]) -> Finding:
    empty = sum(not any(character.isalnum() for character in text) for text in texts)
    figures = {"empty": empty, "texts": len(texts)}
    shown = f"{empty} of {len(texts)} texts have no letter or digit"
    advice = "look at them: an empty column, another encoding, or a field that was not filled in"
    if empty > 0.05 * len(texts):
        return bad("empty texts", shown, advice, figures)
    return warn("empty texts", shown, advice, figures) if empty else ok("empty texts", shown, figures)


def _length(texts: Sequence[str], max_tokens: int) -> Finding:
    longest_read = CHARACTERS_A_TOKEN * max_tokens
    cut = sum(len(text) > longest_read for text in texts)
    middle = float(np.median([len(text) for text in texts]))
    figures = {"cut": cut, "texts": len(texts), "median_characters": middle}
    shown = (
        f"{middle:.0f} characters in the middle; {cut} of {len(texts)} texts are longer than {max_tokens} tokens hold"
    )
    if cut > 0.1 * len(texts):
        advice = "their end is not read: cut texts where the matter is, or declare a larger input.max_tokens"
        return warn("length", shown, advice, figures)
    return ok("length", shown, figures)


def _outside(scaled_Nk: npt.NDArray[np.float64]) -> Finding:
    far = float(np.abs(scaled_Nk).max())
    share = float((np.abs(scaled_Nk) > 1).mean())
    figures = {"outside": share, "farthest": far}
    shown = f"{share:.1%} of the values outside the declared range, the farthest {far:.3g} times as far as its ends"
    advice = "correct the unit of the values, or declare the input.range that they have"
    if far > SATURATES:
        return bad("range", f"{shown}: beyond {SATURATES:g} times they saturate", advice, figures)
    if share > 0.01:
        return warn("range", shown, advice, figures)
    return ok("range", f"{share:.1%} of the values outside the declared range", figures)


def _constant(values_Nk: npt.NDArray[np.float64]) -> Finding:
    still_k = np.flatnonzero(values_Nk.min(axis=0) == values_Nk.max(axis=0))
    figures = {"constant": len(still_k), "places": values_Nk.shape[1]}
    shown = f"{len(still_k)} of {values_Nk.shape[1]} places of the last axis never change"
    if len(still_k):
        return warn(
            "constant", f"{shown}: {_places(still_k)}", "look for a sensor that is off; leave them out", figures
        )
    return ok("constant", shown, figures)


def _resolution(scaled_Nk: npt.NDArray[np.float64], bits: int) -> Finding:
    """Whether values that vary are told apart once they are whole numbers."""
    steps_k = scaled_Nk.std(axis=0) * 2 ** (bits - 1) / SATURATES
    steps_k[steps_k == 0] = np.inf  # constant: another check's
    coarse_k = np.flatnonzero(steps_k < 4)
    figures = {"coarse": len(coarse_k), "steps": float(steps_k.min())}
    advice = "declare input.range as a list of one [low, high] for each place of the last axis"
    if len(coarse_k):
        shown = f"{_places(coarse_k)} vary by less than 4 steps of {bits} bits within the declared range"
        lost = f", by {steps_k[coarse_k].min():.2g} at the least"
        return (bad if (steps_k[coarse_k] < 1).any() else warn)("resolution", shown + lost, advice, figures)
    return ok("resolution", f"values vary by {steps_k.min():.0f} steps of {bits} bits or more", figures)


def _places(index_k: npt.NDArray[np.intp]) -> str:
    shown = ", ".join(str(index) for index in index_k[:8])
    return f"places {shown}{' and more' if len(index_k) > 8 else ''}"


def _range(images: Sequence[ImageFigures]) -> Finding:
    greatest = max(image.greatest for image in images)
    figures = {"greatest": 255 * greatest}
    if greatest <= 1.5 / 255:
        return bad(
            "range",
            f"no value above {255 * greatest:.0f} of 255: floats from 0 to 1 were cast to uint8, or all is black",
            "multiply by 255 before the cast",
            figures,
        )
    if greatest < 0.25:
        return bad(
            "range",
            f"no value above {255 * greatest:.0f} of 255",
            f"scale the images to 0..255: multiply by {1 / greatest:.3g}",
            figures,
        )
    return ok("range", f"values reach {255 * greatest:.0f} of 255", figures)


def _flat(images: Sequence[ImageFigures]) -> Finding:
    flat = sum(image.std < 0.01 for image in images)
    figures = {"flat": flat, "images": len(images)}
    shown = f"{flat} of {len(images)} images are of one tone"
    advice = "look at them: a covered lens, a failed decoder or an empty crop"
    if flat > 0.05 * len(images):
        return bad("flat images", shown, advice, figures)
    return warn("flat images", shown, advice, figures) if flat else ok("flat images", shown, figures)


def _brightness(images: Sequence[ImageFigures], expected: Expected) -> Finding:
    mean = float(np.mean([image.mean for image in images]))
    contrast = float(np.median([image.std for image in images]))
    offset = (mean - expected.mean) / expected.std
    figures = {"mean": mean, "offset": offset, "contrast": contrast}
    shown = f"mean {mean:.2f}, contrast {contrast:.2f}; the backbone expects {expected.mean:.2f} and {expected.std:.2f}"
    if abs(offset) > 1.2:
        tone = "light" if offset > 0 else "dark"
        return warn(
            "brightness",
            f"{shown}: much too {tone}",
            "mend inverted or badly exposed images; where they are right, declare input.mean and input.std and compare",
            figures,
        )
    if contrast < 0.3 * expected.std:
        return warn("brightness", f"{shown}: faint", "stretch the contrast, or declare input.std", figures)
    return ok("brightness", shown, figures)


def _size(images: Sequence[ImageFigures], expected: Expected) -> Finding:
    side = float(np.median([min(image.height, image.width) for image in images]))
    figures = {"side": side, "expected": expected.side}
    shown = f"shorter side {side:.0f} px, the trunk takes {expected.side}"
    if side * 2 < expected.side:
        return warn(
            "size",
            f"{shown}: enlarged {expected.side / side:.1f} times",
            "send larger images, or declare a smaller input.size, which is also quicker",
            figures,
        )
    return ok("size", shown, figures)


def _colour(images: Sequence[ImageFigures]) -> Finding:
    grey = sum(image.colour < 0.01 for image in images)
    figures = {"grey": grey, "images": len(images)}
    shown = f"{grey} of {len(images)} images have no colour"
    if 0 < grey < len(images) and grey > 0.05 * len(images):
        return warn(
            "colour", shown, "check whether two kinds of cameras are mixed: colour may stand for a label", figures
        )
    return ok("colour", f"{shown}{': right for scans, wrong for photographs' if grey == len(images) else ''}", figures)
