"""CSV tables of numbers, with a column of labels for learning and without one for predicting."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from everlearn_client.errors import InvalidArgument

LABEL_COLUMNS = ("label", "class", "target", "y")
"""Names, in any case, of the column that holds the label; without a header it is the last."""


def read_table(path: Path, shape: Sequence[int]) -> tuple[npt.NDArray[np.float32], list[str]]:
    """Values [N, *shape] and a label for each row.

    Raises InvalidArgument, naming the line, where a cell is no number or a row has another count of them than `shape`.
    """
    header, rows = _rows(path)
    named = [index for index, name in enumerate(header or ()) if name.strip().lower() in LABEL_COLUMNS]
    if len(named) > 1 or (header and not named):
        raise _wrong(f"{path} has columns {', '.join(header or ())[:200]}; exactly one must be named label")
    count = math.prod(shape)
    values = np.empty((len(rows), count), np.float32)
    labels: list[str] = []
    for row, (line, cells) in enumerate(rows):
        at = named[0] if named else len(cells) - 1
        if len(cells) != count + 1 or not cells[at].strip():
            raise _wrong(f"{path}, line {line}: {len(cells)} columns; {count} numbers and a label are needed")
        labels.append(cells[at].strip())
        values[row] = _numbers(path, line, cells[:at] + cells[at + 1 :])
    return values.reshape(len(rows), *shape), labels


def read_unlabelled(path: Path, shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """Values [N, *shape]; a column of labels, known by its name, is left out.

    Raises InvalidArgument as `read_table`.
    """
    header, rows = _rows(path)
    left_out = {index for index, name in enumerate(header or ()) if name.strip().lower() in LABEL_COLUMNS}
    count = math.prod(shape)
    values = np.empty((len(rows), count), np.float32)
    for row, (line, cells) in enumerate(rows):
        kept = [cell for index, cell in enumerate(cells) if index not in left_out]
        if len(kept) != count:
            raise _wrong(f"{path}, line {line}: {len(kept)} numbers; {count} are needed")
        values[row] = _numbers(path, line, kept)
    return values.reshape(len(rows), *shape)


def _rows(path: Path) -> tuple[list[str] | None, list[tuple[int, list[str]]]]:
    """The header, where the first line has no number in it, and the other lines with their numbers."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle)
            lines = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise _wrong(f"{path} is not a CSV in UTF-8: {error}") from error
    header = None
    if lines and not any(_is_number(cell) for cell in lines[0][1]):
        header = lines.pop(0)[1]
    if not lines:
        raise _wrong(f"{path} has no rows of numbers")
    return header, lines


def _numbers(path: Path, line: int, cells: list[str]) -> list[float]:
    for cell in cells:
        if not _is_number(cell):
            raise _wrong(f"{path}, line {line}: {cell[:40]!r} is no finite number")
    return [float(cell) for cell in cells]


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _wrong(message: str) -> InvalidArgument:
    return InvalidArgument(message, field="PATH")
