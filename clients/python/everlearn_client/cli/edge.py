"""`edge run`: a device that predicts what appears in a folder, and teaches what it knows, without code of its own."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everlearn_client.cli import exit_codes
from everlearn_client.cli.connection import DEFAULT_SERVER, ModelArgument, ServerOption, connect
from everlearn_client.cli.device import check_extra, device_labels, identity
from everlearn_client.cli.edge_work import Records, work
from everlearn_client.cli.output import say

if TYPE_CHECKING:
    from everlearn_client.edge import EdgeSettings, SendPolicy
    from everlearn_client.edge.folder_source import FolderSource
    from everlearn_client.edge.runtime import Runtime

# Everything of `everlearn_client.edge` is imported where it is used: it loads ONNX Runtime, which other verbs need not
# wait for, nor have.

edge = typer.Typer(name="edge", help="Be a device.", no_args_is_help=True)


class After(StrEnum):
    """What becomes of a file that was read."""

    MOVE = "move"
    DELETE = "delete"
    LEAVE = "leave"


class Labels(StrEnum):
    """Where a file's label stands."""

    NONE = "none"
    FOLDER = "folder"
    SIDECAR = "sidecar"


class Send(StrEnum):
    """What of a sample is kept and sent."""

    SAMPLE = "sample"
    THUMBNAIL = "thumbnail"
    FEATURES = "features"


_E = "EVERLEARN_EDGE_"
FolderOption = Annotated[
    Path,
    typer.Option(
        "--folder", metavar="DIR", envvar=f"{_E}FOLDER", help="The device's own: versions, and what waits to be sent."
    ),
]
SourceOption = Annotated[
    Path,
    typer.Option(
        "--source",
        metavar="PATH",
        envvar=f"{_E}SOURCE",
        help="Folder in which files appear: JPEG, PNG, WebP, or .npy (uint8 picture; float32 of a tensor model); of a "
        "model of texts .txt (one text) or .jsonl (one a line). Or, of such a model, a file of lines; - for stdin.",
    ),
]
AfterOption = Annotated[
    After,
    typer.Option(
        envvar=f"{_E}AFTER", help="A file that was read is moved to done/ (failed/ if it cannot be), deleted, or left."
    ),
]
LabelsOption = Annotated[
    Labels,
    typer.Option(
        envvar=f"{_E}LABELS",
        help="Where the right answer stands, if the device knows it: the name of the subfolder, or a text file "
        "NAME.label beside the file NAME, written before it.",
    ),
]
LabelOption = Annotated[
    str, typer.Option(metavar="NAME", envvar=f"{_E}LABEL", help="The right answer for files without one of their own.")
]
SettleOption = Annotated[
    float,
    typer.Option(
        min=0,
        envvar=f"{_E}SETTLE",
        help="Seconds without a change after which a file is whole; 0 where each is renamed into its name.",
    ),
]
OnceOption = Annotated[bool, typer.Option("--once", help="End when what is there has been read and sent.")]
ClientOption = Annotated[
    str | None,
    typer.Option(
        "--client",
        metavar="ID",
        envvar=f"{_E}CLIENT",
        help="The device's lasting identity; one is made and kept in DIR if left out.",
    ),
]
VersionOption = Annotated[str, typer.Option(envvar=f"{_E}VERSION", help="To follow: a number, stable or latest.")]
PrecisionOption = Annotated[
    str,
    typer.Option(
        metavar="fp32|fp16|int8",
        envvar=f"{_E}PRECISION",
        help="Of the model, if not the server's: fp16 halves the file; int8 is the fastest, where it is declared.",
    ),
]
ServerKeyOption = Annotated[
    str,
    typer.Option(
        metavar="HEX",
        envvar=f"{_E}SERVER_KEY",
        help="Only what this server signed runs here, as `everlearn info` shows it; the first one met if left out.",
    ),
]
ThreadsOption = Annotated[int, typer.Option(min=1, envvar=f"{_E}THREADS", help="Of ONNX Runtime.")]
WatchOption = Annotated[
    float, typer.Option(min=0.1, envvar=f"{_E}WATCH_EVERY", help="Seconds between two questions for a new version.")
]
SpoolOption = Annotated[
    float, typer.Option(min=0.1, envvar=f"{_E}SPOOL_MB", help="MB on the disk for what waits; the oldest gives way.")
]
UnsureOption = Annotated[
    bool, typer.Option("--only-unsure", envvar=f"{_E}ONLY_UNSURE", help="Teach only what the model is unsure of.")
]
MarginOption = Annotated[
    float,
    typer.Option(min=0.001, max=1, envvar=f"{_E}MARGIN", help="Unsure: the best two probabilities are closer than it."),
]
TemperatureOption = Annotated[
    float,
    typer.Option(
        min=0.001, envvar=f"{_E}TEMPERATURE", help="Divides scores before they are probabilities; 0.1 for ridge heads."
    ),
]
PerHourOption = Annotated[
    float | None, typer.Option(min=0.001, envvar=f"{_E}PER_HOUR", help="Samples to teach an hour, at most.")
]
PerDayOption = Annotated[
    float | None, typer.Option(min=0.001, envvar=f"{_E}MB_PER_DAY", help="MB to send a day, at most.")
]
DuplicatesOption = Annotated[
    bool, typer.Option("--duplicates", envvar=f"{_E}DUPLICATES", help="Teach pictures that look the same, too.")
]
SendOption = Annotated[
    Send,
    typer.Option(
        envvar=f"{_E}SEND",
        help="Of what is taught: the file itself, the picture made smaller, or only its features: few KB each.",
    ),
]
ThumbnailOption = Annotated[
    int | None,
    typer.Option(
        min=8,
        envvar=f"{_E}THUMBNAIL_PX",
        help="Longer side of thumbnails; what the model resizes pictures to if left out.",
    ),
]
MeteredOption = Annotated[
    Path | None,
    typer.Option(
        "--metered",
        metavar="FILE",
        envvar=f"{_E}METERED",
        help="While this file exists the connection costs money, and nothing is sent.",
    ),
]
DeviceLabelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--device-label",
        metavar="KEY=VALUE",
        envvar=f"{_E}DEVICE_LABELS",
        help="What the device is (site=north), once for each: the model's rollout chooses by it who tries a version.",
    ),
]
StepOption = Annotated[
    str, typer.Option("--step", metavar="NAME", envvar=f"{_E}STEP", help="The season or place that lessons are of.")
]


@edge.command()
def run(
    ctx: typer.Context,
    model: ModelArgument,
    folder: FolderOption,
    source: SourceOption,
    server: ServerOption = DEFAULT_SERVER,
    client: ClientOption = None,
    after: AfterOption = After.MOVE,
    labels: LabelsOption = Labels.NONE,
    label: LabelOption = "",
    settle: SettleOption = 1.0,
    once: OnceOption = False,
    version: VersionOption = "stable",
    precision: PrecisionOption = "",
    server_key: ServerKeyOption = "",
    threads: ThreadsOption = 1,
    watch_every: WatchOption = 30.0,
    spool_mb: SpoolOption = 64.0,
    only_unsure: UnsureOption = False,
    margin: MarginOption = 0.2,
    temperature: TemperatureOption = 1.0,
    per_hour: PerHourOption = None,
    mb_per_day: PerDayOption = None,
    duplicates: DuplicatesOption = False,
    send: SendOption = Send.SAMPLE,
    thumbnail_px: ThumbnailOption = None,
    metered: MeteredOption = None,
    step: StepOption = "",
    device_label: DeviceLabelOption = None,
) -> None:
    """Answer what appears in a folder by MODEL, here and offline too, and teach what has a label.

    One JSON object a line on stdout for each file: file (and line, of texts that stand so), label and score (or labels,
    or values), novelty and abstained where the model knows that it does not know, version, truth and decision where it
    was taught, seconds since the start; or error: {code, field, message}. MODEL is followed: new versions are pulled,
    checked and tried while the old one answers. SIGTERM ends it in order, with 0; what was not sent waits in DIR. Every
    option but --once can stand in the environment: EVERLEARN_EDGE_SOURCE, and so on. With --once, and of lines, exit
    code 9 says that some failed.
    """
    check_extra()
    from everlearn_client.edge import EdgeModel
    from everlearn_client.edge.runtime import Runtime

    policy = _policy(only_unsure, margin, temperature, per_hour, mb_per_day, duplicates, send, thumbnail_px)
    settings = _settings(policy, watch_every, threads, spool_mb, server_key, precision, device_label or [])
    is_stream = str(source) == "-" or source.is_file()
    files = None if is_stream else _files(source, folder, after, labels, settle, lambda: device.takes_texts)
    with _signals() as ended, connect(ctx, server, client_id=client or identity(folder)) as connected:
        device = EdgeModel(
            model,
            folder=folder,
            client=connected,
            version=int(version) if version.isdecimal() else version,
            settings=settings,
            metered=lambda: metered is not None and metered.exists(),
            on_switch=lambda name, why: say(f"{name} answers: {why}"),
        )
        runtime = Runtime(device, files, Records(ended), step=step, label=label)
        work(device, runtime, files or source, ended, once=once)
    raise typer.Exit(_code(runtime, ended, once=once or is_stream))


def _files(
    source: Path, folder: Path, after: After, labels: Labels, settle_s: float, takes_texts: Callable[[], bool]
) -> FolderSource:
    from everlearn_client.edge import pictures, texts
    from everlearn_client.edge.folder_source import FolderSource

    return FolderSource(
        source,
        after=after.value,
        labels=labels.value,
        settle_s=settle_s,
        journal=folder / "read",
        suffixes=lambda: texts.SUFFIXES if takes_texts() else pictures.SUFFIXES,
        clock_s=time.monotonic,
    )


def _policy(
    only_unsure: bool,
    margin: float,
    temperature: float,
    per_hour: float | None,
    mb_per_day: float | None,
    duplicates: bool,
    send: Send,
    thumbnail_px: int | None,
) -> SendPolicy:
    from everlearn_client.edge import SendPolicy

    return SendPolicy(
        only_unsure=only_unsure,
        margin_below=margin,
        temperature=temperature,
        samples_per_hour=per_hour,
        send=send.value,
        thumbnail_px=thumbnail_px,
        duplicate_bits=None if duplicates else SendPolicy.duplicate_bits,
        bytes_per_day=None if mb_per_day is None else mb_per_day * 1e6,
    )


def _settings(
    policy: SendPolicy,
    watch_every: float,
    threads: int,
    spool_mb: float,
    server_key: str,
    precision: str,
    labels: list[str],
) -> EdgeSettings:
    from everlearn_client.edge import EdgeSettings

    return EdgeSettings(
        policy=policy,
        watch_every_s=watch_every,
        threads=threads,
        spool_bytes=int(spool_mb * 1e6),
        server_key=server_key,
        precision=precision,
        labels=device_labels(labels),
    )


def _code(runtime: Runtime, ended: list[int], *, once: bool) -> int:
    if ended:
        return exit_codes.OK if ended[0] == signal.SIGTERM else exit_codes.INTERRUPTED
    return exit_codes.PARTLY if once and runtime.failed else exit_codes.OK


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The first SIGTERM or Ctrl-C is only noted here, for work to end in order; the second one ends at once."""
    ended: list[int] = []
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        # Nothing but this: a lock that is taken here may be held by whom the signal interrupted.
        ended.append(number)
        restore()

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, note)
    try:
        yield ended
    finally:
        restore()
