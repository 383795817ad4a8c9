"""`label`: what was true of samples that were predicted before."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from everlearn_client._late import Labelled
from everlearn_client.cli import exit_codes
from everlearn_client.cli.connection import DEFAULT_SERVER, ModelArgument, ServerOption, connect
from everlearn_client.cli.output import Output, OutputOption, put_data, put_fields, say
from everlearn_client.errors import InvalidArgument

PairsArgument = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="Ids as `everlearn predict -o json` gives them, and labels: .csv of id,label, or .jsonl of "
        '{"sample_id": ..., "label": ...}, where a label may be a list of labels or of values.',
    ),
]


def label(
    ctx: typer.Context,
    model: ModelArgument,
    file: PairsArgument,
    server: ServerOption = DEFAULT_SERVER,
    output: OutputOption = Output.TABLE,
    name: Annotated[
        str | None, typer.Option("--client", metavar="ID", help="Who says so: a stable identity; random if left out.")
    ] = None,
) -> None:
    """Teach MODEL what was true of samples it predicted, where it declares late_labels. Each counts once. Exit code 9
    if some were refused, such as one whose time was over or one asked about before the server's present start."""
    pairs = read_pairs(file)
    with connect(ctx, server, client_id=name) as client:
        report = client.label(model, pairs)
    if output is Output.TABLE:
        put_fields({"learned": f"{report.learned} labels, durable", "refused": len(report.refused)})
        for each in report.refused:
            say(f"{each.sample_id}: {each.message} ({each.reason})", style="red")
    else:
        refused = [{"sample_id": r.sample_id, "reason": r.reason, "message": r.message} for r in report.refused]
        put_data({"learned": report.learned, "version": report.version, "refused": refused}, output)
    raise typer.Exit(exit_codes.PARTLY if report.refused else exit_codes.OK)


def read_pairs(file: Path) -> list[Labelled]:
    """(id, label) of each line. Raises InvalidArgument that names the line."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{file} cannot be read as text: {type(error).__name__}", field="FILE") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if file.suffix.lower() == ".jsonl":
        return [_of_json(line, number) for number, line in numbered]
    pairs = []
    for number, line in numbered:
        cells = next(csv.reader([line]))
        if len(cells) != 2:
            raise InvalidArgument(f"line {number} has {len(cells)} cells; it must have two: id,label", field="FILE")
        pairs.append((cells[0].strip(), cells[1].strip()))
    return pairs


def _of_json(line: str, number: int) -> Labelled:
    try:
        found: Any = json.loads(line)
        return str(found["sample_id"]), found["label"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        right = '{"sample_id": "...", "label": "..."}'
        raise InvalidArgument(f"line {number} is not of the form {right}", field="FILE") from error
