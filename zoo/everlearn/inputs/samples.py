"""The forms in which a batch of inputs arrives, as values. The wire and the engine meet here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class EncodedImages:
    """Image files."""

    files: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.files)


@dataclass(frozen=True)
class Images:
    """uint8 [B, H, W, 3], RGB, any size."""

    images_BHWC: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.images_BHWC)


@dataclass(frozen=True)
class Pixels:
    """float32 [B, 3, H, W], resized and normalised as the model's front does."""

    pixels_BCHW: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.pixels_BCHW)


@dataclass(frozen=True)
class Tensors:
    """float32 [B, *shape], in the user's own unit."""

    values_B: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.values_B)


@dataclass(frozen=True)
class Texts:
    """Texts in Unicode."""

    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Features:
    """float32 [B, d], computed by the model's own trunk."""

    features_Bd: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.features_Bd)


@dataclass(frozen=True)
class Waiting:
    """Samples that were predicted before, by the ids that were told then; for learning alone."""

    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)


Raw = EncodedImages | Images | Pixels | Tensors | Texts
"""What a trunk has to run on."""
Samples = Raw | Features
