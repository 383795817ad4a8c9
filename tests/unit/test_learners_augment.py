from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.datasets import load_digits
from tests.trained_models import NoWaiting
from torchvision.transforms.v2 import functional as reference

from everlearn.errors import InputError
from everlearn.learners.gradient import _colour as colour
from everlearn.learners.gradient import augment
from everlearn.learners.gradient.augment import Augmenter
from everlearn.spec.recipe import Augment

few = settings(max_examples=25, deadline=None)
EACH = {
    "crop": {"crop_area": 0.3},
    "padded": {"crop_padding_px": 3},
    "flip": {"flip": 0.5},
    "brightness": {"brightness": 0.6},
    "contrast": {"contrast": 0.6},
    "saturation": {"saturation": 0.6},
    "hue": {"hue": 0.4},
    "cutout": {"cutout": 0.5},
    "mixup": {"mixup": 0.4},
    "cutmix": {"cutmix": 1.0},
}
ALL = {name: value for options in EACH.values() for name, value in options.items() if name != "cutmix"}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(rows: int = 6, height: int = 12, width: int = 9, *, seed: int = 1) -> torch.Tensor:
    return torch.rand(rows, 3, height, width, generator=seeded(seed))


def targets(rows: int = 6, classes: int = 4) -> torch.Tensor:
    return torch.eye(classes)[torch.arange(rows) % classes]


def augmented(options: dict[str, float], pixels: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    augmenter, random = Augmenter(Augment.model_validate(options)), seeded(seed)
    mixed, partner_B, share_B = augmenter.blend(augmenter(pixels, random), random)
    target_BC = targets(len(pixels))
    return mixed, target_BC if partner_B is None else augment.blended(target_BC, partner_B, share_B)


def test_all_off_is_the_very_same_tensors_and_draws_nothing() -> None:
    augmenter, random = Augmenter(Augment()), seeded()
    before = random.get_state()
    pixels = images()
    assert augmenter(pixels, random) is pixels
    mixed, partner_B, share_B = augmenter.blend(pixels, random)
    assert mixed is pixels
    assert partner_B is share_B is None
    assert torch.equal(random.get_state(), before)


@pytest.mark.parametrize("options", [*EACH.values(), ALL], ids=[*EACH, "all"])
class TestEachAugmentation:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_shape_dtype_and_bounds_stay(self, options, dtype) -> None:
        pixels = images().to(dtype)
        varied, target = augmented(options, pixels)
        assert varied.shape == pixels.shape
        assert varied.dtype == dtype
        assert varied.isfinite().all()
        assert varied.min() >= 0
        assert varied.max() <= 1
        assert target.dtype == torch.float32
        torch.testing.assert_close(target.sum(1), torch.ones(6))

    def test_changes_something_leaves_its_input_alone_and_follows_the_generator(self, options) -> None:
        pixels = images()
        before, state = pixels.clone(), torch.get_rng_state()
        varied, target = augmented(options, pixels)
        again, target_again = augmented(options, pixels)
        other, _ = augmented(options, pixels, seed=1)
        assert torch.equal(pixels, before)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(varied, again)
        assert torch.equal(target, target_again)
        assert not torch.equal(varied, pixels)
        assert not torch.equal(varied, other)

    def test_each_row_has_a_draw_of_its_own(self, options) -> None:
        if "mixup" in options or "cutmix" in options:
            # Alike images mix to the same: what differs is the share, and the targets show it.
            _, target = augmented(options, images(24))
            assert len(target.max(1).values.unique()) > 4
            return
        varied, _ = augmented(options, images(1).expand(24, -1, -1, -1))
        assert len({row.numpy().tobytes() for row in varied}) > 1

    def test_never_waits_for_the_device(self, options) -> None:
        pixels = images()
        with NoWaiting():
            augmented(options, pixels)

    def test_no_rows_are_no_rows(self, options) -> None:
        varied, target = augmented(options, images(0))
        assert varied.shape == (0, 3, 12, 9)
        assert target.shape == (0, 4)


@few
@given(data=st.data(), height=st.integers(2, 20), width=st.integers(2, 20))
def test_resized_crop_is_torchvisions(data, height, width) -> None:
    pixels = images(4, height, width)
    found = []
    for _ in range(4):
        tall, wide = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
        found.append((data.draw(st.integers(0, height - tall)), data.draw(st.integers(0, width - wide)), tall, wide))
    cropped = augment.resized_crop(pixels, torch.tensor(found))
    for row, box in enumerate(found):
        expected = reference.resized_crop(pixels[row], *box, size=[height, width], antialias=True)
        torch.testing.assert_close(cropped[row], expected, atol=2e-5, rtol=0)


def test_a_crop_of_the_whole_image_is_the_image() -> None:
    pixels = images()
    whole = torch.tensor([[0, 0, 12, 9]]).expand(6, 4)
    torch.testing.assert_close(augment.resized_crop(pixels, whole), pixels, atol=1e-5, rtol=0)


@few
@given(top=st.integers(0, 6), left=st.integers(0, 6))
def test_padded_crop_and_flip_are_torchvisions_to_the_bit(top, left) -> None:
    pixels = images(3)
    corner = torch.tensor([[top, left], [3, 3], [0, 6]])
    moved = augment.padded_crop(pixels, corner, 3)
    for row, (y, x) in enumerate(corner.tolist()):
        assert torch.equal(moved[row], reference.crop(reference.pad(pixels[row], [3]), y, x, 12, 9))
    assert torch.equal(moved[1], pixels[1])
    flipped = augment.flip(pixels, torch.tensor([True, False, True]))
    assert torch.equal(flipped[0], reference.horizontal_flip(pixels[0]))
    assert torch.equal(flipped[1], pixels[1])


@few
@given(factors=st.lists(st.floats(0, 2), min_size=4, max_size=4), seed=st.integers(0, 999))
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_is_torchvisions(name, factors, seed) -> None:
    pixels = images(4, seed=seed)
    changed = getattr(colour, name)(pixels, torch.tensor(factors))
    for row, factor in enumerate(factors):
        expected = getattr(reference, f"adjust_{name}")(pixels[row], factor)
        torch.testing.assert_close(changed[row], expected, atol=1e-5, rtol=0)


@few
@given(turns=st.lists(st.floats(-0.5, 0.5), min_size=4, max_size=4), seed=st.integers(0, 999))
def test_hue_is_torchvisions_on_colours_and_nothing_on_grey(turns, seed) -> None:
    pixels = images(4, seed=seed)
    pixels[0, :, :2] = pixels[0, :1, :2]
    changed = colour.hue(pixels, torch.tensor(turns))
    for row, turn in enumerate(turns):
        torch.testing.assert_close(changed[row], reference.adjust_hue(pixels[row], turn), atol=2e-5, rtol=0)
    torch.testing.assert_close(changed[0, :, :2], pixels[0, :, :2], atol=1e-6, rtol=0)


def test_drawn_boxes_stay_in_the_image_and_have_the_area_asked_for() -> None:
    pixels = torch.zeros(4000, 3, 40, 56)
    top, left, tall, wide = augment.draw_boxes(pixels, 0.25, 4 / 3, seeded()).unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + tall <= 40).all()
    assert (left + wide <= 56).all()
    share = (tall * wide).float() / (40 * 56)
    assert 0.22 < float(share.min()) < 0.3
    # Of 0.25 to 1 the mean is 0.625, less what sides beyond the image lose.
    assert 0.56 < float(share.mean()) < 0.625
    assert float((wide / tall).max()) < 1.45
    corners = augment.draw_corners(4000, 3, seeded())
    assert corners.unique().tolist() == [0, 1, 2, 3, 4, 5, 6]


@few
@given(alpha=st.floats(0.1, 4))
def test_shares_are_beta_distributed(alpha) -> None:
    share = augment.draw_beta(20_000, alpha, seeded())
    assert share.isfinite().all()
    assert float(share.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(share.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)


def test_partners_are_a_permutation() -> None:
    assert sorted(augment.draw_partners(50, seeded()).tolist()) == list(range(50))


@pytest.mark.parametrize("shape", [(3, 12, 9), (7,)], ids=["pixels", "features"])
def test_mixup_blends_values_and_targets_by_the_same_share(shape) -> None:
    values, target = torch.rand(6, *shape, generator=seeded(2)), torch.eye(6)
    mixed, partner_B, share_B = augment.mixup(values, 1.0, seeded())
    mixed_target = augment.blended(target, partner_B, share_B)
    # One-hot rows tell who was mixed with whom, and how much.
    expected = torch.einsum("bp,p...->b...", mixed_target, values)
    torch.testing.assert_close(mixed, expected, atol=1e-6, rtol=0)
    assert ((mixed_target > 0).sum(1) <= 2).all()


def test_cutmix_targets_are_the_shares_of_pixels_by_their_origin() -> None:
    # Each image is one colour, its row's number: a pixel tells where it is from.
    rows = 32
    pixels = (torch.arange(rows) / rows)[:, None, None, None].expand(rows, 3, 16, 10).contiguous()
    mixed, partner_B, share_B = augment.cutmix(pixels, 1.0, seeded())
    target = augment.blended(torch.eye(rows), partner_B, share_B)
    origin = (mixed[:, 0] * rows).round().long().flatten(1)
    by_hand = torch.stack([torch.bincount(row, minlength=rows) for row in origin]) / 160
    torch.testing.assert_close(target, by_hand, atol=1e-6, rtol=0)
    assert (target.max(1).values < 1).any()


def test_cutout_is_a_box_of_the_asked_side_with_the_mean_colour() -> None:
    pixels = images(2, 16, 16)
    centre = torch.tensor([[0.5, 0.5], [0.0, 0.0]])
    inside = augment.boxes(centre, torch.full((2,), 0.5), 16, 16)
    assert inside.sum((1, 2)).tolist() == [64, 16]
    assert inside[0, 4:12, 4:12].all()
    cut = augment.cutout(pixels, inside)
    assert torch.equal(cut[:, :, 15], pixels[:, :, 15])
    torch.testing.assert_close(cut[0, :, 8, 8], pixels[0].mean((1, 2)))


def test_real_digits_moved_by_a_pixel_keep_their_ink() -> None:
    grey, _ = load_digits(return_X_y=True)
    pixels = torch.from_numpy(np.repeat(grey[:64].reshape(-1, 1, 8, 8) / 16, 3, axis=1)).float()
    framed = torch.nn.functional.pad(pixels, [2] * 4)
    moved = Augmenter(Augment(crop_padding_px=2))(framed, seeded())
    torch.testing.assert_close(moved.sum((1, 2, 3)), framed.sum((1, 2, 3)))


@pytest.mark.parametrize(
    "pixels", [torch.zeros(2, 1, 4, 4), torch.zeros(3, 4, 4), torch.zeros(2, 3, 4, 4, dtype=torch.uint8)]
)
def test_what_is_no_batch_of_float_pixels_is_refused(pixels) -> None:
    with pytest.raises(InputError, match=r"\[B, 3, H, W\]") as caught:
        Augmenter(Augment(flip=0.5))(pixels, seeded())
    assert caught.value.field == "pixels"


@pytest.mark.parametrize(
    "wrong", [{"crop_area": 0.0}, {"flip": 1.5}, {"hue": 0.6}, {"cutout": -0.1}, {"mixup": 0.2, "cutmix": 1.0}]
)
def test_what_makes_no_sense_is_refused_when_declared(wrong) -> None:
    with pytest.raises(ValidationError):
        Augment.model_validate(wrong)
