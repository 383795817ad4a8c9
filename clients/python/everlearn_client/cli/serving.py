"""`predict` and `export`: asking a model, and taking it along."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from everlearn_client._download import DownloadProgress
from everlearn_client.cli import exit_codes
from everlearn_client.cli.connection import DEFAULT_SERVER, ModelArgument, ServerOption, connect, read_file
from everlearn_client.cli.differences import Earlier, write_differences
from everlearn_client.cli.output import Output, OutputOption, put_data, put_fields, put_table, say, stderr
from everlearn_client.cli.tables import read_unlabelled
from everlearn_client.cli.texts import SUFFIXES, read_unlabelled_texts
from everlearn_client.client import Client
from everlearn_client.errors import EverlearnClientError, InvalidArgument
from everlearn_client.results import KeyRotation, Predictions
from everlearn_client.samples import SampleInput, Tensors, Texts

MANIFEST_FILE, SIGNATURE_FILE, KEYS_FILE = "model.manifest.json", "model.manifest.sig", "model.keys.json"
"""Beside an export: what it is, the server's Ed25519 signature of these bytes, 64 of them, and how the key that made it
came from the server's first one."""
_BEST, _ALL_IT_SAYS = 3, 0
"""Classes to show where nobody says how many; 0 is all labels that a sample has, or its values."""


def predict(
    ctx: typer.Context,
    model: ModelArgument,
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILES...", help="JPEG, PNG or WebP; .csv of numbers; .txt, .csv or .json of texts."),
    ],
    server: ServerOption = DEFAULT_SERVER,
    output: OutputOption = Output.TABLE,
    top: Annotated[
        int | None,
        typer.Option("--top", "-k", min=1, help="Best classes to show: 3, or of several labels those it has."),
    ] = None,
    version: Annotated[str | None, typer.Option(help="A number, stable or latest; stable if left out.")] = None,
) -> None:
    """Ask MODEL about image files, rows of a table, or texts. Exit code 9 if some could not be answered."""
    with connect(ctx, server) as client:
        names, batches = _questions(client, model, files)
        if top is None:
            task = client.models.get(model).status.input.task
            top = _ALL_IT_SAYS if task in ("multilabel", "regression") else _BEST
        answers = list(client.predict_stream(model, batches, version=version, top_k=top))
    failed = [answer for answer in answers if isinstance(answer, EverlearnClientError)]
    if failed and len(failed) == len(answers):
        raise failed[0]
    if output is Output.TABLE:
        _put_answers(names, answers)
    else:
        put_data([_plain_answer(name, a) for name, a in zip(names, answers, strict=True)], output)
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, EverlearnClientError):
            say(f"{name}: {answer.message} ({answer.field})", style="red")
    raise typer.Exit(exit_codes.PARTLY if failed else exit_codes.OK)


def export(
    ctx: typer.Context,
    model: ModelArgument,
    folder: Annotated[Path, typer.Option("--directory", "-d", metavar="FOLDER", help="Where the files go.")],
    server: ServerOption = DEFAULT_SERVER,
    output: OutputOption = Output.TABLE,
    version: Annotated[str, typer.Option(help="A number, stable or latest.")] = "stable",
    student: Annotated[
        bool, typer.Option("--student", help="The small network that imitates it, as declared by distill_to.")
    ] = False,
    precision: Annotated[
        str,
        typer.Option(
            metavar="fp32|fp16|int8",
            help="The server's if left out. fp16 halves the file; int8 is the fastest, where it is declared.",
        ),
    ] = "",
    base: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="With an earlier version's files: only the differences are downloaded."),
    ] = None,
    difference_from: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="With an earlier export: the difference from it is written, too, for those who have that one and pull "
            "from a web server (clients/typescript). Can be given several times.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--client",
            metavar="ID",
            help="Who takes it: kept by the server, so that who has a copy is known when a learner is erased.",
        ),
    ] = None,
) -> None:
    """Take a version along as one ONNX file, checked against the server. An interrupted download is resumed."""
    earlier = [Earlier(each) for each in difference_from or ()]  # before anything is written to the same folder
    with connect(ctx, server, client_id=name) as client:
        made = client.export(model, version, student=student, precision=precision)
        with _DownloadDisplay() as display:
            paths = client.download(made, folder, base=base, on_progress=display.update)
    # What the server signed lies beside it: whoever takes the folder on from here can check it (clients/typescript).
    signed = (MANIFEST_FILE, made.manifest), (SIGNATURE_FILE, made.signature), (KEYS_FILE, _keys(made.key_rotations))
    for name, data in signed:
        if data:  # servers of earlier releases sign nothing
            (folder / name).write_bytes(data)
    write_differences(folder, made, earlier)
    if output is not Output.TABLE:
        parity = {"max_abs_diff": made.parity_max_abs_diff, "probes": made.probes}
        told = {"version": made.version, "precision": made.precision, "parity": parity}
        put_data({**told, "files": [str(path) for path in paths]}, output)
        return
    put_fields({"version": made.version, "parity": f"{made.parity_max_abs_diff:.2g} over {made.probes} probes"})
    rows = [(path, file.size_bytes, file.sha256) for path, file in zip(paths, made.files, strict=True)]
    put_table(("file", "bytes", "sha256"), rows)


def _keys(rotations: Sequence[KeyRotation]) -> bytes:
    """JSON of hex, which `clients/typescript` follows from the key that it was given."""
    return json.dumps([{name: data.hex() for name, data in asdict(each).items()} for each in rotations]).encode()


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


def _questions(client: Client, model: str, files: list[Path]) -> tuple[list[str], Iterator[SampleInput]]:
    """One question for each image, row of a table, or text; and what to call it."""
    if not any(file.suffix.lower() in (".txt", *SUFFIXES) for file in files):
        return [str(file) for file in files], ([read_file(file)] for file in files)
    contract = client.models.get(model).status.input
    if contract.modality == "text":
        named = [each for file in files for each in read_unlabelled_texts(file)]
        return [name for name, _ in named], (Texts([text]) for _, text in named)
    if contract.modality != "tensor":
        raise InvalidArgument(f"{model} takes images, no tables or texts; give image files", field="FILES")
    names: list[str] = []
    rows: list[SampleInput] = []
    for file in files:
        values_N = read_unlabelled(file, contract.shape)
        names += [f"{file}:{row}" for row in range(1, len(values_N) + 1)]
        rows += [Tensors(values_N[row : row + 1]) for row in range(len(values_N))]
    return names, iter(rows)


def _put_answers(names: list[str], answers: list[Predictions | EverlearnClientError]) -> None:
    valued = next((a for a in answers if isinstance(a, Predictions) and a.values_NK is not None), None)
    if valued is not None:
        put_table(
            ["file", *valued.labels], [[name, *_values(answer)] for name, answer in zip(names, answers, strict=True)]
        )
        return
    rows: list[list[object]] = []
    width = max((len(a.top[0]) for a in answers if isinstance(a, Predictions)), default=0)
    abstains = any(isinstance(a, Predictions) and a.novelty for a in answers)
    for name, answer in zip(names, answers, strict=True):
        best = answer.top[0] if isinstance(answer, Predictions) else ()
        cells: list[object] = [cell for scored in best for cell in (scored.label, f"{scored.score:.4f}")]
        novelty = [_novelty(answer)] if abstains else []
        rows.append([name, *novelty, *cells, *[""] * (2 * width - len(cells))])
    columns = [
        "file",
        *(["novelty"] if abstains else []),
        *[name for rank in range(width) for name in (f"top {rank + 1}", "score")],
    ]
    put_table(columns, rows)


def _novelty(answer: Predictions | EverlearnClientError) -> str:
    if isinstance(answer, EverlearnClientError) or not answer.novelty:
        return ""
    return f"{answer.novelty[0]:.2f}{' unknown' if answer.abstained[0] else ''}"


def _values(answer: Predictions | EverlearnClientError) -> list[str]:
    if isinstance(answer, EverlearnClientError) or answer.values_NK is None:
        return []
    return [f"{value:.6g}" for value in answer.values_NK[0]]


def _plain_answer(name: str, answer: Predictions | EverlearnClientError) -> dict[str, object]:
    if isinstance(answer, EverlearnClientError):
        return {"file": name, "error": {"code": answer.code, "field": answer.field, "message": answer.message}}
    if answer.values_NK is not None:
        values = dict(zip(answer.labels, map(float, answer.values_NK[0]), strict=True))
        return {"file": name, "version": answer.version, "values": values, **_id(answer)}
    top = [{"label": scored.label, "index": scored.index, "score": scored.score} for scored in answer.top[0]]
    return {"file": name, "version": answer.version, "top": top, **_id(answer), **_told_novelty(answer)}


def _told_novelty(answer: Predictions) -> dict[str, object]:
    """Of a model that declares unknown: abstain."""
    return {"novelty": answer.novelty[0], "abstained": answer.abstained[0]} if answer.novelty else {}


def _id(answer: Predictions) -> dict[str, str]:
    """What `everlearn label` takes, of a model that declares late_labels."""
    return {"sample_id": answer.sample_ids[0]} if answer.sample_ids else {}
