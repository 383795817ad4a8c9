"""Text of one YAML or JSON object -> plain data, safely: bounded in size, depth and aliases, and with no key twice.

Keeps how each YAML value was written, because YAML 1.1 reads `no` as false, `1.10` as 1.1, `0224` as 148 and `3e-4`
as text; an error message can then say what to quote.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from everlearn.errors import SpecError
from everlearn.spec.fields import join

MAX_BYTES = 256 * 1024
MAX_DEPTH = 16
MAX_ALIASES = 64
MAX_NODES = 100_000
"""After aliases are expanded."""

_TAG = "tag:yaml.org,2002:"
_PLAIN_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]*)?(\.[0-9]*)?([eE][-+][0-9]+)?")
READ_AS = {"bool": "a boolean", "int": "a number", "float": "a number", "null": "null", "timestamp": "a date"}
"""What YAML makes of a plain scalar that is not text."""


@dataclass(frozen=True)
class Written:
    """How a YAML scalar stands in the text."""

    text: str
    kind: str
    """`str`, or a key of READ_AS."""
    plain: bool
    """Without quotes."""
    line: int


@dataclass
class Document:
    """A parsed text. `written` and `lines` are empty for JSON."""

    data: object = None
    written: dict[str, Written] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)


def read(text: str) -> Document:
    """Reads one YAML document, or JSON if the text begins with a brace. Lists become tuples.

    Raises SpecError for text that is too large, nested too deeply, or neither YAML nor JSON.
    """
    _check_size(text)
    if text.lstrip("\ufeff \t\r\n").startswith("{"):
        document = _read_json(text)
        if document is not None:
            return document
    return _read_yaml(text)


def compose(text: str) -> yaml.Node | None:
    """The YAML node tree of one document, with positions; None for an empty text. Raises SpecError."""
    _check_size(text)
    try:
        return _BoundedLoader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        place = (
            f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: "
            if error.problem_mark
            else ""
        )
        if error.context == "expected a single document in the stream":
            _refuse(f"{place}a second document begins here; a file declares one model")
        _refuse(f"{place}not YAML: {error.problem or error.context}")
    except yaml.YAMLError as error:
        _refuse(f"not YAML: {str(error).splitlines()[0]}")


def _check_size(text: str) -> None:
    try:
        size = len(text.encode()) if len(text) <= MAX_BYTES else len(text)
    except UnicodeEncodeError:
        _refuse("contains half of a surrogate pair, which is not text")
    if size > MAX_BYTES:
        _refuse(f"is {size} bytes long; a declaration has at most {MAX_BYTES}")


def _refuse(message: str) -> NoReturn:
    raise SpecError(f"the declaration {message}" if message.startswith(("is ", "contains ")) else message)


class _BoundedLoader(yaml.SafeLoader):
    """Composes no tree that is too deep for the stack or that aliases could blow up."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MAX_ALIASES:
                _refuse(f"contains more than {MAX_ALIASES} aliases; write the values out")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            _refuse(f"is nested more than {MAX_DEPTH} deep")
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _read_yaml(text: str) -> Document:
    node = compose(text)
    document = Document()
    if node is not None:
        document.data = _Reader(document).value(node, "", 0)
    return document


class _Reader:
    """Turns nodes into data, noting what is wrong on the way."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.nodes = 0
        self.construct = yaml.SafeLoader("")

    def value(self, node: yaml.Node, path: str, depth: int) -> object:
        self.nodes += 1
        if depth > MAX_DEPTH or self.nodes > MAX_NODES:
            _refuse(f"is nested more than {MAX_DEPTH} deep, or expands to more than {MAX_NODES} values")
        self.document.lines[path] = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self.mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return tuple(self.value(item, join(path, i), depth + 1) for i, item in enumerate(node.value))
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path)
        return self.wrong(path, f"has the tag {node.tag}; plain values only", node)

    def mapping(self, node: yaml.MappingNode, path: str, depth: int) -> dict[str, object]:
        data: dict[str, object] = {}
        for key_node, value_node in node.value:
            text = _checked_text(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
            kind = key_node.tag.removeprefix(_TAG)
            below = join(path, text)
            if kind == "merge":
                self.wrong(below, "merge keys are not taken; write the keys out", key_node)
            elif kind in READ_AS:
                self.wrong(below, f'YAML reads the key {text} as {READ_AS[kind]}; quote it: "{text}"', key_node)
            elif kind != "str":
                self.wrong(below, "a key must be text", key_node)
            elif text in data:
                self.wrong(below, "given twice; once is enough", key_node)
            else:
                data[text] = self.value(value_node, below, depth + 1)
                self.document.lines[below] = key_node.start_mark.line + 1
        return data

    def scalar(self, node: yaml.ScalarNode, path: str) -> object:
        kind = "str" if node.tag == _TAG + "value" else node.tag.removeprefix(_TAG)
        line = node.start_mark.line + 1
        self.document.written[path] = Written(text=node.value, kind=kind, plain=node.style is None, line=line)
        if kind == "str":
            return _checked_text(node.value)
        if kind not in READ_AS:
            return self.wrong(path, f"has the tag {node.tag}; plain values only", node)
        try:
            value: object = self.construct.construct_object(node)
        except (ValueError, OverflowError):
            return self.wrong(path, f"YAML cannot read {node.value[:40]} as {READ_AS[kind]}; quote it", node)
        return value

    def wrong(self, path: str, message: str, node: yaml.Node) -> object:
        self.document.problems.append((path, f"{message} (line {node.start_mark.line + 1})"))
        return None


def is_plain_number(written: Written) -> bool:
    """Whether a number is written in decimals, and not as octal, hexadecimal, base 60 or with underscores."""
    return _PLAIN_NUMBER.fullmatch(written.text) is not None


def _read_json(text: str) -> Document | None:
    """None if the text is no JSON; it may still be a YAML flow mapping."""
    document = Document()
    try:
        data: Any = json.loads(
            text.lstrip("\ufeff"),
            object_pairs_hook=lambda pairs: _without_twins(pairs, document),
            parse_constant=lambda name: _refuse(f"{name} is not a JSON number; write a finite one"),
        )
    except json.JSONDecodeError:
        return None
    except RecursionError:
        _refuse(f"is nested more than {MAX_DEPTH} deep")
    except ValueError:
        _refuse("contains a number with thousands of digits")
    document.data = _tuples(data, 0)
    return document


def _without_twins(pairs: list[tuple[str, Any]], document: Document) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, value in pairs:
        if key in data:
            document.problems.append((_checked_text(key), "given twice; once is enough"))
        data[key] = value
    return data


def _tuples(value: Any, depth: int) -> object:
    if depth > MAX_DEPTH:
        _refuse(f"is nested more than {MAX_DEPTH} deep")
    if isinstance(value, dict):
        return {_checked_text(key): _tuples(below, depth + 1) for key, below in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(item, depth + 1) for item in value)
    return _checked_text(value) if isinstance(value, str) else value


def _checked_text(text: str) -> str:
    r"""Escapes such as "\ud800" can put half a surrogate pair into a string; it could never be sent or stored."""
    try:
        text.encode()
    except UnicodeEncodeError:
        _refuse("contains half of a surrogate pair, which is not text")
    return text
