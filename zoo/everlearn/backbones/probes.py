"""Deterministic probe samples, and the last steps every loader shares: check the graph, fix the feature scale.

Axes: B probes, H W C, d features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from everlearn.backbones.probe_texts import PROBE_TEXTS
from everlearn.errors import BackboneError
from everlearn.inputs.front import to_pixels
from everlearn.inputs.text import tokenizer_of
from everlearn.runtime.session import TrunkSession, join
from everlearn.values import (
    FeaturesBd,
    FeatureScale,
    Front,
    FrontConfig,
    ImageHWC,
    TensorFront,
    TextFront,
    Trunk,
    TrunkInput,
)

PROBE_COUNT = 24
HEADROOM = 16.0
"""How far above the probes' peak a feature may go before it saturates; within sqrt 2, as steps are powers of two.

Probes say little of data far from photographs: with 4, features of digits saturated in nearly every image, and heads
lost accuracy by it; with 16 the default keeps up with joint training on features that nobody rounded (`make
bench-learning`)."""
DECLARED_HEADROOM = 4.0
"""The same where features are the values themselves: their range is declared, and probes reach both of its ends."""
MAX_REL_DIFF = 1e-4
"""Of the larger of a feature's own and the typical peak; float32 in another order stays below."""

Reference = Callable[[TrunkInput], FeaturesBd]
"""The source model, run on one prepared sample [1, ...]."""


def probes_of(front: Front, tokenizer: bytes = b"") -> list[TrunkInput]:
    """Prepared samples [1, ...] on which a trunk is checked and its scale fixed; the same every time."""
    if isinstance(front, TextFront):
        prepare = tokenizer_of(tokenizer, front.max_tokens)
        return [prepare.ids(text)[None] for text in PROBE_TEXTS]
    if isinstance(front, TensorFront):
        return probe_tensors(front)
    return [to_pixels(image_HWC, front)[None] for image_HWC in probe_images(front)]


def probe_tensors(front: TensorFront) -> list[TrunkInput]:
    """24 tensors within the declared range: both of its ends, then evenly distributed values."""
    rng = np.random.Generator(np.random.PCG64(20240229))
    low, high = np.array(front.low), np.array(front.high)
    shares = [np.zeros(front.shape), np.ones(front.shape)]
    shares += [rng.uniform(size=front.shape) for _ in range(PROBE_COUNT - len(shares))]
    return [(low + share * (high - low)).astype(np.float32)[None] for share in shares]


def probe_images(front: FrontConfig) -> list[ImageHWC]:
    """24 images of the trunk's size with natural statistics: coloured 1/f noise, gradients, edges, flat ones.

    Natural images have power spectra near 1/f^2 (Field 1987, J. Opt. Soc. Am. A 4:2379), so amplitudes fall as 1/f;
    white noise would excite a network's features far less than photographs do.
    """
    rng = np.random.Generator(np.random.PCG64(20240229))
    size = (front.height, front.width)
    noise = [_noise(rng, size, slope) for slope in (0.8, 1.0, 1.2, 1.5) for _ in range(3)]
    edges = [_edges(rng, size, pieces) for pieces in (1, 2, 4, 8, 16, 32)]
    gradients = [_gradient(rng, size) for _ in range(4)]
    flat = [np.full((*size, 3), level, np.uint8) for level in (0, 255)]
    return [*noise, *edges, *gradients, *flat]


def finish(
    onnx: bytes,
    front: Front,
    bits: int,
    provenance: Mapping[str, str],
    reference: Reference | None = None,
    *,
    channels_d: npt.NDArray[np.intp] | None = None,
    tokenizer: bytes = b"",
    headroom: float = HEADROOM,
) -> Trunk:
    """Verifies a graph on the probes, fixes its feature scale and wraps both as a trunk.

    Checks: the source model agrees within `MAX_REL_DIFF` (where there is one), the same sample gives the same bits
    twice, a batch gives the rows that its samples give alone, features are finite and tell the probes apart.
    Samples run one by one on one thread, so that the scale does not depend on the batch. Raises BackboneError.

    `channels_d`, `headroom`: as in `feature_scale`. `tokenizer`: tokenizer.json of a text front, which the trunk
    brings along.
    """
    session = TrunkSession(onnx)
    probes = probes_of(front, tokenizer)
    rows = [session.run(probe) for probe in probes]
    if any(row.ndim != 2 or row.shape[0] != 1 or row.dtype != np.float32 for row in rows):
        raise BackboneError(
            f"one sample gives {rows[0].dtype} {list(rows[0].shape)}; a feature vector, float32 [1, d], is needed"
        )
    features_Bd = np.concatenate(rows)
    typical_peak(features_Bd)
    _check_rows(session, probes, features_Bd)
    parity = 0.0
    if reference is not None:
        source_Bd = np.concatenate([reference(probe) for probe in probes])
        parity = relative_difference(features_Bd, source_Bd)
        if not parity <= MAX_REL_DIFF:
            raise BackboneError(
                f"the exported graph differs from the source model by {parity:.1e} of its features; at most "
                f"{MAX_REL_DIFF:.0e} is allowed"
            )
    scale = feature_scale(features_Bd, bits, channels_d, headroom)
    return Trunk(
        onnx=onnx,
        scale=scale,
        front=front,
        parity_max_rel_diff=parity,
        provenance=dict(provenance),
        tokenizer=tokenizer,
    )


def feature_scale(
    features_Bd: FeaturesBd,
    bits: int,
    channels_d: npt.NDArray[np.intp] | None = None,
    headroom: float = HEADROOM,
) -> FeatureScale:
    """Per feature, a step with headroom over its peak on the probes, and over the typical peak where its own is low.

    Steps are powers of two. Runtimes differ in the last bits of a feature from one kind of CPU to another; a step that
    followed them would differ too, and sums from two such machines could never merge. Integers times powers of two are
    also exact in float32.

    `channels_d`: the channel of each feature, where a feature is one position of one: those of a channel share the
    channel's peak. 24 probes say too little of a single position: values of other images would saturate there, and
    shift the pooled features.
    """
    peak_d = np.abs(features_Bd).max(axis=0).astype(np.float64)
    if channels_d is not None:
        peak_C = np.zeros(int(channels_d.max()) + 1)
        np.maximum.at(peak_C, channels_d, peak_d)
        peak_d = peak_C[channels_d]
    limit = FeatureScale(step_d=np.ones(1, np.float32), bits=bits).limit
    wanted_d = headroom * np.maximum(peak_d, typical_peak(features_Bd)) / limit
    return FeatureScale(step_d=np.exp2(np.rint(np.log2(wanted_d))).astype(np.float32), bits=bits)


def typical_peak(features_Bd: FeaturesBd) -> float:
    """Median over features of the peak magnitude, features that no probe excites left out.

    Raises BackboneError for features that are not finite, or the same for every probe.
    """
    if not np.isfinite(features_Bd).all():
        raise BackboneError("the features of ordinary samples are not finite; the weights are broken or overflow")
    if not (features_Bd != features_Bd[0]).any():
        raise BackboneError("every sample gives the same features; this output does not depend on the input")
    peak_d = np.abs(features_Bd).max(axis=0)
    return float(np.median(peak_d[peak_d > 0]))


def relative_difference(features_Bd: FeaturesBd, source_Bd: FeaturesBd) -> float:
    """Largest difference, relative to the larger of the feature's and the typical peak; infinite for other shapes."""
    if features_Bd.shape != source_Bd.shape:
        return float("inf")
    peak_d = np.maximum(np.abs(source_Bd).max(axis=0), typical_peak(source_Bd))
    return float((np.abs(features_Bd - source_Bd) / peak_d).max())


def _check_rows(session: TrunkSession, probes: list[TrunkInput], features_Bd: FeaturesBd) -> None:
    again_1d = session.run(probes[0])
    if not np.array_equal(again_1d[0], features_Bd[0]):
        raise BackboneError("the same sample gives other features the second time; a trunk must not be random")
    for count in (2, 3):
        try:
            batch_Bd = session.run(join(probes[:count]))
        except BackboneError as error:
            raise BackboneError(
                f"the graph works for one sample only; export it with a dynamic batch axis ({error})"
            ) from error
        if batch_Bd.shape != features_Bd[:count].shape:
            raise BackboneError(
                f"{count} samples give {list(batch_Bd.shape)}, not {list(features_Bd[:count].shape)}; export the graph "
                "with a dynamic batch axis"
            )
        # Against the peaks of all probes: two samples alone may leave most features at rest.
        joined_Bd = np.concatenate([batch_Bd, features_Bd[count:]])
        if relative_difference(joined_Bd, features_Bd) > MAX_REL_DIFF:
            raise BackboneError("the features of a sample depend on the others in its batch; a trunk must not mix rows")


def _noise(rng: np.random.Generator, size: tuple[int, int], slope: float) -> ImageHWC:
    """Coloured noise with amplitude 1/f^slope; its channels correlate as photographs' do."""
    frequency_HW = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None, :])
    frequency_HW[0, 0] = np.inf
    amplitude_HW = frequency_HW**-slope
    planes = []
    for _ in range(3):
        phase_HW = rng.uniform(0, 2 * np.pi, frequency_HW.shape)
        plane_HW = np.fft.irfft2(amplitude_HW * np.exp(1j * phase_HW), s=size)
        planes.append(plane_HW / max(float(plane_HW.std()), 1e-12))
    mix = np.array([[1.0, 0.3, 0.1], [1.0, 0.0, -0.2], [1.0, -0.3, 0.1]])
    contrast, brightness = rng.uniform(30, 70), rng.uniform(90, 165)
    return _to_levels(brightness + contrast * np.stack(planes, axis=-1) @ mix.T)


def _edges(rng: np.random.Generator, size: tuple[int, int], pieces: int) -> ImageHWC:
    """Half-planes of flat colour laid over each other."""
    image_HWC = np.tile(rng.uniform(0, 255, 3), (*size, 1))
    y_HW, x_HW = np.meshgrid(np.linspace(-1, 1, size[0]), np.linspace(-1, 1, size[1]), indexing="ij")
    for _ in range(pieces):
        angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.7, 0.7)
        image_HWC[np.cos(angle) * x_HW + np.sin(angle) * y_HW > offset] = rng.uniform(0, 255, 3)
    return _to_levels(image_HWC)


def _gradient(rng: np.random.Generator, size: tuple[int, int]) -> ImageHWC:
    corners = rng.uniform(0, 255, (2, 2, 3))
    y_H, x_W = np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1])
    down = np.stack([1 - y_H, y_H], axis=1)
    across = np.stack([1 - x_W, x_W], axis=1)
    return _to_levels(np.einsum("hi,ijc,wj->hwc", down, corners, across))


def _to_levels(image_HWC: npt.NDArray[np.float64]) -> ImageHWC:
    return np.rint(image_HWC).clip(0, 255).astype(np.uint8)
