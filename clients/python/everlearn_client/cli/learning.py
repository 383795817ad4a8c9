"""`learn`: streams labelled data from disk and shows what becomes of it."""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from everlearn_client.cli import exit_codes
from everlearn_client.cli.connection import DEFAULT_SERVER, ModelArgument, ServerOption, connect
from everlearn_client.cli.datasets import Dataset, open_dataset
from everlearn_client.cli.output import Output, OutputOption, put_data, put_fields, say, stderr
from everlearn_client.cli.reporting import figure_of
from everlearn_client.cli.target_files import open_targets
from everlearn_client.errors import InvalidArgument
from everlearn_client.events import Durable, LearnEvent, LearnReport, Opened, Received, Reconnecting, Rejected
from everlearn_client.receipts import ReceiptFile
from everlearn_client.samples import Batch
from everlearn_protos.v1 import models_pb2

PLAIN_LINE_EVERY_S = 2.0
PathArgument = Annotated[
    Path,
    typer.Argument(
        metavar="PATH",
        help="Images: folder with one subfolder a class, or .csv of path,label. Tensors: .csv of numbers and a "
        "label. Texts: .csv, .json or .jsonl of text and label, or folder with one subfolder of .txt a class. "
        "Any: .npz with images|x|features and labels|y. Several labels or values a sample: .csv with a header of "
        "label_1,label_2 or of the outputs' names, .jsonl, or .npz.",
    ),
]
StepOption = Annotated[
    str,
    typer.Option(
        "--step",
        metavar="NAME",
        help="The task, domain or season that this is of. When data of earlier ones come again, `everlearn describe` "
        "says what was forgotten.",
    ),
]
ReceiptsOption = Annotated[
    Path | None,
    typer.Option(
        "--receipts",
        metavar="FILE",
        help="Keep here what `everlearn erase` needs to take this learner out again; needs --client. Whoever loses "
        "FILE cannot be taken out exactly.",
    ),
]


def learn(
    ctx: typer.Context,
    model: ModelArgument,
    path: PathArgument,
    server: ServerOption = DEFAULT_SERVER,
    output: OutputOption = Output.TABLE,
    batch: Annotated[int, typer.Option(min=1, help="Samples a message; fewer where they are large.")] = 32,
    client: Annotated[
        str | None, typer.Option("--client", metavar="ID", help="The learner's stable identity; random if left out.")
    ] = None,
    shuffle: Annotated[int | None, typer.Option(metavar="SEED", help="Stream in this random order.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Stop after N samples.")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Skip what is durable already. The same data, options and --client as before; nothing counts twice.",
        ),
    ] = False,
    window: Annotated[int, typer.Option(min=1, help="Batches kept in memory until they are durable.")] = 64,
    step: StepOption = "",
    receipts: ReceiptsOption = None,
    feature_digest: Annotated[
        str, typer.Option(metavar="HEX", help="Of the trunk that computed the features; needed to stream features.")
    ] = "",
) -> None:
    """Teach MODEL what lies at PATH. Ctrl-C stops cleanly and says what is durable; twice stops at once."""
    if resume and client is None:
        raise InvalidArgument("--resume needs --client: the learner whose batches are to be skipped", field="--client")
    if receipts is not None and client is None:
        raise InvalidArgument("--receipts needs --client: the learner who may be taken out again", field="--receipts")
    if not path.exists():
        raise InvalidArgument(f"{path} does not exist", field="PATH")
    with connect(ctx, server, client_id=client) as connected, ExitStack() as kept_open:
        # Asks before anything is read: what a file means depends on what the model takes.
        contract = connected.models.get(model).status.input
        dataset = _open(path, model, feature_digest, contract)
        order = dataset.order(shuffle_seed=shuffle, limit=limit)
        source = dataset.batches(order, batch=batch, max_samples=contract.max_batch_samples)
        with _Display(len(order), unit=dataset.unit, figure=figure_of(contract.task)) as display, _stop() as stopped:
            kept = kept_open.enter_context(ReceiptFile(receipts)) if receipts is not None else None
            report = connected.learn(
                model,
                _until(source, stopped),
                window=window,
                first_sequence=1 if resume else None,
                feature_digest=feature_digest,
                step=step,
                receipts=kept,
                on_event=display.hear,
            )
    _put_report(report, output, figure_of(contract.task))
    if stopped.is_set():
        say(f"stopped: everything up to sequence {report.durable_sequence} is durable")
        raise typer.Exit(exit_codes.INTERRUPTED)
    raise typer.Exit(exit_codes.PARTLY if report.rejected_batches else exit_codes.OK)


def _open(path: Path, model: str, feature_digest: str, contract: models_pb2.InputContract) -> Dataset:
    """What lies at the path; says what of it is left out."""
    if contract.task in ("multilabel", "regression"):
        dataset = open_targets(path, contract)
    else:
        dataset = open_dataset(path, contract.modality, contract.shape)
    if dataset.is_features and not feature_digest:
        raise InvalidArgument(
            f"{path} holds features: give --feature-digest; `everlearn get {model} -o json` has the model's own under "
            "status.input, to compare with the trunk that computed these",
            field="--feature-digest",
        )
    if dataset.ignored:
        say(f"ignored {len(dataset.ignored)} files that are no images, such as {dataset.ignored[0]}", style="yellow")
    if dataset.without_class:
        say(
            f"ignored {len(dataset.without_class)} images directly in {path}, such as {dataset.without_class[0].name}: "
            "an image needs a subfolder that names its class",
            style="yellow",
        )
    return dataset


def _until(batches: Iterator[Batch], stopped: threading.Event) -> Iterator[Batch]:
    for item in batches:
        if stopped.is_set():
            return
        yield item


@contextmanager
def _stop() -> Iterator[threading.Event]:
    """Set by the first Ctrl-C; the second is a KeyboardInterrupt."""
    stopped = threading.Event()

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()
        say("stopping: waiting until what was sent is durable (Ctrl-C again stops at once)", style="yellow")

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


class _Display:
    """Samples, rate, accuracy, classes and durable watermark: a bar on a terminal, now and then a line elsewhere."""

    def __init__(self, total: int, *, unit: str, figure: str) -> None:
        console = stderr()
        self._bar = Progress(
            TextColumn("{task.fields[text]}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        )
        self._live = console.is_terminal
        self._task = self._bar.add_task("learn", total=total, text="connecting")
        self._unit, self._total, self._figure = unit, total, figure
        self._begun_s = time.monotonic()
        self._said_s = self._begun_s
        self._learned: set[int] = set()
        self._samples = self._durable = self._classes = 0
        self._accuracy = 0.0

    def __enter__(self) -> _Display:
        if self._live:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._bar.stop()

    def hear(self, event: LearnEvent) -> None:
        match event:
            case Opened():
                self._durable = event.durable_sequence
            case Received() if event.sequence not in self._learned:
                self._learned.add(event.sequence)
                self._samples += event.samples
                self._classes, self._accuracy = event.classes_seen, event.prequential.windowed_accuracy
            case Durable():
                self._durable = event.sequence
                # What is durable is not sent again: only the window needs remembering.
                self._learned = {sequence for sequence in self._learned if sequence > event.sequence}
            case Rejected():
                self._say(f"batch {event.sequence} rejected: {event.message} ({event.field})", style="red")
            case Reconnecting():
                self._say(f"{event.error}; trying again in {event.delay_s:.1f} s", style="yellow")
        self._show()

    def _say(self, text: str, *, style: str) -> None:
        # Through the bar's own console, which moves the bar out of the way.
        self._bar.console.print(text, style=style, markup=False, soft_wrap=True)

    def _show(self) -> None:
        now_s = time.monotonic()
        rate = self._samples / max(now_s - self._begun_s, 1e-9)
        text = (
            f"{rate:,.0f} {self._unit}/s  {self._figure} {self._accuracy:.1%}  classes {self._classes}  "
            f"durable {self._durable}"
        )
        if self._live:
            self._bar.update(self._task, completed=self._samples, text=text)
        elif now_s - self._said_s >= PLAIN_LINE_EVERY_S:
            self._said_s = now_s
            say(f"{self._samples}/{self._total} {self._unit}  {text}")


def _put_report(report: LearnReport, output: Output, figure: str) -> None:
    if output is not Output.TABLE:
        put_data(_plain_report(report), output)
        return
    last = report.last
    put_fields(
        {
            "learned": f"{report.durable_samples} samples in {report.durable_batches} batches, durable",
            "skipped": f"{report.skipped_batches} batches, durable before",
            "rejected": f"{report.rejected_samples} samples in {report.rejected_batches} batches",
            figure: f"{last.prequential.accuracy:.1%} before learning each sample" if last else "-",
            "classes": last.classes_seen if last else "-",
            "reconnects": report.reconnects,
            "learner": f"{report.client_id}, sequence {report.durable_sequence}",
            "version": report.version or "not solved yet",
            "rate": f"{report.sent_samples / max(report.seconds, 1e-9):,.0f} samples/s over {report.seconds:.1f} s",
        }
    )


def _plain_report(report: LearnReport) -> dict[str, object]:
    value = dataclasses.asdict(report)
    value["rejected"] = list(value["rejected"])
    return value
