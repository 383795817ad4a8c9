"""What a caller may hand over as samples, and how a batch becomes messages that fit the wire.

Axes: N samples, H rows, W columns, 3 RGB channels, d features.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from everlearn_client.errors import InvalidArgument
from everlearn_client.targets import Targets, Truth, to_targets
from everlearn_protos.arrays import to_tensor
from everlearn_protos.v1 import tensor_pb2

MESSAGE_LIMIT_BYTES = 4 * 2**20 - 64 * 2**10
"""Largest message a server takes is 4 MiB; 64 KiB are left for labels and framing."""
MESSAGE_TARGET_BYTES = 2**20
"""Larger batches are split near this: big enough to cost nothing per message, small enough to resend cheaply."""


@dataclass(frozen=True)
class Features:
    """float32 [N, d], computed by the model's own trunk (split learning: raw data never leaves the device)."""

    features_Nd: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Pixels:
    """float32 [N, 3, height, width], already resized and normalised as the model's input contract says."""

    pixels_N3HW: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Tensors:
    """float32 [N, *shape] in your own unit, for a model of modality tensor: rows of a table, parts of a time series."""

    values_N: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Texts:
    """Texts for a model of modality text; the server makes tokens of them, and reads no further than it declares."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Predicted:
    """Samples that were predicted before, by `Predictions.sample_ids`, of a model that declares late_labels; for
    learning alone. See `Client.label` for single ones."""

    ids: Sequence[str]


Arrays = Features | Pixels | Tensors
SampleInput = Sequence[bytes | str | os.PathLike[str]] | npt.NDArray[np.uint8] | Arrays | Texts | Predicted
"""Image files (bytes or paths), uint8 images [N, H, W, 3] or [H, W, 3], `Texts`, `Tensors`, `Pixels` or `Features`; to
be learned, also `Predicted`."""


@dataclass(frozen=True)
class Batch:
    """Labelled samples: one label for each, or several, or values (see `targets.Truth`).

    `step`: the task, domain or season that they belong to, where the stream has such; see `Client.learn`.
    """

    samples: SampleInput
    labels: Truth
    step: str = ""


class Rows:
    """Samples of one form: how many, how large each is, and the message of a range of them."""

    def __init__(
        self,
        *,
        files: Sequence[bytes | Path] = (),
        texts: Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
        array: npt.NDArray[np.generic] | None = None,
        form: Literal["images", "pixels", "tensors", "features"] = "images",
    ) -> None:
        self._files, self._texts, self._array, self._form = files, texts, array, form
        self._ids = ids

    def __len__(self) -> int:
        for texts in (self._texts, self._ids):
            if texts is not None:
                return len(texts)
        return len(self._files) if self._array is None else len(self._array)

    def size_bytes(self, row: int) -> int:
        """Bytes sample `row` takes in a message."""
        if self._array is not None:
            return self._array.nbytes // len(self._array)
        for texts in (self._texts, self._ids):
            if texts is not None:
                return len(texts[row].encode()) + 8
        file = self._files[row]
        return (len(file) if isinstance(file, bytes) else _stat_bytes(file, row)) + 8

    def part(self, first: int, last: int) -> Rows:
        """Rows first..last-1, without a copy."""
        array = None if self._array is None else self._array[first:last]
        texts = None if self._texts is None else self._texts[first:last]
        ids = None if self._ids is None else self._ids[first:last]
        return Rows(files=self._files[first:last], texts=texts, ids=ids, array=array, form=self._form)

    def message(self) -> tensor_pb2.Samples:
        """All rows as a message; paths are read now. Raises OSError."""
        if self._ids is not None:
            return tensor_pb2.Samples(ids=self._ids)
        if self._texts is not None:
            return tensor_pb2.Samples(texts=tensor_pb2.Texts(texts=self._texts))
        if self._array is None:
            images = [file if isinstance(file, bytes) else file.read_bytes() for file in self._files]
            return tensor_pb2.Samples(encoded_images=tensor_pb2.EncodedImages(images=images))
        message = tensor_pb2.Samples()
        getattr(message, self._form).CopyFrom(to_tensor(self._array))
        return message


def to_rows(samples: SampleInput) -> Rows:
    """Checks samples and says how they would be sent. Raises InvalidArgument that names what would be right."""
    if isinstance(samples, Features):
        return Rows(array=_floats(samples.features_Nd, axes=2, form="Features", right="[N, d]"), form="features")
    if isinstance(samples, Tensors):
        return Rows(array=_floats(samples.values_N, axes=None, form="Tensors", right="[N, *shape]"), form="tensors")
    if isinstance(samples, Texts):
        return Rows(texts=_checked_texts(samples.texts, "Texts"))
    if isinstance(samples, Predicted):
        return Rows(ids=_checked_texts(samples.ids, "Predicted"))
    if isinstance(samples, Pixels):
        pixels_N3HW = _floats(samples.pixels_N3HW, axes=4, form="Pixels", right="[N, 3, height, width]")
        if pixels_N3HW.shape[1] != 3:
            raise _wrong(f"Pixels has {pixels_N3HW.shape[1]} channels on axis 1; 3 are needed: [N, 3, height, width]")
        return Rows(array=pixels_N3HW, form="pixels")
    if isinstance(samples, np.ndarray):
        return Rows(array=_checked_images(samples))
    if isinstance(samples, (bytes, str, os.PathLike)) or not isinstance(samples, Sequence):
        raise _wrong(f"samples is a {type(samples).__name__}; give a list of image files (bytes or paths) or an array")
    files: list[bytes | Path] = []
    for row, item in enumerate(samples):
        if isinstance(item, (bytes, bytearray, memoryview)):
            files.append(bytes(item))
        elif isinstance(item, (str, os.PathLike)):
            files.append(Path(item))
        else:
            hint = "; use np.stack for arrays of one size" if isinstance(item, np.ndarray) else ""
            raise _wrong(f"samples[{row}] is a {type(item).__name__}; bytes or a path is needed{hint}")
    return Rows(files=files)


def to_message(samples: SampleInput) -> tensor_pb2.Samples:
    """All samples in one message. Raises InvalidArgument where they do not fit."""
    if isinstance(samples, Predicted):
        raise _wrong("Predicted samples were asked about before, and are for learning alone; send the samples")
    rows = to_rows(samples)
    total = sum(rows.size_bytes(row) for row in range(len(rows)))
    if total > MESSAGE_LIMIT_BYTES:
        raise _wrong(f"{len(rows)} samples take {total:,} bytes; one request holds {MESSAGE_LIMIT_BYTES:,}: send fewer")
    return rows.message()


def split_batch(
    batch: Batch,
    *,
    target_bytes: int = MESSAGE_TARGET_BYTES,
    limit_bytes: int = MESSAGE_LIMIT_BYTES,
    max_samples: int = 0,
) -> Iterator[Batch]:
    """Cuts a batch into ones that each fit a message of about `target_bytes`; the cut depends on nothing else.

    `max_samples` 0 = no limit. Raises InvalidArgument where a single sample is above `limit_bytes`.
    """
    rows, targets = checked_rows(batch)
    for first, last in cuts(rows, targets, target_bytes=target_bytes, limit_bytes=limit_bytes, rows=max_samples):
        yield Batch(_take(batch.samples, first, last), batch.labels[first:last], batch.step)


def checked_rows(batch: Batch) -> tuple[Rows, Targets]:
    """The batch's rows and what is true of each. Raises InvalidArgument unless there is one for each sample."""
    rows = to_rows(batch.samples)
    return rows, to_targets(batch.labels, len(rows))


def cuts(
    all_rows: Rows, targets: Targets, *, target_bytes: int, limit_bytes: int, rows: int = 0
) -> Iterator[tuple[int, int]]:
    """Ranges [first, last) whose messages stay below `target_bytes` where one sample alone does."""
    first, filled = 0, 0
    for row in range(len(all_rows)):
        size = all_rows.size_bytes(row) + targets.size_bytes(row)
        if size > limit_bytes:
            raise InvalidArgument(
                f"sample {row} takes {size:,} bytes; one message holds {limit_bytes:,}: make it smaller",
                field=f"samples[{row}]",
            )
        if row > first and (filled + size > target_bytes or (rows and row - first >= rows)):
            yield first, row
            first, filled = row, 0
        filled += size
    if len(all_rows) > first or len(all_rows) == 0:
        yield first, len(all_rows)


def _take(samples: SampleInput, first: int, last: int) -> SampleInput:
    if isinstance(samples, Features):
        return Features(samples.features_Nd[first:last])
    if isinstance(samples, Pixels):
        return Pixels(samples.pixels_N3HW[first:last])
    if isinstance(samples, Tensors):
        return Tensors(samples.values_N[first:last])
    if isinstance(samples, Texts):
        return Texts(samples.texts[first:last])
    if isinstance(samples, Predicted):
        return Predicted(samples.ids[first:last])
    if isinstance(samples, np.ndarray) and samples.ndim == 3:
        return samples
    return samples[first:last]


def _checked_texts(texts: Sequence[str], form: str) -> list[str]:
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence):
        raise _wrong(f"{form} is a {type(texts).__name__}; give a list of str: {form}([...])")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidArgument(f"{form} has a {type(text).__name__}; str is needed", field=f"samples[{row}]")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidArgument(
                "a text has half a character (a lone surrogate); decode its bytes as UTF-8 first",
                field=f"samples[{row}]",
            ) from None
    return list(texts)


def _checked_images(array: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    if array.dtype != np.uint8:
        raise _wrong(
            f"samples is {array.dtype}{list(array.shape)}; a plain array is uint8 [N, H, W, 3]. "
            "Wrap float32 in Tensors(...) ([N, *shape]), Pixels(...) ([N, 3, height, width]) or Features(...) ([N, d])"
        )
    if array.ndim == 3 and array.shape[2] == 3:
        array = array[np.newaxis]
    if array.ndim == 4 and array.shape[3] == 3 and array.shape[1] > 0 and array.shape[2] > 0:
        return array.view(np.uint8)
    right = "uint8 [N, H, W, 3] or [H, W, 3], RGB"
    if array.ndim == 4 and array.shape[1] == 3:
        right += "; move the channels: x.transpose(0, 2, 3, 1)"
    elif array.ndim in (2, 3) or (array.ndim == 4 and array.shape[3] == 1):
        right += "; for greyscale [N, H, W] stack it: np.stack([x] * 3, axis=-1)"
    raise _wrong(f"samples has shape {list(array.shape)}; it must be {right}")


def _floats(array: npt.NDArray[np.float32], *, axes: int | None, form: str, right: str) -> npt.NDArray[np.float32]:
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise _wrong(f"{form} is {found}; it must be a float32 array {right}: use np.asarray(x, np.float32)")
    if array.ndim < 2 or axes not in (None, array.ndim) or 0 in array.shape[1:]:
        raise _wrong(f"{form} has shape {list(array.shape)}; it must be {right}")
    return array


def _stat_bytes(path: Path, row: int) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}", field=f"samples[{row}]") from error


def _wrong(message: str) -> InvalidArgument:
    return InvalidArgument(message, field="samples")
