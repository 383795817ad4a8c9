"""`predict` and `export`: asking a model, and taking it along."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from everlearn_client._download import DownloadProgress
from everlearn_client.cli import exit_codes
from everlearn_client.cli.connection import DEFAULT_SERVER, ModelArgument, ServerOption, connect, read_file
from everlearn_client.cli.output import Output, OutputOption, put_data, put_fields, put_table, say, stderr
from everlearn_client.errors import EverlearnClientError
from everlearn_client.results import Predictions


def predict(
    ctx: typer.Context,
    model: ModelArgument,
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", help="Images: JPEG, PNG or WebP.")],
    server: ServerOption = DEFAULT_SERVER,
    output: OutputOption = Output.TABLE,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="Best classes to show.")] = 3,
    version: Annotated[str | None, typer.Option(help="A number, stable or latest; stable if left out.")] = None,
) -> None:
    """Ask MODEL about image files. Exit code 9 if some could not be answered."""
    batches = ([read_file(file)] for file in files)
    with connect(ctx, server) as client:
        answers = list(client.predict_stream(model, batches, version=version, top_k=top))
    failed = [answer for answer in answers if isinstance(answer, EverlearnClientError)]
    if failed and len(failed) == len(answers):
        raise failed[0]
    if output is Output.TABLE:
        _put_answers(files, answers, top)
    else:
        put_data([_plain_answer(f, a) for f, a in zip(files, answers, strict=True)], output)
    for file, answer in zip(files, answers, strict=True):
        if isinstance(answer, EverlearnClientError):
            say(f"{file}: {answer.message} ({answer.field})", style="red")
    raise typer.Exit(exit_codes.PARTLY if failed else exit_codes.OK)


def export(
    ctx: typer.Context,
    model: ModelArgument,
    folder: Annotated[Path, typer.Option("--directory", "-d", metavar="FOLDER", help="Where the files go.")],
    server: ServerOption = DEFAULT_SERVER,
    output: OutputOption = Output.TABLE,
    version: Annotated[str, typer.Option(help="A number, stable or latest.")] = "stable",
) -> None:
    """Take a version along as one ONNX file, checked against the server. An interrupted download is resumed."""
    with connect(ctx, server) as client:
        made = client.export(model, version)
        with _DownloadDisplay() as display:
            paths = client.download(made, folder, on_progress=display.update)
    if output is not Output.TABLE:
        parity = {"max_abs_diff": made.parity_max_abs_diff, "probes": made.probes}
        put_data({"version": made.version, "parity": parity, "files": [str(path) for path in paths]}, output)
        return
    put_fields({"version": made.version, "parity": f"{made.parity_max_abs_diff:.2g} over {made.probes} probes"})
    rows = [(path, file.size_bytes, file.sha256) for path, file in zip(paths, made.files, strict=True)]
    put_table(("file", "bytes", "sha256"), rows)


class _DownloadDisplay:
    """A bar for each file, on a terminal."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=stderr()
        )
        self._live = self._bars.console.is_terminal
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _DownloadDisplay:
        if self._live:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._bars.stop()

    def update(self, step: DownloadProgress) -> None:
        if step.file_name not in self._tasks:
            self._tasks[step.file_name] = self._bars.add_task(step.file_name, total=step.bytes_total)
        self._bars.update(self._tasks[step.file_name], completed=step.bytes_done)


def _put_answers(files: list[Path], answers: list[Predictions | EverlearnClientError], top: int) -> None:
    rows: list[list[object]] = []
    width = max((len(a.top[0]) for a in answers if isinstance(a, Predictions)), default=0)
    for file, answer in zip(files, answers, strict=True):
        best = answer.top[0] if isinstance(answer, Predictions) else ()
        cells: list[object] = [cell for scored in best for cell in (scored.label, f"{scored.score:.4f}")]
        rows.append([file, *cells, *[""] * (2 * width - len(cells))])
    columns = ["file", *[name for rank in range(min(top, width)) for name in (f"top {rank + 1}", "score")]]
    put_table(columns, rows)


def _plain_answer(file: Path, answer: Predictions | EverlearnClientError) -> dict[str, object]:
    if isinstance(answer, EverlearnClientError):
        return {"file": str(file), "error": {"code": answer.code, "field": answer.field, "message": answer.message}}
    top = [{"label": scored.label, "index": scored.index, "score": scored.score} for scored in answer.top[0]]
    return {"file": str(file), "version": answer.version, "top": top}
