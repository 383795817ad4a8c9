"""Texts on disk, with labels for learning and without for predicting: .csv, .json, .jsonl, or .txt files.

text,label                    {"text": "it rains", "label": "weather"}          weather/rain.txt
it rains,weather              {"text": "two to one", "label": "sport"}          sport/final.txt
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from everlearn_client.cli.tables import LABEL_COLUMNS
from everlearn_client.errors import InvalidArgument

TEXT_COLUMNS = ("text", "sentence", "content", "x")
"""Names, in any case, of the column or key that holds the text; without a header it is the first."""
SUFFIXES = (".csv", ".json", ".jsonl")
"""Of files that hold many texts; a .txt file is one."""


def read_texts(path: Path) -> tuple[list[str], list[str]]:
    """Texts and a label for each. Raises InvalidArgument, naming the line, for a text without a label."""
    if path.is_dir():
        return _folder(path)
    texts: list[str] = []
    labels: list[str] = []
    for where, text, label in _rows(path):
        if not label:
            raise _wrong(f"{where}: there is no label; each text needs one")
        texts.append(text)
        labels.append(label)
    return texts, labels


def read_unlabelled_texts(path: Path) -> list[tuple[str, str]]:
    """What to call each text, and the text. Labels are left out. Raises InvalidArgument."""
    if path.suffix.lower() == ".txt":
        return [(str(path), _read(path))]
    return [(f"{path}:{number}", text) for number, (_, text, _) in enumerate(_rows(path), start=1)]


def _folder(folder: Path) -> tuple[list[str], list[str]]:
    subfolders = sorted(child for child in folder.iterdir() if child.is_dir() and child.name[0] != ".")
    files = [(file, each.name) for each in subfolders for file in sorted(each.rglob("*.txt")) if file.is_file()]
    if not files:
        raise _wrong(f"{folder} has no texts: one subfolder a class is needed, with .txt files in it")
    return [_read(file) for file, _ in files], [label for _, label in files]


def _rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """Where it stands, the text, and its label; empty where it has none."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise _wrong(f"{path} holds no texts; give a .csv, .json or .jsonl with text and label, or .txt files")
    rows = list(_csv(path) if suffix == ".csv" else _objects(path))
    if not rows:
        raise _wrong(f"{path} has no texts")
    yield from rows


def _csv(path: Path) -> Iterator[tuple[str, str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle)
            lines = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise _wrong(f"{path} is not a CSV in UTF-8: {error}") from error
    names = [cell.strip().lower() for cell in lines[0][1]] if lines else []
    text_at, label_at = _first(names, TEXT_COLUMNS), _first(names, LABEL_COLUMNS)
    if text_at is None:
        text_at, label_at = 0, 1 if len(names) == 2 else None
        if len(names) > 2:
            raise _wrong(f"{path} has {len(names)} columns; name them in the first line: text and label")
    else:
        del lines[0]
    for number, cells in lines:
        if len(cells) != len(names):
            raise _wrong(f"{path}, line {number}: {len(cells)} columns, not {len(names)}; quote a text with commas")
        yield f"{path}, line {number}", cells[text_at], "" if label_at is None else cells[label_at].strip()


def _first(names: list[str], wanted: tuple[str, ...]) -> int | None:
    return next((index for index, name in enumerate(names) if name in wanted), None)


def _objects(path: Path) -> Iterator[tuple[str, str, str]]:
    text = _read(path)
    lines = text.splitlines() if path.suffix.lower() == ".jsonl" else [text]
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            told: Any = json.loads(line)
        except ValueError as error:
            raise _wrong(f"{path}, line {number} is not JSON: {error}") from None
        for index, item in enumerate(told if isinstance(told, list) else [told], start=1):
            where = f"{path}, {'line' if len(lines) > 1 else 'entry'} {number if len(lines) > 1 else index}"
            yield where, *_entry(item, where)


def _entry(item: Any, where: str) -> tuple[str, str]:
    if isinstance(item, str):
        return item, ""
    named = {str(key).lower(): value for key, value in item.items()} if isinstance(item, dict) else {}
    texts = [named[name] for name in TEXT_COLUMNS if isinstance(named.get(name), str)]
    labels = [named[name] for name in LABEL_COLUMNS if isinstance(named.get(name), (str, int))]
    if len(texts) != 1 or len(labels) > 1:
        raise _wrong(f'{where}: an object such as {{"text": "it rains", "label": "weather"}} is needed')
    return texts[0], str(labels[0]).strip() if labels else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(f"{path} cannot be read as UTF-8: {error}") from error


def _wrong(message: str) -> InvalidArgument:
    return InvalidArgument(message, field="PATH")
