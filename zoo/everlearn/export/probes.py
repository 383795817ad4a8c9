"""Samples on which an export is compared with the server, and what the server's trunk makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime

from everlearn.backbones.probes import probes_of
from everlearn.errors import ParityError
from everlearn.export.front import front_graph
from everlearn.inputs.front import normaliser, to_pixels
from everlearn.values import FeaturesBd, FrontConfig, ImageHWC, TextFront, Trunk, TrunkInput

FRONT_GREY_LEVELS = 3.0
"""Most that a pixel of the two fronts may differ by, of 255."""


@dataclass(frozen=True, kw_only=True)
class Probes:
    """Samples, and what one trunk makes of them. Computed once per trunk; each version then costs no trunk run here."""

    name: str
    """Of the file's input."""
    samples: tuple[npt.NDArray[np.generic], ...]
    """As the file takes them, [1, ...] each."""
    features_Bd: FeaturesBd
    """From what the file's front makes of them."""
    served_Bd: FeaturesBd
    """From what the server's front makes of them."""
    front_grey_levels: float
    """images: largest difference of a pixel between the two fronts, of 255. 0 where there is no front."""

    @classmethod
    def of(
        cls,
        trunk: Trunk,
        run_trunk: Callable[[TrunkInput], FeaturesBd],
        images: Sequence[ImageHWC] | None = None,
    ) -> Probes:
        """`run_trunk`: the server's own, called with one sample at a time. `images`: by default `probe_images`.

        Raises ParityError where the two fronts are more than 3 grey levels apart.
        """
        if isinstance(trunk.front, FrontConfig):
            return cls._of_images(trunk.front, run_trunk, images)
        samples = tuple(probes_of(trunk.front, trunk.tokenizer))
        features_Bd = np.concatenate([run_trunk(sample) for sample in samples])
        return cls(
            name="input_ids" if isinstance(trunk.front, TextFront) else "tensor",
            samples=samples,
            features_Bd=features_Bd,
            served_Bd=features_Bd,
            front_grey_levels=0.0,
        )

    @classmethod
    def _of_images(
        cls, front: FrontConfig, run_trunk: Callable[[TrunkInput], FeaturesBd], images: Sequence[ImageHWC] | None
    ) -> Probes:
        images = tuple(probe_images(front) if images is None else images)
        graph = plain_session(front_graph(front).SerializeToString())
        ours = [graph.run(["pixels"], {"image": image[None]})[0] for image in images]
        servers = [to_pixels(image, front)[None] for image in images]
        per_level_C = normaliser(front)[0][:, None, None]
        apart = max(float((np.abs(a - b) / per_level_C).max()) for a, b in zip(ours, servers, strict=True))
        # Room for float32 rounding of whole levels.
        if not apart <= FRONT_GREY_LEVELS + 0.01:
            raise ParityError(f"the file's front is {apart:.1f} grey levels from the server's; at most 3 are allowed")
        return cls(
            name="image",
            samples=tuple(np.ascontiguousarray(image)[None] for image in images),
            features_Bd=np.concatenate([run_trunk(pixels) for pixels in ours]),
            served_Bd=np.concatenate([run_trunk(pixels) for pixels in servers]),
            front_grey_levels=apart,
        )


def probe_images(front: FrontConfig, *, seed: int = 0) -> list[ImageHWC]:
    """Images to compare on where there are no real ones, as on a server that keeps none; the same every time.

    Smooth like photographs rather than white noise, in the shapes that lead through different parts of the front: as
    large as the trunk takes, larger, smaller, wide, tall; and one of noise, which differs the most when resized.
    """
    random = np.random.default_rng(seed)
    height, width = front.height, front.width
    sizes = [(height, width), (2 * height + 1, 2 * width), (height // 3 + 1, width // 3 + 2), (height, 2 * width + 3)]
    smooth = [_smooth(random, *size) for size in [*sizes, (2 * height - 1, width)]]
    noise = random.integers(0, 256, (height + 7, width + 5, 3), np.uint8)
    return [*smooth, noise]


def plain_session(onnx: bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    """The session that a receiver of the file makes. Raises ParityError where ONNX Runtime does not load it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base but this
        raise ParityError(f"ONNX Runtime does not load the file: {error}") from error


def _smooth(random: np.random.Generator, height: int, width: int) -> ImageHWC:
    coarse = random.uniform(0, 255, (6, 6, 3))
    rows, columns = np.linspace(0, 5, height), np.linspace(0, 5, width)
    # Bilinear from the coarse grid: first down each column, then along each row.
    tall = np.stack([np.stack([np.interp(rows, range(6), coarse[:, x, c]) for x in range(6)], 1) for c in range(3)], 2)
    left = np.minimum(columns.astype(int), 4)
    share = (columns - left)[None, :, None]
    image: ImageHWC = np.rint(tall[:, left] * (1 - share) + tall[:, left + 1] * share).astype(np.uint8)
    return image
