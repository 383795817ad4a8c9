"""`apply plan diff lock schema`: what a model should be."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from everlearn_client import errors
from everlearn_client.cli import exit_codes
from everlearn_client.cli.connection import (
    DEFAULT_SERVER,
    FileOption,
    ServerOption,
    connect,
    read_declaration,
    write_file,
)
from everlearn_client.cli.output import Output, OutputOption, ask, plain, put, put_data, put_table, say, stderr, stdout
from everlearn_client.errors import InvalidArgument
from everlearn_client.results import Applied
from everlearn_protos.v1 import models_pb2


def plan(
    ctx: typer.Context,
    file: FileOption,
    server: ServerOption = DEFAULT_SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what applying FILE would change, cost and delete. Exit code 2 if anything would change."""
    with connect(ctx, server) as client:
        planned = client.models.plan(read_declaration(file))
    if output is Output.TABLE:
        _show(planned)
    else:
        put_data(plain(planned), output)
    raise typer.Exit(exit_codes.OK if planned.action == "none" else exit_codes.CHANGES)


def diff(
    ctx: typer.Context,
    file: FileOption,
    server: ServerOption = DEFAULT_SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Compare FILE, defaults filled in, with what is in force. Exit code 1 if they differ."""
    with connect(ctx, server) as client:
        wanted = client.models.plan(read_declaration(file)).declaration
        name = str(yaml.safe_load(wanted)["metadata"]["name"])
        try:
            live = client.models.get(name).declaration
        except errors.NotFound:
            live = ""
    lines = list(difflib.unified_diff(_normal(live), _normal(wanted), f"server: {name}", f"file: {file}", lineterm=""))
    if output is Output.TABLE:
        _put_diff(lines)
    else:
        put_data({"name": f"models/{name}", "different": bool(lines), "diff": lines}, output)
    raise typer.Exit(exit_codes.DIFFERENT if lines else exit_codes.OK)


def apply(
    ctx: typer.Context,
    file: FileOption,
    server: ServerOption = DEFAULT_SERVER,
    output: OutputOption = Output.TABLE,
    plan_id: Annotated[str, typer.Option("--plan", metavar="ID", help="Refuse unless this is still the plan.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only plan.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before replacing or deleting.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Agree to start with an empty memory.")] = False,
    allow_loosen_retention: Annotated[
        bool, typer.Option("--allow-loosen-retention", help="Agree to keep more than before.")
    ] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait for the backbone.")] = False,
) -> None:
    """Make it so: plan, ask before anything is replaced or deleted, apply exactly that plan, show its progress."""
    declaration = read_declaration(file)
    with connect(ctx, server) as client:
        planned = client.models.plan(declaration)
        if output is Output.TABLE:
            _show(planned)
        replaces = any(getattr(change, "class") == models_pb2.Change.REPLACE for change in planned.changes)
        if not dry_run and not plan_id and (replaces or planned.deletions) and not (yes or (replace and replaces)):
            what = "what the model has learned" if replaces else "what is listed above"
            ask(f"This deletes {what}. Go on?", consent="--replace" if replaces else "--yes")
            replace = replaces
        with _PreparationDisplay() as display:
            applied = client.models.apply(
                declaration,
                dry_run=dry_run,
                plan_id=plan_id or planned.id,
                allow_replace=replace or (yes and replaces),
                allow_loosen_retention=allow_loosen_retention,
                wait=not no_wait,
                progress=display.update,
            )
    _show_applied(applied, output, dry_run=dry_run)


def lock(
    ctx: typer.Context,
    file: FileOption,
    server: ServerOption = DEFAULT_SERVER,
    output: OutputOption = Output.TABLE,
    in_place: Annotated[bool, typer.Option("--in-place", "-i", help="Write it to FILE instead.")] = False,
) -> None:
    """Print FILE with its moving references (branch, tag) resolved to commits and digests."""
    if in_place and file == "-":
        raise InvalidArgument("--in-place needs a file: stdin cannot be written back", field="--in-place")
    with connect(ctx, server) as client:
        locked = client.models.lock(read_declaration(file))
    if in_place:
        write_file(Path(file), locked.declaration.rstrip() + "\n")
    if output is not Output.TABLE:
        put_data(plain(locked), output)
    elif not in_place:
        put(locked.declaration.rstrip())
    for key, value in sorted(locked.lock.items()):
        say(f"locked {key} = {value}")


def schema(ctx: typer.Context, server: ServerOption = DEFAULT_SERVER) -> None:
    """Print the JSON Schema of a declaration, for editors."""
    with connect(ctx, server) as client:
        put(json.dumps(json.loads(client.info().declaration_schema), indent=2))


class _PreparationDisplay:
    """Progress of a backbone on its way; a line for each stage where stderr is no terminal."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn(), console=stderr()
        )
        self._task: TaskID | None = None
        self._stage = ""

    def __enter__(self) -> _PreparationDisplay:
        if self._progress.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress.console.is_terminal:
            self._progress.stop()

    def update(self, step: models_pb2.ApplyProgress) -> None:
        if not self._progress.console.is_terminal:
            if step.stage and step.stage != self._stage:
                say(f"{step.model}: {step.stage}")
        elif self._task is None:
            self._task = self._progress.add_task(step.stage, total=step.bytes_total or None)
        else:
            total = step.bytes_total or None
            self._progress.update(self._task, description=step.stage, completed=step.bytes_done, total=total)
        self._stage = step.stage


_SIGN = {"LIVE": "~", "REVISION": "~", "REPLACE": "-/+", "RETENTION": "~", "IMMUTABLE": "!"}


def _show(planned: models_pb2.Plan) -> None:
    if planned.action == "none":
        put("no changes")
        return
    rows = []
    for change in planned.changes:
        kind = models_pb2.Change.Class.Name(getattr(change, "class"))
        rows.append((_SIGN.get(kind, "?"), kind.lower(), change.field, change.before, change.after, change.note))
    put(f"{planned.action} (plan {planned.id})")
    if rows:
        put_table(("", "class", "field", "before", "after", "note"), rows)
    for download in planned.downloads:
        size = f"{download.size_bytes / 1e6:.1f} MB" if download.size_bytes else "size unknown"
        put(f"downloads {download.source}, {'already here' if download.cached else size}")
    for kind, amount in sorted(planned.cost.items()):
        put(f"costs {kind} {amount:g}")
    for deletion in planned.deletions:
        put(f"DELETES {deletion}")
    for line in planned.recipe if planned.action != "none" else ():
        put(f"  {line}")
    for warning in planned.warnings:
        say(f"warning: {warning}", style="yellow")


def _put_diff(lines: list[str]) -> None:
    console = stdout()
    for line in lines:
        style = "green" if line.startswith("+") else "red" if line.startswith("-") else ""
        console.print(line, style=style, markup=False, soft_wrap=True)


def _show_applied(applied: Applied, output: Output, *, dry_run: bool) -> None:
    if output is not Output.TABLE:
        model = None if applied.model is None else plain(applied.model)
        put_data({"plan": plain(applied.plan), "model": model}, output)
    elif dry_run:
        put("dry run: nothing was changed")
    elif applied.operation is not None:
        put(f"applied; {applied.operation.name} goes on")
    elif applied.model is not None and applied.plan.action != "none":
        state = models_pb2.ModelStatus.State.Name(applied.model.status.state).lower()
        put(f"{applied.model.name} is {state} (generation {applied.model.generation})")


def _normal(declaration: str) -> list[str]:
    return yaml.safe_dump(yaml.safe_load(declaration), sort_keys=False).splitlines() if declaration else []
