"""What a device says of itself, `site: north`, and how a declaration chooses devices by it. Labels and their limits are
those of Kubernetes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

MAX_LABELS: Final = 16
"""Of one device; and choices of a selector."""
MAX_CHOICES: Final = 64
"""Values that a selector takes for one key."""
_NAME: Final = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_DOMAIN: Final = r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?"
_KEY: Final = re.compile(rf"(?:{_DOMAIN}/)?{_NAME}")
_VALUE: Final = re.compile(rf"(?:{_NAME})?")
Selector = Mapping[str, tuple[str, ...]]
"""Key -> values, of which a device has one; of every key."""


def problem_of_key(key: str) -> str | None:
    """Why this is no key of a label; None where it is one.

    >>> problem_of_key("example.org/site"), problem_of_key("-site")
    (None, 'must be 1 to 63 letters, digits, "-", "_" or "." that begin and end with a letter or digit')
    """
    return None if _KEY.fullmatch(key) else _unlike("1")


def problem_of_value(value: str) -> str | None:
    """Why this is no value of a label; None where it is one. It may be empty."""
    return None if _VALUE.fullmatch(value) else _unlike("0")


def problem_of(labels: Mapping[str, str]) -> tuple[str, str] | None:
    """The first key that is wrong or has a wrong value, and why; None where a device may say all of this. The key is
    empty where it is none, or there are too many."""
    if len(labels) > MAX_LABELS:
        return "", f"has {len(labels)} labels; at most {MAX_LABELS}"
    for key, value in labels.items():
        if problem := problem_of_key(key):
            return "", f"the key of a label {problem}"
        if problem := problem_of_value(value):
            return key, f"the value {problem}"
    return None


def matches(selector: Selector, labels: Mapping[str, str]) -> bool:
    """Whether a device is chosen: it has every key, with one of its values.

    >>> matches({"site": ("lab", "yard")}, {"site": "yard", "hardware": "pi4"}), matches({"site": ("lab",)}, {})
    (True, False)
    """
    return all(labels.get(key) in values for key, values in selector.items())


def _unlike(least: str) -> str:
    return f'must be {least} to 63 letters, digits, "-", "_" or "." that begin and end with a letter or digit'
