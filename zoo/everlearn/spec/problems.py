"""pydantic's errors -> one sentence a field: its path, what is wrong, what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from everlearn.spec import rules
from everlearn.spec.document import READ_AS, Document, Written, is_plain_number
from everlearn.spec.fields import UNDECLARED, join, leaf_fields, part_of, parts, sections
from everlearn.spec.model import Model
from everlearn.spec.strict import Strict

Problem = tuple[str, str]

_PATTERNS = {
    rules.NAME: "must be 1 to 63 of a-z, 0-9, '.', '_', '-', beginning with a letter or digit",
    rules.HEX64: "must be the 64 lower-case hex digits of a sha256",
}
_EXPECTED = {
    "string_type": "a string",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}


def explain(error: ValidationError, document: Document) -> list[Problem]:
    """One problem a field, in the order of declaration."""
    by_leaf: dict[str, list[tuple[str, ErrorDetails]]] = {}
    for detail in error.errors(include_url=False):
        leaf, path = _paths(detail["loc"])
        by_leaf.setdefault(leaf if _is_union(leaf) else path, []).append((path, detail))
    return [_problem(details, document) for details in by_leaf.values()]


def odd_numbers(document: Document, but: Iterable[str]) -> list[Problem]:
    """Numbers that YAML 1.1 reads otherwise than a person does: 0224 is octal, 1:30 is base 60."""
    known = set(but)
    return [
        (path, f"write {written.text} as a decimal number; YAML 1.1 reads it in another base{_line(written.line)}")
        for path, written in document.written.items()
        if written.kind in ("int", "float") and path not in known and not is_plain_number(written)
    ]


def _paths(location: tuple[int | str, ...]) -> tuple[str, str]:
    """(path of the leaf field, path of the part in it): pydantic's location without its names of union branches."""
    section: type[Strict] | None = Model
    leaf = path = ""
    for part in location:
        if section is not None:
            leaf = path = join(path, str(part))
            field = section.model_fields.get(str(part))
            section = part_of(field) if field else None
        elif isinstance(part, int) or (leaf == "metadata.labels" and part != "[key]"):
            path = join(path, part)
    return leaf, path


def _is_union(leaf: str) -> bool:
    return leaf in ("spec.input.size", "spec.head.regularization")


def _problem(details: list[tuple[str, ErrorDetails]], document: Document) -> Problem:
    # Of a union's branches, what went furthest is what was meant: an item of a list, then a limit, then a type.
    deepest = max(len(path) for path, _ in details)
    details = [(path, detail) for path, detail in details if len(path) == deepest]
    details = [(path, detail) for path, detail in details if not _is_mismatch(detail)] or details
    path, detail = details[0]
    if detail["type"] == "missing" and path.endswith("]"):
        path = path[: path.rindex("[")]
    message = _message(path, [detail for _, detail in details], document.written.get(path))
    return path, message + _line(document.lines.get(path))


def _is_mismatch(detail: ErrorDetails) -> bool:
    return detail["type"] in _EXPECTED or detail["type"] == "literal_error"


def _message(path: str, details: list[ErrorDetails], written: Written | None) -> str:
    detail = details[0]
    if all(_is_mismatch(each) for each in details):
        return _mismatch(path, details, written)
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(path)
    if kind == "missing":
        return _missing(path)
    if kind == "value_error":
        return str(context["error"])
    if kind == "string_pattern_mismatch":
        return f"{_PATTERNS.get(context['pattern'], detail['msg'])}, not {_shown(detail['input'])}"
    if kind == "too_long":
        return f"has {context['actual_length']} items; at most {context['max_length']}"
    return detail["msg"].replace("Input should be", "must be") + f", not {_shown(detail['input'])}"


def _mismatch(path: str, details: list[ErrorDetails], written: Written | None) -> str:
    value, allowed, expected = details[0]["input"], [], []
    for detail in details:
        if detail["type"] == "literal_error":
            allowed = [name.strip("'") for name in detail["ctx"]["expected"].replace(" or ", ", ").split(", ")]
            expected.append(("one of " if len(allowed) > 1 else "") + ", ".join(allowed))
        else:
            expected.append(_EXPECTED[detail["type"]])
    message = f"must be {' or '.join(dict.fromkeys(expected))}, not {_shown(value)}"
    if "a mapping" in expected and value is None:
        return "is empty; leave it out, or write its keys"
    if isinstance(value, str):
        near = difflib.get_close_matches(value, allowed, n=1)
        return message + (f"; did you mean {near[0]!r}?" if near else "") + _number_hint(value, expected, written)
    wants_text = allowed or "a string" in expected
    if wants_text and written and written.plain and written.kind in READ_AS:
        text = written.text[:60]
        return f'must be a string, and YAML reads {text or "nothing"} as {READ_AS[written.kind]}; quote it: "{text}"'
    return message


def _number_hint(value: str, expected: list[str], written: Written | None) -> str:
    if not any("number" in phrase for phrase in expected):
        return ""
    try:
        number = float(value)
    except ValueError:
        return ""
    if written is not None and written.plain:
        return f"; YAML reads {value} as text, write {_yaml_number(number)}"
    return "; write it without quotes"


def _yaml_number(number: float) -> str:
    text = repr(number)
    return text.replace("e", ".0e") if "e" in text and "." not in text else text


def _unknown_key(path: str) -> str:
    # The innermost section around it, not what stands before the last dot: a wrong key may contain dots.
    parent, section = [(at, each) for at, each in parts() if not at or path.startswith(at + ".")][-1]
    key = path.removeprefix(parent).removeprefix(".")
    known = [name for name in section.model_fields if join(parent, name) not in UNDECLARED]
    if near := difflib.get_close_matches(key.lower().replace("-", "_"), known, n=1):
        return f"unknown key; did you mean {near[0]!r}?"
    elsewhere = [other for other in (*dict(sections()), *leaf_fields()) if other.rpartition(".")[2] == key]
    if elsewhere:
        return f"unknown key here; it belongs at {' or '.join(elsewhere)}"
    return f"unknown key; known: {', '.join(known)}"


def _missing(path: str) -> str:
    if path in ("spec.input.mean", "spec.input.std"):
        return "has too few items; one number for each of red, green, blue"
    if path == "spec.input.size":
        return "has too few items; write a square's side, or [height, width]"
    parent, _, name = path.rpartition(".")
    section = next(section for at, section in parts() if at == parent)
    return f"is missing: {section.model_fields[name].description}"


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, tuple):
        return "a list"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _line(line: int | None) -> str:
    return f" (line {line})" if line else ""
