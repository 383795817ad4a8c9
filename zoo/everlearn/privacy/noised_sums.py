"""Sums of which only a noisy state exists outside of this object: what may be persisted, shown and solved from.

    add      -> exact sums in RAM, of what came since the last release; nothing here gives them away
    release  -> released += exact + noise, once; exact = 0

All that can be read is a function of what was released, so a caller cannot show too much. On disk: magic, uint32
length, JSON header, integers as `everlearn._sums_format` packs them, sha256.

Axes: C classes, d features.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Sequence
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from everlearn import _sums_format
from everlearn.errors import DataLossError, InputError
from everlearn.labels import Labels
from everlearn.privacy.mechanism import SHARES, SumsMechanism
from everlearn.sums import Sums
from everlearn.values import FeatureScale, QuantisedBd

Float = npt.NDArray[np.float64]
MAGIC: Final = b"EVLDPSM1"
VERSION: Final = 1
_DIGEST_BYTES: Final = 32


class NoisedSums:
    """n[C], S[C, d] and G[d, d] with noise. Labels are declared: that one appeared would tell of a sample.

    >>> sums = NoisedSums(FeatureScale(step_d=np.ones(2, np.float32)), ["cat", "dog"])
    >>> sums.add(np.array([[900, 10]], np.int16), ["cat"])
    >>> sums.samples, sums.release(noise=1.0), sums.samples, sums.release(noise=1.0)
    (0, True, 1, False)
    """

    def __init__(self, scale: FeatureScale, labels: Sequence[str]) -> None:
        self._mechanism = SumsMechanism(scale=scale)
        self._fresh = Sums(scale.step_d.size, labels)
        dim = scale.step_d.size
        self.labels: tuple[str, ...] = tuple(labels)
        """Declared, in order."""
        self.count_C: Float = np.zeros(len(labels))
        """n with noise: whole numbers, which may lie below 0."""
        self.sum_Cd: Float = np.zeros((len(labels), dim))
        self.lower_dd: Float = np.zeros((dim, dim), order="F")
        self.samples = 0
        """In the releases. Exact: how many samples were sent is not hidden, what was in them is."""
        self.releases = 0
        self.variance = 0.0
        """Sum of noise^2 over the releases: noise multipliers add up so."""

    @property
    def mechanism(self) -> SumsMechanism:
        """What bounded the features and drew the noise."""
        return self._mechanism

    @property
    def waiting(self) -> int:
        """Samples since the last release."""
        return self._fresh.samples

    @property
    def noise_share(self) -> float:
        """Length of the noise on a class's mean relative to that of a sample, where classes are alike; 0 before the
        first release."""
        dim, per_class = len(self.lower_dd), self.samples / max(len(self.labels), 1)
        return math.sqrt(self.variance * dim / SHARES[1]) / per_class if self.releases else 0.0

    def declare(self, labels: Sequence[str]) -> None:
        """Makes classes at the end. Raises InputError for a label that is repeated, known or malformed."""
        self._fresh.declare(labels)
        self.labels = tuple(self._fresh.labels)
        more = len(self.labels) - self.count_C.size
        self.count_C = np.pad(self.count_C, (0, more))
        self.sum_Cd = np.pad(self.sum_Cd, ((0, more), (0, 0)))

    def add(self, quantised_Bd: QuantisedBd, labels: Sequence[str]) -> None:
        """Takes a batch, each vector brought to one length. Raises InputError for a label that is not declared, and as
        `Sums.add`; nothing is taken then."""
        unknown = next((label for label in labels if label not in self.labels), None)
        if unknown is not None:
            raise InputError("a label is not declared; with privacy.tier dp a model learns declared ones alone")
        self._fresh.add(self._mechanism.bounded(quantised_Bd), labels)

    def release(self, *, noise: float) -> bool:
        """Adds what waits, with fresh noise on every number, absent classes' too; false where nothing waits."""
        if not self.waiting:
            return False
        count_C, sum_Cd, lower_dd = self._mechanism.draw(noise, len(self.labels))
        self.count_C = self.count_C + self._fresh.count_C + count_C
        self.sum_Cd = self.sum_Cd + self._fresh.sum_Cd + sum_Cd
        self.lower_dd = np.asfortranarray(self.lower_dd + self._fresh.gram_lower_dd + lower_dd)
        self.samples += self._fresh.samples
        self.releases += 1
        self.variance += noise**2
        self._fresh = Sums(len(self.lower_dd), self.labels)
        return True

    def copy(self) -> Self:
        """What was released, as it is now."""
        twin = type(self)(self._mechanism.scale, self.labels)
        # Never changed in place, so they may be shared.
        twin.count_C, twin.sum_Cd, twin.lower_dd = self.count_C, self.sum_Cd, self.lower_dd
        twin.samples, twin.releases, twin.variance = self.samples, self.releases, self.variance
        return twin

    def to_bytes(self) -> bytes:
        """What was released; nothing of what waits."""
        count, counts = _sums_format.pack(self.count_C.astype(np.int64))
        total, sums = _sums_format.pack(self.sum_Cd.astype(np.int64).ravel())
        gram, grams = _sums_format.pack(_sums_format.packed_lower(self.lower_dd).astype(np.int64))
        header = {
            "version": VERSION,
            "labels": list(self.labels),
            "dim": len(self.lower_dd),
            "scale": self._mechanism.scale.digest,
            "samples": self.samples,
            "releases": self.releases,
            "variance": self.variance,
            "bytes": [count, total, gram],
        }
        encoded = json.dumps(header, sort_keys=True).encode()
        body = b"".join([MAGIC, struct.pack("<I", len(encoded)), encoded, *counts, *sums, *grams])
        return body + hashlib.sha256(body).digest()

    @classmethod
    def from_bytes(cls, data: bytes, scale: FeatureScale | None = None) -> Self:
        """What `to_bytes` wrote. Raises DataLossError for anything else, and for sums of another scale than `scale`.

        Without a scale they can be looked at, not learned into or solved from: its steps are not in the bytes.
        """
        body, seal = memoryview(data)[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
        if not data.startswith(MAGIC) or hashlib.sha256(body).digest() != seal:
            raise DataLossError("these bytes are not sums with noise, or they are damaged")
        start = len(MAGIC) + 4
        try:
            end = start + struct.unpack("<I", body[len(MAGIC) : start])[0]
            header: dict[str, Any] = json.loads(bytes(body[start:end]))
            if header["version"] != VERSION or (scale is not None and header["scale"] != scale.digest):
                raise ValueError("they are of another version or feature scale")
            scale = scale or FeatureScale(step_d=np.ones(int(header["dim"]), np.float32))
            return cls._filled(scale, header, body, end)
        except (ValueError, KeyError, TypeError, struct.error, InputError) as error:
            raise DataLossError(f"these bytes are sealed but are no sums with noise: {error}") from error

    @classmethod
    def _filled(cls, scale: FeatureScale, header: dict[str, Any], body: memoryview, start: int) -> Self:
        labels, dim = Labels(header["labels"]), scale.step_d.size
        made, (count, total, gram) = cls(scale, list(labels)), header["bytes"]
        made.count_C, start = _sums_format.unpack(body, start, len(labels), count)
        sums, start = _sums_format.unpack(body, start, len(labels) * dim, total)
        packed, start = _sums_format.unpack(body, start, dim * (dim + 1) // 2, gram)
        if start != len(body):
            raise ValueError(f"{len(body) - start} bytes too many")
        made.sum_Cd = sums.reshape(len(labels), dim)
        columns, rows = np.triu_indices(dim)  # column by column of the lower triangle
        made.lower_dd[rows, columns] = packed
        made.samples, made.releases = int(header["samples"]), int(header["releases"])
        made.variance = float(header["variance"])
        return made
