"""`clients quarantine`: who a model learns from, and who no longer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from everlearn_client.cli.connection import DEFAULT_SERVER, ModelArgument, ServerOption, connect
from everlearn_client.cli.erasing import erase
from everlearn_client.cli.output import Output, OutputOption, plain, put, put_data, put_table, say
from everlearn_client.errors import InvalidArgument
from everlearn_protos.v1 import clients_pb2

ClientArgument = Annotated[str, typer.Argument(metavar="CLIENT", help="As `everlearn clients MODEL` names it.")]


def clients(
    ctx: typer.Context,
    model: ModelArgument,
    server: ServerOption = DEFAULT_SERVER,
    output: OutputOption = Output.TABLE,
    head_change: Annotated[
        bool,
        typer.Option(
            "--head-change",
            help="Also work out how far the head would move without each, exactly; needs privacy.client_sums.",
        ),
    ] = False,
) -> None:
    """Show who a model learns from, who moves it, what was refused, and who downloaded what.

    `mistakes` is its share of all samples that were predicted wrong before they were learned: a sign of who moves the
    head. `moves head` (--head-change) is a measure: how far the scores of all samples learned would move without it, in
    units of their spread. `novelty`, of a model that declares unknown: abstain, is how unlike all that was learned its
    recent samples were, and how many of them were unknown: what has drifted shows there before it is wrong. Devices
    that have checked in since the server's start show their labels, what they run, and what they report of it.
    """
    with connect(ctx, server) as client:
        found = list(client.models.clients(model, head_change=head_change))
    watched = any(each.HasField("recent_novelty") for each in found)
    devices = any(each.HasField("device") for each in found)
    if output is not Output.TABLE:
        put_data(plain(found), output)
        return
    columns = (
        "client",
        "samples",
        "share",
        "mistakes",
        *(["moves head"] if head_change else []),
        "accuracy",
        "lately",
        "others",
        *(["novelty"] if watched else []),
        "refused",
        "clipped",
        "sequence",
        "state",
        "downloaded",
        *(["device", "runs", "health"] if devices else []),
    )
    put_table(
        columns,
        (
            (*_row(each, head_change=head_change, watched=watched), *(_device(each) if devices else ()))
            for each in found
        ),
    )


def quarantine(
    ctx: typer.Context,
    model: ModelArgument,
    client: ClientArgument,
    server: ServerOption = DEFAULT_SERVER,
    output: OutputOption = Output.TABLE,
    undo: Annotated[bool, typer.Option("--undo", help="Learn from it again.")] = False,
    remove: Annotated[
        bool, typer.Option("--remove", help="Also take out what was learned of it, as `everlearn erase --client` does.")
    ] = False,
    receipts: Annotated[
        Path | None,
        typer.Option("--receipts", metavar="FILE", help="--remove: what `everlearn learn --receipts` kept for it."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="--remove: do it without asking.")] = False,
) -> None:
    """Learn nothing of a client any more; what was learned of it stays, or goes with --remove.

    Exit code 6 where it cannot be taken out: it is in quarantine all the same.
    """
    if undo and remove:
        raise InvalidArgument("--undo learns from a client again and --remove takes it out; give one", field="--undo")
    with connect(ctx, server) as connected:
        models = connected.models
        found = models.release(model, client) if undo else models.quarantine(model, client)
    if remove:
        say(f"{client} is in quarantine; where nothing proves what was learned of it, `everlearn rollback` goes back")
        erase(ctx, model, client=client, receipts=receipts, yes=yes, server=server, output=output)
    elif output is not Output.TABLE:
        put_data(plain(found), output)
    elif undo:
        put(f"{found.client} is learned from again; what was refused meanwhile it may send again, as new batches")
    else:
        put(
            f"{found.client} is in quarantine: its batches are refused from now on. {found.samples:,} samples "
            f"({found.share:.1%}) that were learned of it before stay in the model "
            "(--remove takes them out)"
        )


def _row(found: clients_pb2.ModelClient, *, head_change: bool, watched: bool) -> tuple[object, ...]:
    novelty = (
        f"{found.recent_novelty:.2f} ({found.recent_unknown:.0%} unknown)" if found.HasField("recent_novelty") else "-"
    )
    moves = f"{found.head_change:.3f}" if found.HasField("head_change") else "-"
    return (
        found.client or "(gave no name)",
        f"{found.samples:,}",
        f"{found.share:.1%}",
        f"{found.mistake_share:.1%}" if found.tested else "-",
        *([moves] if head_change else []),
        f"{found.correct / found.tested:.1%}" if found.tested else "-",
        f"{found.recent_accuracy:.1%}" if found.recent_tested else "-",
        f"{found.others_accuracy:.1%}" if found.HasField("others_accuracy") else "-",
        *([novelty] if watched else []),
        found.rejected_batches,
        found.clipped_samples,
        found.last_sequence,
        "quarantined" if found.quarantined else "",
        f"version {found.downloaded_version}, {found.download_time.ToDatetime():%Y-%m-%d %H:%M}"
        if found.downloaded_version
        else "",
    )


def _device(found: clients_pb2.ModelClient) -> tuple[object, ...]:
    """Labels, what runs there, and how that fares; empty of a client that is none."""
    if not found.HasField("device"):
        return "", "", ""
    device = found.device
    health = [f"{device.predictions:,} predictions"]
    if device.failed_share:
        health.append(f"{device.failed_share:.1%} failed")
    if device.HasField("unsure_share"):
        health.append(f"{device.unsure_share:.1%} unknown (novelty {device.novelty:.2f})")
    if device.latency_ms:
        health.append(f"{device.latency_ms:.1f} ms")
    health += [f"gave up {number}: {why.lower()}" for number, why in sorted(device.given_up.items())]
    labels = ", ".join(f"{key}={value}" for key, value in sorted(device.labels.items()))
    runs = f"version {device.running}{' (chosen for canaries)' if device.is_canary else ''}" if device.running else "-"
    return labels or "-", runs, ", ".join(health)
