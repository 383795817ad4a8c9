"""Labelled data on disk, read as it is needed: a folder of images, a CSV of paths or numbers, texts, or an .npz."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from everlearn_client.cli.tables import read_table
from everlearn_client.cli.texts import SUFFIXES, read_texts
from everlearn_client.errors import InvalidArgument
from everlearn_client.samples import Batch, Features, SampleInput, Tensors, Texts, split_batch
from everlearn_client.targets import Truth

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_SAMPLES, _LABELS = ("images", "x", "features"), ("labels", "y")
_ALIASES = {"X": "x", "Y": "y"}
Modality = Literal["image", "tensor", "text"]
"""What the model takes; an .npz of plain float32 and a .csv mean something else for each."""
_MODALITIES: dict[str, Modality] = {"image": "image", "tensor": "tensor", "text": "text"}
_HEADERS = ({"path", "file", "filename", "image"}, {"label", "class"})


@dataclass(frozen=True)
class Dataset:
    """Labels in memory, samples on demand."""

    labels: Truth
    take: Callable[[npt.NDArray[np.int64]], SampleInput]
    is_features: bool = False
    unit: str = "images"
    """What its samples are called."""
    ignored: tuple[Path, ...] = ()
    """Files that are no images."""
    without_class: tuple[Path, ...] = ()
    """Images beside the classes' subfolders."""

    def order(self, *, shuffle_seed: int | None, limit: int | None) -> npt.NDArray[np.int64]:
        """Indices in the order of streaming; the same seed gives the same order."""
        count = len(self.labels)
        order = np.arange(count) if shuffle_seed is None else np.random.default_rng(shuffle_seed).permutation(count)
        return order[:limit]

    def batches(self, order: npt.NDArray[np.int64], *, batch: int, max_samples: int = 0) -> Iterator[Batch]:
        """Batches that fit a message each. The cut depends on the data alone, so that numbers survive a restart."""
        for first in range(0, len(order), batch):
            rows = order[first : first + batch]
            whole = Batch(self.take(rows), [self.labels[row] for row in rows])
            yield from split_batch(whole, max_samples=max_samples)


def open_dataset(path: Path, told: str = "image", shape: Sequence[int] = ()) -> Dataset:
    """By what lies at `path`, for a model that told this modality and shape of a sample.

    Raises InvalidArgument that says what would be right.
    """
    # An older server tells none, and knows images alone.
    modality = _MODALITIES.get(told, "image")
    if path.is_dir() and modality == "image":
        return _open_folder(path)
    if not path.exists():
        raise _wrong(f"{path} does not exist")
    if modality == "text" and (path.is_dir() or path.suffix.lower() in SUFFIXES):
        return open_texts(path)
    if path.suffix.lower() == ".csv":
        return _open_csv(path) if modality == "image" else open_table(path, shape)
    if path.suffix.lower() == ".npz":
        return _open_npz(path, modality)
    if modality == "tensor":
        raise _wrong(f"{path} is neither a .csv of numbers and a label, nor an .npz; the model takes tensors")
    if modality == "text":
        raise _wrong(
            f"{path} is neither a .csv, .json or .jsonl of text and label, nor a folder of .txt; the model takes texts"
        )
    raise _wrong(f"{path} is neither a folder with one subfolder a class, nor a .csv of path,label, nor an .npz")


def _open_folder(folder: Path) -> Dataset:
    files: list[Path] = []
    labels: list[str] = []
    ignored: list[Path] = []
    for subfolder in sorted(child for child in folder.iterdir() if child.is_dir() and child.name[0] != "."):
        for file in sorted(child for child in subfolder.rglob("*") if child.is_file()):
            if _is_image(file):
                files.append(file)
                labels.append(subfolder.name)
            else:
                ignored.append(file)
    if not files:
        raise _wrong(f"{folder} has no images: one subfolder a class is needed, with {', '.join(IMAGE_SUFFIXES)} in it")
    loose = tuple(sorted(each for each in folder.iterdir() if each.is_file() and _is_image(each)))
    return Dataset(labels, lambda rows: [files[row] for row in rows], ignored=tuple(ignored), without_class=loose)


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES


def _open_csv(path: Path) -> Dataset:
    files: list[Path] = []
    labels: list[str] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            for row in (reader := csv.reader(handle)):
                if not row or (not files and _is_header(row)):
                    continue
                if len(row) != 2 or not row[1].strip():
                    raise _wrong(f"{path}, line {reader.line_num}: {len(row)} columns; each line must be path,label")
                files.append(path.parent / row[0].strip())
                labels.append(row[1].strip())
    except (UnicodeDecodeError, csv.Error) as error:
        raise _wrong(f"{path} is not a CSV in UTF-8: {error}") from error
    if not files:
        raise _wrong(f"{path} has no lines of path,label")
    return Dataset(labels, lambda rows: [files[row] for row in rows])


def open_table(path: Path, shape: Sequence[int]) -> Dataset:
    """A CSV of numbers and a label. Raises InvalidArgument as `read_table`."""
    values, labels = read_table(path, shape)
    return Dataset(labels, lambda rows: Tensors(values[rows]), unit="samples")


def open_texts(path: Path) -> Dataset:
    """Texts and their labels. Raises InvalidArgument as `read_texts`."""
    texts, labels = read_texts(path)
    return Dataset(labels, lambda rows: Texts([texts[row] for row in rows]), unit="texts")


def _is_header(row: list[str]) -> bool:
    return len(row) == 2 and all(cell.strip().lower() in names for cell, names in zip(row, _HEADERS, strict=True))


def _open_npz(path: Path, modality: Modality) -> Dataset:
    try:
        with np.load(path, allow_pickle=False) as archive:
            named = {_ALIASES.get(name, name): name for name in archive.files}
            arrays = {name: archive[each] for name, each in named.items() if name in (*_SAMPLES, *_LABELS)}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise _wrong(f"{path} cannot be read: {error} (object arrays are pickles and never loaded)") from error
    samples = [name for name in _SAMPLES if name in arrays]
    targets = [name for name in _LABELS if name in arrays]
    if len(samples) != 1 or len(targets) != 1:
        raise _wrong(f"{path} has {sorted(arrays)}; one of images, x, features and one of labels, y is needed")
    array, labels = arrays[samples[0]], _label_names(arrays[targets[0]])
    if len(array) != len(labels):
        raise _wrong(f"{path} has {len(array)} samples and {len(labels)} labels")
    if modality == "tensor" and samples[0] == "x":
        if array.dtype.kind not in "fiu":
            raise _wrong(f"x is {array.dtype}; numbers are needed")
        return Dataset(labels, lambda rows: Tensors(array[rows].astype(np.float32)), unit="samples")
    is_features = samples[0] == "features" or (samples[0] == "x" and array.dtype == np.float32 and array.ndim == 2)
    if is_features:
        return Dataset(labels, lambda rows: Features(array[rows]), is_features=True, unit="features")
    return Dataset(labels, lambda rows: array[rows])


def _label_names(array: npt.NDArray[np.generic]) -> list[str]:
    if array.ndim != 1 or array.dtype.kind not in "Uiu":
        raise _wrong(f"labels is {array.dtype}{list(array.shape)}; one text or whole number a sample is needed")
    return [str(label) for label in array]


def _wrong(message: str) -> InvalidArgument:
    return InvalidArgument(message, field="PATH")
