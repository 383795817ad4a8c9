"""Samples on disk with several labels each, or with values: a CSV with a header, JSON lines, or an .npz.

Of a CSV the header tells the columns apart: outputs of a regression by their declared names, labels by `label`, `tag`
or `class`, with a number behind where there are several (`label_1,label_2`), empty where a sample has fewer. What is
left is the sample: one column `path` or `text` or, for tensors, the numbers in their order.

A line of JSON is {"path": ...}, {"text": ...} or {"x": [...]} with "labels": [...] or "values": {output: number}.

Of an .npz: images, x or features; and y, floats [N, K] in the order of the outputs, or zeros and ones [N, C] with the
labels' `names` [C].
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from everlearn_client.cli.datasets import Dataset
from everlearn_client.cli.texts import TEXT_COLUMNS
from everlearn_client.errors import InvalidArgument
from everlearn_client.samples import Features, Tensors, Texts
from everlearn_protos.v1 import models_pb2

_LABELS = re.compile(r"(label|tag|class)s?[ _-]?[0-9]*", re.IGNORECASE)
_PATHS = ("path", "file", "filename", "image")
MULTILABEL = "multilabel"


def open_targets(path: Path, contract: models_pb2.InputContract) -> Dataset:
    """What a multilabel or regression model learns from a file. Raises InvalidArgument."""
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return _open_csv(path, contract)
    if suffix in (".jsonl", ".ndjson"):
        return _open_lines(path, contract)
    if suffix == ".npz":
        return _open_npz(path, contract)
    raise _wrong(f"{path} is no .csv with a header, .jsonl or .npz; the model's task is {contract.task}")


def _open_csv(path: Path, contract: models_pb2.InputContract) -> Dataset:
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle)
            lines = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise _wrong(f"{path} is not a CSV in UTF-8: {error}") from error
    if len(lines) < 2:
        raise _wrong(f"{path} has no rows below its header")
    header = [name.strip() for name in lines[0][1]]
    targets = _target_columns(path, header, contract)
    others = [column for column in range(len(header)) if column not in targets]
    truth: list[Any] = []
    samples: list[Any] = []
    for line, row in lines[1:]:
        if len(row) != len(header):
            raise _wrong(f"{path}, line {line}: {len(row)} columns; the header has {len(header)}")
        where = f"{path}, line {line}"
        cells = [row[column].strip() for column in targets]
        if contract.task == MULTILABEL:
            truth.append(_distinct([cell for cell in cells if cell], where))
        else:
            truth.append([_number(cell, where) for cell in cells])
        samples.append([row[column].strip() for column in others])
    if contract.modality == "tensor":
        values = [
            [_number(cell, f"{path}, line {line}") for cell in cells]
            for (line, _), cells in zip(lines[1:], samples, strict=True)
        ]
        return _of_tensors(path, values, truth, contract.shape)
    wanted = TEXT_COLUMNS if contract.modality == "text" else _PATHS
    if len(others) != 1 or header[others[0]].lower() not in wanted:
        raise _wrong(
            f"{path} has columns {', '.join(header)[:200]}; besides labels or outputs, one named {wanted[0]} is needed"
        )
    if contract.modality == "text":
        return _of_texts([cells[0] for cells in samples], truth)
    return _of_paths(path, [cells[0] for cells in samples], truth)


def _target_columns(path: Path, header: Sequence[str], contract: models_pb2.InputContract) -> list[int]:
    if contract.task == MULTILABEL:
        found = [column for column, name in enumerate(header) if _LABELS.fullmatch(name)]
        if not found:
            raise _wrong(
                f"{path} has columns {', '.join(header)[:200]}; labels must be in columns named label_1, label_2 .."
            )
        return found
    missing = [output.name for output in contract.outputs if header.count(output.name) != 1]
    if missing:
        raise _wrong(f"{path} has columns {', '.join(header)[:200]}; one must be named {missing[0]}, as the output is")
    return [header.index(output.name) for output in contract.outputs]


def _open_lines(path: Path, contract: models_pb2.InputContract) -> Dataset:
    key = {"tensor": "x", "text": "text"}.get(contract.modality, "path")
    samples: list[Any] = []
    truth: list[Any] = []
    with path.open(encoding="utf-8-sig") as handle:
        for number, text in enumerate(handle, start=1):
            if not text.strip():
                continue
            where = f"{path}, line {number}"
            try:
                found = json.loads(text)
            except ValueError as error:
                raise _wrong(f"{where} is not JSON: {error}") from error
            if not isinstance(found, dict) or key not in found:
                raise _wrong(f'{where} must be an object with "{key}"')
            samples.append(found[key])
            truth.append(_truth_of_line(found, where, contract))
    if not samples:
        raise _wrong(f"{path} has no lines")
    if key == "x":
        return _of_tensors(path, samples, truth, contract.shape)
    if key == "text":
        return _of_texts([str(sample) for sample in samples], truth)
    return _of_paths(path, [str(sample) for sample in samples], truth)


def _truth_of_line(found: dict[str, Any], where: str, contract: models_pb2.InputContract) -> list[Any]:
    if contract.task == MULTILABEL:
        labels = found.get("labels")
        if not isinstance(labels, list) or not all(isinstance(label, str) and label for label in labels):
            raise _wrong(f'{where} needs "labels": a list of names, which may be empty')
        return _distinct(labels, where)
    values = found.get("values")
    names = [output.name for output in contract.outputs]
    if not isinstance(values, dict) or sorted(values) != sorted(names):
        raise _wrong(f'{where} needs "values": an object with {", ".join(names)}')
    return [_number(values[name], where) for name in names]


def _open_npz(path: Path, contract: models_pb2.InputContract) -> Dataset:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name.lower(): archive[name] for name in archive.files}
    except (ValueError, OSError) as error:
        raise _wrong(f"{path} cannot be read: {error} (object arrays are pickles and never loaded)") from error
    samples = [name for name in ("images", "x", "features") if name in arrays]
    if len(samples) != 1 or "y" not in arrays:
        raise _wrong(f"{path} has {sorted(arrays)}; y and one of images, x, features are needed")
    array, truth = arrays[samples[0]], _truth_of_array(path, arrays, contract)
    if len(array) != len(truth):
        raise _wrong(f"{path} has {len(array)} samples and {len(truth)} rows of y")
    if samples[0] == "features":
        return Dataset(truth, lambda rows: Features(array[rows]), is_features=True, unit="features")
    if contract.modality == "tensor":
        return Dataset(truth, lambda rows: Tensors(array[rows].astype(np.float32)), unit="samples")
    return Dataset(truth, lambda rows: array[rows])


def _truth_of_array(path: Path, arrays: dict[str, npt.NDArray[Any]], contract: models_pb2.InputContract) -> list[Any]:
    y = arrays["y"]
    if contract.task != MULTILABEL:
        y = y.reshape(len(y), -1)
        if y.dtype.kind not in "fiu" or y.shape[1] != len(contract.outputs):
            raise _wrong(f"{path}: y is {y.dtype}{list(y.shape)}; numbers [N, {len(contract.outputs)}] are needed")
        return [[float(value) for value in row] for row in y]
    names = arrays.get("names")
    if names is None or names.dtype.kind != "U" or y.ndim != 2 or y.shape[1:] != names.shape:
        raise _wrong(f"{path}: y must be zeros and ones [N, C], beside the labels' names [C]")
    if not np.isin(y, (0, 1)).all():
        raise _wrong(f"{path}: y has other numbers than 0 and 1")
    return [[str(names[column]) for column in np.flatnonzero(row)] for row in y]


def _of_tensors(path: Path, values: Sequence[Any], truth: list[Any], shape: Sequence[int]) -> Dataset:
    try:
        array = np.array(values, np.float32)
    except (ValueError, TypeError):
        raise _wrong(f"{path} has samples of different sizes, or of other things than numbers") from None
    if array.size != len(values) * math.prod(shape) or not np.isfinite(array).all():
        raise _wrong(f"{path} has samples of shape {list(array.shape[1:])}; finite numbers of {list(shape)} are needed")
    whole = array.reshape(len(values), *shape)
    return Dataset(truth, lambda rows: Tensors(whole[rows]), unit="samples")


def _of_texts(texts: Sequence[str], truth: list[Any]) -> Dataset:
    return Dataset(truth, lambda rows: Texts([texts[row] for row in rows]), unit="texts")


def _of_paths(path: Path, files: Sequence[str], truth: list[Any]) -> Dataset:
    found = [path.parent / file for file in files]
    return Dataset(truth, lambda rows: [found[row] for row in rows])


def _distinct(labels: list[str], where: str) -> list[str]:
    if len(set(labels)) < len(labels):
        raise _wrong(f"{where}: a label is given twice; once is enough")
    return labels


def _number(cell: object, where: str) -> float:
    try:
        value = float(cell)  # type: ignore[arg-type]  # what is none raises
    except (TypeError, ValueError):
        value = math.nan
    if isinstance(cell, bool) or not math.isfinite(value):
        raise _wrong(f"{where}: {str(cell)[:40]!r} is no finite number")
    return value


def _wrong(message: str) -> InvalidArgument:
    return InvalidArgument(message, field="PATH")
