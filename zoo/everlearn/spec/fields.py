"""The fields of a declaration by their paths: `spec.input.size` and so on, in the order of declaration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from pydantic.fields import FieldInfo

from everlearn.spec.model import Model
from everlearn.spec.strict import Strict

UNDECLARED = ("status",)
"""Top-level fields that the server writes."""

MAX_KEY = 100
"""Characters of a user's key that a path shows."""


def join(path: str, key: str | int) -> str:
    """The path of a key or an index under a path.

    >>> join(join("spec", "labels"), 2)
    'spec.labels[2]'
    """
    if isinstance(key, int):
        return f"{path}[{key}]"
    key = key if key.isprintable() and len(key) <= MAX_KEY else repr(key[:MAX_KEY])
    return f"{path}.{key}" if path else key


def section_of(field: FieldInfo) -> type[Strict] | None:
    """The class of a field that has fields of its own, None for a leaf."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Strict) else None


def part_of(field: FieldInfo) -> type[Strict] | None:
    """The class of a field that has fields of its own, one that may be left out too; None for others."""
    kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)]
    if section_of(field) is not None or len(kinds) != 1:
        return section_of(field)
    return kinds[0] if isinstance(kinds[0], type) and issubclass(kinds[0], Strict) else None


def parts(section: type[Strict] = Model, path: str = "") -> Iterator[tuple[str, type[Strict]]]:
    """As `sections`, those that may be left out too."""
    yield path, section
    for name, field in section.model_fields.items():
        below = part_of(field)
        if below is not None:
            yield from parts(below, join(path, name))


def sections(section: type[Strict] = Model, path: str = "") -> Iterator[tuple[str, type[Strict]]]:
    """(path, class) of each mapping of a declaration, the declaration itself (path "") first."""
    yield path, section
    for name, field in section.model_fields.items():
        below = section_of(field)
        if below is not None:
            yield from sections(below, join(path, name))


def leaf_fields(section: type[Strict] = Model, path: str = "") -> dict[str, FieldInfo]:
    """path -> field, of each field that a user may declare and that has none below it."""
    leaves: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        at, below = join(path, name), section_of(field)
        if below is not None:
            leaves |= leaf_fields(below, at)
        elif at not in UNDECLARED:
            leaves[at] = field
    return leaves


def leaf_values(model: Model) -> dict[str, object]:
    """path -> value, of each leaf; parts in a list, or that may be left out, as plain mappings."""
    values: dict[str, object] = {}
    for path in leaf_fields():
        value: object = model
        for name in path.split("."):
            value = getattr(value, name)
        values[path] = _plain(value)
    return values


def _plain(value: object) -> object:
    if isinstance(value, Strict):
        return value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return value
