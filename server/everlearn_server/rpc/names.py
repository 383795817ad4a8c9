"""Resource names (AIP-122): `models/{m}`, `models/{m}/versions/{version}`, `models/{m}/exports/{export}`; paging."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

from everlearn.errors import InvalidError, NotFoundError
from everlearn.export.precision import PRECISIONS, Precision, precision_of
from everlearn.spec.model import NAME

T = TypeVar("T")
NAME_PATTERN = re.compile(NAME)
_DEFAULT_PAGE, _MAX_PAGE = 50, 1000


def model_of(name: str, *, field: str = "name") -> str:
    """`models/{model}` -> `{model}`. Raises InvalidError."""
    collection, _, model = name.partition("/")
    if collection != "models" or not NAME_PATTERN.fullmatch(model):
        raise InvalidError(unlike(name, "models/{model}"), field=field)
    return model


def version_of(name: str, *, field: str = "name") -> tuple[str, str]:
    """`models/{model}[/versions/{version}]` -> model, version (empty where none is named). Raises InvalidError."""
    parts = name.split("/")
    if len(parts) == 2:
        return model_of(name, field=field), ""
    if len(parts) != 4 or parts[2] != "versions" or not NAME_PATTERN.fullmatch(parts[3]):
        raise InvalidError(unlike(name, "models/{model}/versions/{number, stable or latest}"), field=field)
    return model_of("/".join(parts[:2]), field=field), parts[3]


def export_of(name: str, *, field: str = "name") -> tuple[str, int, Precision]:
    """`models/{model}/exports/{number}[-{precision}]` -> model, version number, precision. Raises InvalidError."""
    parts = name.split("/")
    # Digits are counted first: Python refuses to make an int of thousands.
    found = re.fullmatch("([0-9]{1,18})(?:-([a-z0-9]{1,8}))?", parts[3]) if len(parts) == 4 else None
    if found is None or parts[2] != "exports" or found[2] not in (None, *PRECISIONS[1:]):
        raise InvalidError(unlike(name, "models/{model}/exports/{version number}[-{precision}]"), field=field)
    return model_of("/".join(parts[:2]), field=field), int(found[1]), precision_of(found[2] or "")


def unlike(name: str, form: str) -> str:
    """What is wrong with a name, without it: what is no name may be anything, a payload's bytes too, and the text of
    an error lies in memory until the next call comes.

    >>> unlike("Camera 7", "a name")
    '8 characters that are not a name'
    """
    return f"{len(name)} characters that are not {form}"


def page(items: Sequence[T], page_size: int, page_token: str) -> tuple[Sequence[T], str]:
    """One page and the token of the next (AIP-158). Raises InvalidError for a negative size or a foreign token."""
    if page_size < 0:
        raise InvalidError(f"{page_size} is negative; 0 means {_DEFAULT_PAGE}", field="page_size")
    size = min(page_size or _DEFAULT_PAGE, _MAX_PAGE)
    if page_token and not (page_token.isascii() and page_token.isdigit() and len(page_token) < 12):
        raise InvalidError("not a token of this server; leave it empty for the first page", field="page_token")
    start = int(page_token or 0)
    if start > len(items):
        raise NotFoundError("the page does not exist any more; begin with an empty token", field="page_token")
    end = start + size
    return items[start:end], str(end) if end < len(items) else ""
