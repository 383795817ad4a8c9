"""How results reach people and programs: data on stdout, everything else on stderr, colour only on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer
import yaml
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table

from everlearn_client.errors import EverlearnClientError, FailedPrecondition


class Output(StrEnum):
    """Form of the data on stdout."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="Form of the data on stdout.")]


def stdout() -> Console:
    """Where data goes."""
    return Console(highlight=False)


def stderr() -> Console:
    """Where progress, questions and errors go."""
    return Console(stderr=True, highlight=False)


def say(text: str, *, style: str = "") -> None:
    """A line for people, on stderr."""
    stderr().print(text, style=style, markup=False, soft_wrap=True)


def put(text: str) -> None:
    """Text for programs, on stdout, as it is."""
    stdout().out(text, highlight=False)


def put_data(value: object, form: Output) -> None:
    """A value as JSON or YAML."""
    if form is Output.JSON:
        put(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        put(yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip())


def put_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows for people; in a pipe plain columns that are never cut off."""
    texts = [[str(cell) for cell in row] for row in rows]
    console = stdout()
    if console.is_terminal:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in texts:
            table.add_row(*[cell.replace("[", "\\[") for cell in row])
        console.print(table)
        return
    widths = [max(len(line[i]) for line in [list(columns), *texts]) for i in range(len(columns))]
    for line in [[column.upper() for column in columns], *texts]:
        put("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def put_fields(fields: Mapping[str, object]) -> None:
    """Name and value, one a line."""
    width = max(map(len, fields), default=0) + 2
    for name, value in fields.items():
        put(f"{name + ':':<{width}}{value}")


def plain(value: Any) -> Any:
    """A message as dicts, lists and scalars. Unlike protobuf's own JSON, int64 stay numbers and defaults are shown."""
    if isinstance(value, Timestamp):
        return value.ToJsonString()
    if isinstance(value, Message):
        return {f.name: _field(value, f) for f in value.DESCRIPTOR.fields if _is_set(value, f)}
    if isinstance(value, Mapping):
        return {key: plain(value[key]) for key in sorted(value)}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [plain(item) for item in value]
    return value


def report(error: EverlearnClientError) -> None:
    """One clear line on stderr, and what is known besides."""
    where = f" ({error.field})" if error.field and error.field not in error.message else ""
    say(f"error: {error.message}{where}", style="red")
    for note in getattr(error, "__notes__", ()):
        say(f"  {note}")


def ask(question: str, *, consent: str) -> None:
    """Goes on after a yes. Raises FailedPrecondition after a no, and where nobody is there to ask."""
    if not _somebody_is_there():
        raise FailedPrecondition(f"{question} Nobody is there to ask: give {consent}", reason="NEEDS_CONSENT")
    if not typer.confirm(question, err=True):
        raise FailedPrecondition("declined; nothing was changed", reason="NEEDS_CONSENT")


def _somebody_is_there() -> bool:
    return sys.stdin.isatty()


def _is_set(message: Message, field: Any) -> bool:
    return not field.has_presence or bool(message.HasField(field.name))


def _field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.enum_type is not None and isinstance(value, int):
        return field.enum_type.values_by_number[value].name if value in field.enum_type.values_by_number else value
    return plain(value)
