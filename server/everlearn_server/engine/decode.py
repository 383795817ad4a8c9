"""The last place that sees raw input: from samples to what the trunk takes, one sample at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from everlearn.errors import InputError
from everlearn.inputs.decoding import ImageDecoding, ImageLimits
from everlearn.inputs.forms import FORM_NAMES, check, decode_one
from everlearn.inputs.samples import EncodedImages, Features, Raw, Samples, Tensors, Texts
from everlearn.inputs.text import tokenizer_of
from everlearn.runtime.session import TrunkSession
from everlearn.spec.input import Input
from everlearn.values import FeaturesBd, FrontConfig, TextFront, TrunkInput
from everlearn_server.engine.trunks import LiveTrunk

BEYOND_SCALE = 16.0
"""A feature this many times beyond the fixed-point scale is refused. The scale leaves several times the probes' peak
as headroom and saturates above, which ordinary inputs may: what lies beyond is no output of the trunk on an image."""


def limits_of(declared: Input) -> ImageLimits:
    """Of image files, as a declaration has them."""
    assert declared.encodings is not None  # every image declaration has these three
    assert declared.max_image_bytes is not None
    assert declared.max_image_pixels is not None
    return ImageLimits(
        encodings=declared.encodings, max_bytes=declared.max_image_bytes, max_pixels=declared.max_image_pixels
    )


class Decoder:
    """Checks and decodes for one trunk and one declared input contract."""

    def __init__(self, trunk: LiveTrunk, declared: Input, images: ImageDecoding) -> None:
        """`images`: who reads image files."""
        front = trunk.front
        self._images = images
        self._front = front
        self._tokenizer = tokenizer_of(trunk.tokenizer, front.max_tokens) if isinstance(front, TextFront) else None
        self._bound_d = BEYOND_SCALE * trunk.scale.limit * trunk.scale.step_d
        self._declared = declared
        self.session: TrunkSession = trunk.session
        self.feature_dim = trunk.feature_dim

    def check(self, samples: Samples, *, field: str) -> None:
        """Refuses what can be refused without decoding. Raises InputError, PayloadTooLargeError."""
        check(samples, front=self._front, declared=self._declared, feature_dim=self.feature_dim, field=field)

    def check_features(self, features_Bd: FeaturesBd, samples: Samples, *, field: str) -> None:
        """Refuses features that are not finite or lie far beyond the scale: from a device, or from a trunk that pixels
        have made overflow (a sum would keep NaN for ever). Raises InputError.
        """
        sane_Bd = np.abs(features_Bd) <= self._bound_d  # False for NaN
        if sane_Bd.all():
            return
        index, column = (int(place) for place in np.argwhere(~sane_Bd)[0])
        whose = "the sample has" if isinstance(samples, Features) else "the trunk makes of it"
        right = "send pixels normalised as the model's input says, or features of its own trunk"
        if isinstance(samples, Tensors):
            right = "send values near the range that the model's input declares, in its unit"
        lists = {EncodedImages: "encoded_images.images", Texts: "texts.texts"}
        items = lists.get(type(samples), FORM_NAMES[type(samples)])
        raise InputError(
            f"{whose} feature {column} = {float(features_Bd[index, column]):.3g}, beyond {self._bound_d[column]:.3g}; "
            f"{right}",
            field=f"{field}.{items}[{index}]",
        )

    def pixels_of(self, samples: Raw, *, field: str) -> Callable[[int], TrunkInput]:
        """What a worker calls for sample i: [1, ...] as the trunk takes it; a view where nothing has to be done."""
        return partial(self._prepared, samples, field)

    def _prepared(self, samples: Raw, field: str, index: int) -> TrunkInput:
        if isinstance(samples, EncodedImages):
            assert isinstance(self._front, FrontConfig)  # `check` has seen to it
            name = f"{field}.encoded_images.images[{index}]"
            return self._images.pixels(samples.files[index], self._front, limits_of(self._declared), field=name)[None]
        one = decode_one(
            samples, index, front=self._front, declared=self._declared, tokenizer=self._tokenizer, field=field
        )
        return one[None]
