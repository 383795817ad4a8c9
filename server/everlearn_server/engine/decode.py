"""The last place that sees raw input: from samples to one image's pixels at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from everlearn.inputs.forms import check, decode_one
from everlearn.inputs.samples import EncodedImages, Images, Pixels, Samples
from everlearn.runtime.session import TrunkSession
from everlearn.spec.model import Input
from everlearn.values import PixelsBCHW
from everlearn_server.engine.trunks import LiveTrunk


class Decoder:
    """Checks and decodes for one trunk and one declared input contract."""

    def __init__(self, trunk: LiveTrunk, declared: Input) -> None:
        self._front = trunk.front
        self._declared = declared
        self.session: TrunkSession = trunk.session
        self.feature_dim = trunk.feature_dim

    def check(self, samples: Samples, *, field: str) -> None:
        """Refuses what can be refused without decoding. Raises InputError, PayloadTooLargeError."""
        check(samples, front=self._front, declared=self._declared, feature_dim=self.feature_dim, field=field)

    def pixels_of(self, samples: EncodedImages | Images | Pixels, *, field: str) -> Callable[[int], PixelsBCHW]:
        """What a worker calls for image i: float32 [1, 3, h, w]; a view where nothing has to be done."""
        return partial(self._pixels, samples, field)

    def _pixels(self, samples: EncodedImages | Images | Pixels, field: str, index: int) -> PixelsBCHW:
        pixels_CHW = decode_one(samples, index, front=self._front, declared=self._declared, field=field)
        return pixels_CHW[None]
