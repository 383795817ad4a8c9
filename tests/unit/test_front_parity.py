"""The front in its three forms: timm's transform, NumPy in the server, the graph in every export."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from PIL import Image

from everlearn.errors import InputError
from everlearn.export.front import front_graph
from everlearn.inputs.front import fit_of, normaliser, resize, to_pixels
from everlearn.values import FrontConfig, ImageHWC, Interpolation, Resize

SIZES = [(480, 640), (640, 480), (96, 96), (110, 109), (1, 1), (1, 7), (300, 1), (2, 2), (8, 8), (97, 31), (31, 97)]
SIZES += [(53, 700), (700, 53), (601, 801), (109, 110), (225, 224), (1000, 999), (3, 333)]
TRUNKS = [(96, 96), (33, 33), (96, 160), (161, 97)]
MODES: list[tuple[Resize, Interpolation]] = list(itertools.product(("crop", "squash"), ("bilinear", "bicubic")))  # type: ignore[arg-type]  # literals


def image_of(size: tuple[int, int], kind: str) -> ImageHWC:
    rng = np.random.default_rng(sum(size))
    if kind == "noise":
        return rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    return np.where(rng.random((*size, 1)) < 0.5, 0, 255).astype(np.uint8).repeat(3, axis=2)


def levels(pixels_CHW: np.ndarray, front: FrontConfig) -> np.ndarray:
    factor_C, offset_C = normaliser(front)
    return ((pixels_CHW - offset_C[:, None, None]) / factor_C[:, None, None]).transpose(1, 2, 0)


def by_pillow(image_HWC: ImageHWC, front: FrontConfig) -> np.ndarray:
    """Whole resize, rows first, then the crop: what torchvision does on Pillow up to 12."""
    fit = fit_of(*image_HWC.shape[:2], front)
    filter_ = Image.Resampling[front.interpolation.upper()]
    wide = Image.fromarray(image_HWC).resize((fit.width, image_HWC.shape[0]), filter_)
    whole = wide.resize((fit.width, fit.height), filter_)
    return np.asarray(whole.crop((fit.left, fit.top, fit.left + front.width, fit.top + front.height)))


def session_of(front: FrontConfig) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(front_graph(front).SerializeToString(), options)


@pytest.mark.parametrize(("resize_mode", "interpolation"), MODES)
def test_numpy_graph_and_pillow_agree_within_three_grey_levels(
    resize_mode: Resize, interpolation: Interpolation
) -> None:
    worst = 0.0
    for height, width in TRUNKS:
        front = FrontConfig(height=height, width=width, resize=resize_mode, interpolation=interpolation)
        session = session_of(front)
        for size, kind in itertools.product(SIZES, ("noise", "binary")):
            image_HWC = image_of(size, kind)
            expected = by_pillow(image_HWC, front).astype(float)
            fast = levels(to_pixels(image_HWC, front), front)
            graph = levels(session.run(None, {"image": image_HWC[None]})[0][0], front)
            worst = max(worst, np.abs(fast - expected).max(), np.abs(graph - expected).max())
    assert worst <= 3 + 1e-3


def test_another_filter_would_fail_the_three_levels() -> None:
    image_HWC = image_of((97, 131), "noise")
    front = FrontConfig(height=96, width=96, interpolation="bilinear")
    other = FrontConfig(height=96, width=96, interpolation="bicubic")
    assert np.abs(levels(to_pixels(image_HWC, front), front) - by_pillow(image_HWC, other)).max() > 3


def test_a_trunk_of_224_pixels_agrees_on_photo_sizes() -> None:
    front = FrontConfig(height=224, width=224)
    session = session_of(front)
    for size in [(480, 640), (1080, 1920), (224, 224), (500, 333)]:
        image_HWC = image_of(size, "noise")
        graph = levels(session.run(None, {"image": image_HWC[None]})[0][0], front)
        assert np.abs(graph - levels(to_pixels(image_HWC, front), front)).max() <= 3


def test_crop_is_timms_evaluation_transform() -> None:
    from timm.data.transforms_factory import transforms_imagenet_eval

    for height, width, crop_pct in [(224, 224, 0.875), (96, 96, 0.9), (96, 160, 0.875), (64, 64, 1.0)]:
        front = FrontConfig(height=height, width=width, crop_pct=crop_pct)
        timms = transforms_imagenet_eval(
            (height, width), crop_pct=crop_pct, interpolation="bicubic", mean=front.mean, std=front.std
        )
        # Wide sources: there every Pillow works rows first.
        for size in [(480, 640), (97, 131), (300, 301), (224, 256)]:
            image_HWC = image_of(size, "noise")
            theirs = timms(Image.fromarray(image_HWC)).numpy()
            assert np.abs(levels(theirs, front) - levels(to_pixels(image_HWC, front), front)).max() <= 1.01


def test_the_geometry_is_torchvisions() -> None:
    import torch
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional

    for size in SIZES:
        front = FrontConfig(height=96, width=96)
        side = int(96 / 0.875)
        resized = functional.resize(torch.zeros(3, *size, dtype=torch.uint8), [side], v2.InterpolationMode.NEAREST)
        fit = fit_of(*size, front)
        assert (fit.height, fit.width) == tuple(resized.shape[1:])


def test_a_batch_gives_what_its_images_give_alone() -> None:
    front = FrontConfig(height=33, width=33)
    session = session_of(front)
    images = np.stack([image_of((40, 50), "noise"), image_of((50, 40), "noise").transpose(1, 0, 2)])
    both = session.run(None, {"image": images})[0]
    for image, pixels in zip(images, both, strict=True):
        assert np.array_equal(session.run(None, {"image": image[None]})[0][0], pixels)


def test_the_graph_is_the_same_bytes_every_time() -> None:
    front = FrontConfig(height=33, width=33)
    graph = front_graph(front)
    assert graph.SerializeToString() == front_graph(front).SerializeToString()
    onnx.checker.check_model(graph, full_check=True)


def test_pixels_are_written_into_the_row_given() -> None:
    front = FrontConfig(height=33, width=33)
    image_HWC = image_of((50, 40), "noise")
    batch_BCHW = np.full((2, 3, 33, 33), np.nan, np.float32)
    row = to_pixels(image_HWC, front, batch_BCHW[1])
    assert np.shares_memory(row, batch_BCHW)
    assert np.array_equal(batch_BCHW[1], to_pixels(image_HWC, front))
    assert np.isnan(batch_BCHW[0]).all()


def test_a_thread_of_an_image_is_refused_before_it_takes_a_huge_buffer() -> None:
    thin = Image.new("RGB", (1, 1_000_000))
    with pytest.raises(InputError, match="too thin"):
        resize(thin, FrontConfig(height=224, width=224, resize="squash"))
    assert resize(thin, FrontConfig(height=224, width=224)).size == (224, 224)
    assert resize(thin.transpose(Image.Transpose.ROTATE_90), FrontConfig(height=224, width=224)).size == (224, 224)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_an_array_that_is_no_image_is_refused(image: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"uint8 \[H, W, 3\]"):
        to_pixels(image, FrontConfig(height=8, width=8))
