"""`upgrade-backbone`: moves a model to another backbone with what it has learned, by unlabelled samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from everlearn_client.cli import exit_codes
from everlearn_client.cli.connection import DEFAULT_SERVER, ModelArgument, ServerOption, connect, read_declaration
from everlearn_client.cli.datasets import IMAGE_SUFFIXES
from everlearn_client.cli.output import Output, OutputOption, plain, put_data, put_table, say
from everlearn_client.cli.sampling import BATCH, Stages, interruptible
from everlearn_client.cli.tables import read_unlabelled
from everlearn_client.cli.texts import SUFFIXES, read_unlabelled_texts
from everlearn_client.errors import InvalidArgument
from everlearn_client.samples import SampleInput, Tensors, Texts
from everlearn_protos.v1 import models_pb2

_SAY_EVERY = 500
"""Samples between two lines of progress."""


def upgrade_backbone(
    ctx: typer.Context,
    model: ModelArgument,
    file: Annotated[
        str, typer.Argument(metavar="DECLARATION", help="YAML of MODEL with its new backbone and input; - is stdin.")
    ],
    data: Annotated[
        Path,
        typer.Argument(
            metavar="CALIBRATION",
            help="Unlabelled samples of every class, 1,000 or more: folder of images, also in subfolders, whose names "
            "mean nothing; .csv of numbers, or .txt, .csv, .json of texts.",
        ),
    ],
    server: ServerOption = DEFAULT_SERVER,
    output: OutputOption = Output.TABLE,
    max_drop: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Accuracy that the upgrade may cost, as a share; 0.1 if left out."),
    ] = None,
    min_agreement: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of decisions that must stay alike; 0.8 if left out.")
    ] = None,
    max_unseen: Annotated[int, typer.Option("--max-unseen", min=0, help="Classes that CALIBRATION need not show.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only the figures.")] = False,
) -> None:
    """Move MODEL to another backbone with all it has learned, if what that may cost passes the gate.

    Both backbones see the calibration samples, nothing of them is stored; MODEL learns and serves meanwhile. Exit code
    6 if the gate did not pass: then nothing was changed.
    """
    declaration = read_declaration(file)
    with connect(ctx, server) as client, interruptible():
        contract = client.models.get(model).status.input
        report = client.models.upgrade_backbone(
            model,
            declaration,
            _batches(data, contract),
            max_drop=max_drop,
            min_agreement=min_agreement,
            max_unseen_classes=max_unseen,
            dry_run=dry_run,
            check=False,
            progress=Stages(model),
            on_fed=_Counter(),
        )
    _put(report, output)
    raise typer.Exit(exit_codes.OK if report.gate_passed else exit_codes.REFUSED)


class _Counter:
    """A line now and then."""

    def __init__(self) -> None:
        self._said = -1

    def __call__(self, fed: int) -> None:
        if fed // _SAY_EVERY > self._said:
            self._said = fed // _SAY_EVERY
            say(f"calibrating: {fed:,} samples" if fed else "calibrating")


def _batches(path: Path, contract: models_pb2.InputContract) -> Iterator[SampleInput]:
    """Raises InvalidArgument that says what would be right."""
    if contract.modality == "tensor":
        values_N = read_unlabelled(path, contract.shape)
        return (Tensors(values_N[first : first + BATCH]) for first in range(0, len(values_N), BATCH))
    if contract.modality == "text":
        files = _files(path, (".txt", *SUFFIXES)) if path.is_dir() else [path]
        texts = [text for each in files for _, text in read_unlabelled_texts(each)]
        return (Texts(texts[first : first + BATCH]) for first in range(0, len(texts), BATCH))
    images = _files(path, IMAGE_SUFFIXES)
    return (images[first : first + BATCH] for first in range(0, len(images), BATCH))


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """In order of their names: the server holds each fifth out, so every subfolder is on both sides."""
    found = sorted(each for each in folder.rglob("*") if each.suffix.lower() in suffixes and each.is_file())
    if not found:
        raise InvalidArgument(
            f"{folder} has no files {', '.join(suffixes)}, nor have its subfolders", field="CALIBRATION"
        )
    return found


def _put(report: models_pb2.UpgradeReport, output: Output) -> None:
    if output is not Output.TABLE:
        put_data(plain(report), output)
        return
    rows = [
        ("calibration samples fitted, held out", f"{report.samples:,}, {report.held_out:,}"),
        ("classes met", f"{report.classes - report.unseen_classes:,} of {report.classes:,}"),
        ("features' variance unexplained", f"{report.unexplained:.1%}"),
        ("decided alike", f"{report.agreement:.1%}"),
        ("accuracy now (prequential, window)", f"{report.windowed_accuracy:.1%}"),
        ("loss expected, at most", f"{report.expected_drop:.1%}, {report.drop_bound:.1%}"),
        ("accuracy left at least", f"{report.accuracy_bound:.1%}"),
    ]
    put_table(("figure", "value"), rows)
    if report.live:
        say(f"{report.name} is on the new backbone; its memory is an estimate from now on", style="green")
    elif report.gate_passed:
        say(f"dry run: the gate would pass, {report.name} was not changed")
    else:
        say(f"refused, {report.name} was not changed: {report.gate_reason}", style="red")
