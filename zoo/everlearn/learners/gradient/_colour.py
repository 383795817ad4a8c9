"""Colour of a batch, each row by its own factor, as torchvision has it for one image. Pixels are floats in [0, 1].

Axes: B rows, 3 channels, H and W pixels.
"""

from __future__ import annotations

from typing import Final

import torch

_LUMA: Final = (0.2989, 0.587, 0.114)
"""Of red, green, blue (ITU-R BT.601)."""


def brightness(pixels_B3HW: torch.Tensor, factor_B: torch.Tensor) -> torch.Tensor:
    """0 is black, 1 as it was."""
    return (pixels_B3HW * _rows(factor_B, pixels_B3HW)).clamp(0, 1)


def contrast(pixels_B3HW: torch.Tensor, factor_B: torch.Tensor) -> torch.Tensor:
    """0 is the row's mean grey, 1 as it was."""
    return _towards(pixels_B3HW, _grey(pixels_B3HW).mean((2, 3), keepdim=True), factor_B)


def saturation(pixels_B3HW: torch.Tensor, factor_B: torch.Tensor) -> torch.Tensor:
    """0 is grey, 1 as it was."""
    return _towards(pixels_B3HW, _grey(pixels_B3HW), factor_B)


def hue(pixels_B3HW: torch.Tensor, turn_B: torch.Tensor) -> torch.Tensor:
    """Turns round the colour circle; 0 and 1 as it was. In float32, as a sixth of a circle in half precision is
    coarse."""
    pixels = pixels_B3HW.float()
    low, high = pixels.aminmax(dim=1)
    chroma = high - low
    red, green, blue = pixels.unbind(1)
    # Where there is no chroma the angle does not matter; 1 keeps it finite.
    over = torch.where(chroma > 0, chroma, 1)
    sixths = torch.where(
        high == red,
        (green - blue) / over,
        torch.where(high == green, 2 + (blue - red) / over, 4 + (red - green) / over),
    )
    sixths = sixths + 6 * turn_B.float()[:, None, None]
    # Smith 1978 in closed form: each channel is high, less chroma by its distance on the circle.
    channels = [
        high - chroma * torch.minimum(place, 4 - place).clamp(0, 1)
        for place in (torch.remainder(offset + sixths, 6) for offset in (5, 3, 1))
    ]
    return torch.stack(channels, 1).clamp(0, 1).to(pixels_B3HW.dtype)


def _grey(pixels_B3HW: torch.Tensor) -> torch.Tensor:
    red, green, blue = pixels_B3HW.unbind(1)
    return (red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]).unsqueeze(1)


def _towards(pixels_B3HW: torch.Tensor, other: torch.Tensor, factor_B: torch.Tensor) -> torch.Tensor:
    factor = _rows(factor_B, pixels_B3HW)
    return (pixels_B3HW * factor + other * (1 - factor)).clamp(0, 1)


def _rows(factor_B: torch.Tensor, pixels_B3HW: torch.Tensor) -> torch.Tensor:
    return factor_B.to(pixels_B3HW.dtype)[:, None, None, None]
