"""Turns a batch of pixels into another that means the same: crop, flip, colour, cutout; and mixes rows with labels.

Everything is computed for the whole batch on the tensor's own device, each row with its own draw, from a generator that
the caller gives: no loop over samples, no wait for the device, and nothing is kept. Draws are functions of shape and
generator alone, transforms functions of tensors alone, so that each can be checked by itself.

Pixels are floats in [0, 1], before a backbone's normalisation; they stay in there, in their dtype.

Axes: B rows, 3 channels, H and W pixels, C classes.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from everlearn.errors import InputError
from everlearn.learners.gradient import _colour as colour
from everlearn.spec.recipe import Augment


class Augmenter:
    """What a declaration asks for, in this order: crop, flip, colour, cutout."""

    def __init__(self, declared: Augment) -> None:
        self.declared = declared

    def __call__(self, pixels_B3HW: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """The batch, augmented; the very same tensor where all is off. Raises InputError for another shape or dtype.

        `random` lives on the pixels' device.
        """
        if pixels_B3HW.ndim != 4 or pixels_B3HW.shape[1] != 3 or not pixels_B3HW.is_floating_point():
            raise InputError(
                f"pixels of shape {list(pixels_B3HW.shape)} and {pixels_B3HW.dtype}; augmentation takes floats "
                "[B, 3, H, W] in [0, 1]",
                field="pixels",
            )
        told = self.declared
        if not len(pixels_B3HW):
            return pixels_B3HW
        if told.crop_area < 1:
            pixels_B3HW = resized_crop(pixels_B3HW, draw_boxes(pixels_B3HW, told.crop_area, told.crop_aspect, random))
        if told.crop_padding_px:
            corner_B2 = draw_corners(len(pixels_B3HW), told.crop_padding_px, random)
            pixels_B3HW = padded_crop(pixels_B3HW, corner_B2, told.crop_padding_px)
        if told.flip:
            pixels_B3HW = flip(pixels_B3HW, uniform(len(pixels_B3HW), 0, 1, random) < told.flip)
        pixels_B3HW = self._coloured(pixels_B3HW, random)
        if told.cutout:
            height, width = pixels_B3HW.shape[2:]
            centre_B2 = torch.rand(len(pixels_B3HW), 2, device=random.device, generator=random)
            inside_BHW = boxes(centre_B2, torch.full_like(centre_B2[:, 0], told.cutout), height, width)
            pixels_B3HW = cutout(pixels_B3HW, inside_BHW)
        return pixels_B3HW

    def _coloured(self, pixels_B3HW: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        told, rows = self.declared, len(pixels_B3HW)
        for span, change in (
            (told.brightness, colour.brightness),
            (told.contrast, colour.contrast),
            (told.saturation, colour.saturation),
        ):
            if span:
                pixels_B3HW = change(pixels_B3HW, uniform(rows, 1 - span, 1 + span, random))
        if told.hue:
            pixels_B3HW = colour.hue(pixels_B3HW, uniform(rows, -told.hue, told.hue, random))
        return pixels_B3HW

    def blend(
        self, pixels_B3HW: torch.Tensor, random: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Rows mixed as declared, by mixup or cutmix; the row that each was mixed with and its own share in the
        target. Unchanged and None where neither is declared."""
        if not len(pixels_B3HW):
            return pixels_B3HW, None, None
        if self.declared.mixup:
            return mixup(pixels_B3HW, self.declared.mixup, random)
        if self.declared.cutmix:
            return cutmix(pixels_B3HW, self.declared.cutmix, random)
        return pixels_B3HW, None, None


def uniform(rows: int, low: float, high: float, random: torch.Generator) -> torch.Tensor:
    """float32 [B] in [low, high)."""
    return torch.rand(rows, device=random.device, generator=random) * (high - low) + low


def draw_beta(rows: int, alpha: float, random: torch.Generator) -> torch.Tensor:
    """[B] of Beta(alpha, alpha): the share of one gamma in two."""
    shape_2B = torch.full((2, rows), alpha, device=random.device)
    # torch.distributions takes no generator, and would draw from the global one.
    gamma_2B = torch._standard_gamma(shape_2B, generator=random)
    return gamma_2B[0] / gamma_2B.sum(0)


def draw_partners(rows: int, random: torch.Generator) -> torch.Tensor:
    """A permutation of the rows."""
    return torch.rand(rows, device=random.device, generator=random).argsort()


def draw_boxes(
    pixels_B3HW: torch.Tensor, smallest_area: float, widest_aspect: float, random: torch.Generator
) -> torch.Tensor:
    """int64 [B, 4]: top, left, height and width (pixels) of a crop with an area of `smallest_area` to 1 of the image
    and sides of 1 : widest_aspect at most (Szegedy 2015). A side beyond the image is cut to it, where torchvision draws
    again."""
    rows, _, height, width = pixels_B3HW.shape
    area_B = uniform(rows, smallest_area, 1.0, random) * (height * width)
    aspect_B = uniform(rows, -math.log(widest_aspect), math.log(widest_aspect), random).exp()
    height_B = (area_B / aspect_B).sqrt().round().clamp(1, height)
    width_B = (area_B * aspect_B).sqrt().round().clamp(1, width)
    top_B = (uniform(rows, 0, 1, random) * (height - height_B + 1)).floor().minimum(height - height_B)
    left_B = (uniform(rows, 0, 1, random) * (width - width_B + 1)).floor().minimum(width - width_B)
    return torch.stack((top_B, left_B, height_B, width_B), 1).long()


def draw_corners(rows: int, padding_px: int, random: torch.Generator) -> torch.Tensor:
    """int64 [B, 2]: top and left (pixels) of a window of the image's size in the padded image."""
    return torch.randint(2 * padding_px + 1, (rows, 2), device=random.device, generator=random)


def resized_crop(pixels_B3HW: torch.Tensor, box_B4: torch.Tensor) -> torch.Tensor:
    """Each row's box, at the image's size again: bilinear, as torchvision's resized_crop."""
    height, width = pixels_B3HW.shape[2:]
    top_B1, left_B1, tall_B1, wide_B1 = box_B4.float().unsqueeze(2).unbind(1)
    down_H = torch.arange(height, device=pixels_B3HW.device) + 0.5
    right_W = torch.arange(width, device=pixels_B3HW.device) + 0.5
    # Pixel centres, held inside the crop: what lies beyond it must not blend in.
    y_BH = top_B1 + (down_H * tall_B1 / height - 0.5).clamp(min=0).minimum(tall_B1 - 1)
    x_BW = left_B1 + (right_W * wide_B1 / width - 0.5).clamp(min=0).minimum(wide_B1 - 1)
    y_BHW = ((2 * y_BH + 1) / height - 1).unsqueeze(2).expand(-1, -1, width)
    x_BHW = ((2 * x_BW + 1) / width - 1).unsqueeze(1).expand(-1, height, -1)
    grid_BHW2 = torch.stack((x_BHW, y_BHW), 3)
    # In float32: half precision has no room for coordinates.
    cropped = functional.grid_sample(pixels_B3HW.float(), grid_BHW2, padding_mode="border", align_corners=False)
    return cropped.clamp(0, 1).to(pixels_B3HW.dtype)


def padded_crop(pixels_B3HW: torch.Tensor, corner_B2: torch.Tensor, padding_px: int) -> torch.Tensor:
    """Each row moved within a frame of black, as torchvision's RandomCrop with padding."""
    height, width = pixels_B3HW.shape[2:]
    padded = functional.pad(pixels_B3HW, [padding_px] * 4)
    row_BH = corner_B2[:, :1] + torch.arange(height, device=pixels_B3HW.device)
    column_BW = corner_B2[:, 1:] + torch.arange(width, device=pixels_B3HW.device)
    which_B = torch.arange(len(pixels_B3HW), device=pixels_B3HW.device)
    picked_BHW3 = padded.permute(0, 2, 3, 1)[which_B[:, None, None], row_BH[:, :, None], column_BW[:, None, :]]
    return picked_BHW3.permute(0, 3, 1, 2).contiguous()


def flip(pixels_B3HW: torch.Tensor, flipped_B: torch.Tensor) -> torch.Tensor:
    """Left to right, where told."""
    return torch.where(flipped_B[:, None, None, None], pixels_B3HW.flip(3), pixels_B3HW)


def boxes(centre_B2: torch.Tensor, side_B: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """bool [B, H, W]: inside a box around `centre` (shares of height and width) whose sides are this share of the
    image's, cut off at the border."""
    y_H = torch.arange(height, device=centre_B2.device)
    x_W = torch.arange(width, device=centre_B2.device)
    y_B1, x_B1 = (centre_B2[:, :1] * height).floor(), (centre_B2[:, 1:] * width).floor()
    half_y_B1, half_x_B1 = (0.5 * side_B[:, None] * height).floor(), (0.5 * side_B[:, None] * width).floor()
    in_BH = (y_H >= y_B1 - half_y_B1) & (y_H < y_B1 + half_y_B1)
    in_BW = (x_W >= x_B1 - half_x_B1) & (x_W < x_B1 + half_x_B1)
    return in_BH[:, :, None] & in_BW[:, None, :]


def cutout(pixels_B3HW: torch.Tensor, inside_BHW: torch.Tensor) -> torch.Tensor:
    """The inside becomes the row's mean colour: nothing to learn from (DeVries & Taylor 2017, who take the data's)."""
    return torch.where(inside_BHW[:, None], pixels_B3HW.mean((2, 3), keepdim=True), pixels_B3HW)


def mixup(
    values: torch.Tensor, alpha: float, random: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows blended with a random partner, share ~ Beta(alpha, alpha) a row (Zhang 2018); `values` [B, ...] may be
    pixels or features (Verma 2019). Returns the partners and the shares too, by which targets are to be blended."""
    share_B, partner_B = draw_beta(len(values), alpha, random), draw_partners(len(values), random)
    return blended(values, partner_B, share_B), partner_B, share_B


def cutmix(
    pixels_B3HW: torch.Tensor, alpha: float, random: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A box of a random partner in each row, 1 - Beta(alpha, alpha) of its area before it is cut off at the border.
    Returns the partners and the share of area that is left, by which targets are to be blended (Yun 2019)."""
    rows, _, height, width = pixels_B3HW.shape
    share_B, partner_B = draw_beta(rows, alpha, random), draw_partners(rows, random)
    centre_B2 = torch.rand(rows, 2, device=random.device, generator=random)
    inside_BHW = boxes(centre_B2, (1 - share_B).sqrt(), height, width)
    mixed = torch.where(inside_BHW[:, None], pixels_B3HW[partner_B], pixels_B3HW)
    return mixed, partner_B, 1 - inside_BHW.float().mean((1, 2))


def blended(values: torch.Tensor, partner_B: torch.Tensor, share_B: torch.Tensor) -> torch.Tensor:
    """share * row + (1 - share) * partner."""
    share = share_B.to(values.dtype).view(-1, *([1] * (values.ndim - 1)))
    return torch.lerp(values[partner_B], values, share)
