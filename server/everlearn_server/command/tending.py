"""`everlearn-server backup`, `restore`, `check`, `migrate`: what an operator does with a data folder."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import grpc
import typer

from everlearn.errors import EverlearnError, InvalidError, UnavailableError
from everlearn_protos.v1 import admin_pb2, admin_pb2_grpc
from everlearn_server.check.findings import Report
from everlearn_server.check.folder import check as check_folder
from everlearn_server.rpc.admin import SOCKET, AdminSocket
from everlearn_server.settings import load_settings
from everlearn_server.store import migrate as migrations
from everlearn_server.store.backup import back_up_stopped, check_goal
from everlearn_server.store.lock import is_held
from everlearn_server.store.restore import restore as restore_folder

DAMAGED = 1
"""Exit status of `check`, and of whatever could not be done."""
MISUSED = 2
"""Exit status of a wrong option, or a folder that cannot be checked."""
_CONNECT_S = 5.0

DataOption = Annotated[Path | None, typer.Option("--data", help="Data folder. (default: ./everlearn-data)")]


def backup(
    ctx: typer.Context,
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="A new folder for the backup.")],
    data: DataOption = None,
) -> None:
    """Copy all that is durable to a new folder, from a running server too: it goes on meanwhile.

    Run it on the server's machine, as the server's user. The backup holds the folder's keys: guard it as you guard the
    data folder. It is consistent, and has been read again when this ends.
    """
    with told():
        folder, goal = data_folder(ctx, data), to.absolute()
        check_goal(goal, folder)
        if is_held(folder):
            done = _ask(folder, goal)
            samples, size, files = dict(done.samples), done.size_bytes, done.files
        else:
            manifest = back_up_stopped(folder, goal)
            samples = {name: summary["samples"] for name, summary in manifest.models.items()}
            size, files = manifest.size, len(manifest.files)
    typer.echo(f"backed up {folder} to {goal}: {files} files, {_mib(size)}, verified")
    for name, count in sorted(samples.items()):
        typer.echo(f"  {name}: {count} samples")


def restore(
    ctx: typer.Context,
    backup_folder: Annotated[Path, typer.Argument(metavar="BACKUP", help="A folder that `backup` made.")],
    data: DataOption = None,
) -> None:
    """Make a data folder of a backup, which stays as it is. Clients are told that later acknowledgements are void.

    The data folder must be empty, or not there: move a damaged one away first.
    """
    with told():
        folder = data_folder(ctx, data)
        restored = restore_folder(backup_folder.absolute(), folder)
    manifest = restored.manifest
    typer.echo(f"restored {backup_folder} of {manifest.create_time} to {folder}: {_mib(manifest.size)}, verified")
    for name, summary in sorted(manifest.models.items()):
        typer.echo(f"  {name}: {summary['samples']} samples")
    typer.echo(f"timeline {restored.timeline}: clients hear that what was acknowledged after the backup is void")
    if not restored.is_current:
        typer.echo(f"it is of an older release: `everlearn-server migrate --data {folder} --no-backup` comes next")


def check(
    ctx: typer.Context,
    data: DataOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Verify a data folder whose server is stopped, or a backup: digests, ledger, sums. Changes nothing.

    Exit status: 0 nothing is damaged, 1 something is, 2 it could not be checked.
    """
    with told(status=MISUSED):
        report = check_folder(data_folder(ctx, data))
    if as_json:
        typer.echo(json.dumps({"damaged": bool(report.damaged), **asdict(report)}, indent=1))
    else:
        for line in _lines(report):
            typer.echo(line)
    raise typer.Exit(DAMAGED if report.damaged else 0)


def migrate(
    ctx: typer.Context,
    data: DataOption = None,
    backup_to: Annotated[
        Path | None, typer.Option("--backup-to", metavar="FOLDER", help="First make a backup there.")
    ] = None,
    no_backup: Annotated[bool, typer.Option("--no-backup", help="There is one already.")] = False,
) -> None:
    """Bring a data folder of an older release to this one. There is no way back but the backup."""
    with told():
        folder = data_folder(ctx, data)
        if (backup_to is None) == (not no_backup):
            raise InvalidError(
                "a migration cannot be undone: name a folder for a backup with --backup-to, or say --no-backup where "
                "there is one",
                field="backup_to",
            )
        if backup_to is not None:
            back_up_stopped(folder, backup_to.absolute())
            typer.echo(f"backed up {folder} to {backup_to}")
        before, after = migrations.migrate(folder)
    typer.echo(f"{folder} is of revision {after}" + (f", it was of {before}" if before != after else " already"))


def data_folder(ctx: typer.Context, data: Path | None) -> Path:
    """The data folder, as the server finds it: the option, here or before the command, then the environment."""
    given = data or (ctx.parent.params.get("data") if ctx.parent is not None else None)
    return load_settings({"data_dir": given}, os.environ).data_dir


@contextmanager
def told(status: int = DAMAGED) -> Iterator[None]:
    """An error as one line, and an exit status."""
    try:
        yield
    except EverlearnError as error:
        typer.echo(f"everlearn-server: {error.message}", err=True)
        raise typer.Exit(MISUSED if isinstance(error, InvalidError) else status) from None


def _ask(folder: Path, goal: Path) -> admin_pb2.BackupResponse:
    """Has the running server make the backup; its last answer."""
    with asking(folder) as stub:
        last = admin_pb2.BackupResponse()
        for last in stub.Backup(admin_pb2.BackupRequest(to=str(goal))):
            _progress(last)
        return last


@contextmanager
def asking(folder: Path) -> Iterator[admin_pb2_grpc.AdminServiceStub]:
    """The server that runs on a folder. Raises UnavailableError, also for what it answers."""
    socket = AdminSocket(folder)
    try:
        with grpc.insecure_channel(socket.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            grpc.channel_ready_future(channel).result(timeout=_CONNECT_S)
            yield admin_pb2_grpc.AdminServiceStub(channel)
    except grpc.FutureTimeoutError:
        raise UnavailableError(f"the server on {folder} does not answer on {SOCKET}") from None
    except grpc.RpcError as error:
        raise UnavailableError(error.details() or str(error.code())) from None
    finally:
        socket.close()


def _progress(response: admin_pb2.BackupResponse) -> None:
    """On a terminal, one line that is written over."""
    if sys.stderr.isatty():
        share = response.bytes_done / response.bytes_total if response.bytes_total else 0.0
        text = "" if response.stage == "done" else f"{response.stage} {share:.0%} of {_mib(response.bytes_total)}"
        typer.echo(f"\r\033[K{text}", nl=False, err=True)


def _lines(report: Report) -> Iterator[str]:
    yield (
        f"{report.folder}: revision {report.revision or 'unknown'}, timeline {report.timeline[:8] or 'unknown'}, "
        f"{report.blobs} blobs of {_mib(report.blob_bytes)}"
    )
    for model in report.models:
        yield (
            f"  {model.name}: {model.samples} samples in {model.classes} classes, commit {model.commit}, "
            f"{model.clients} clients, {model.versions} versions, {model.exports} exports"
        )
    for finding in report.findings:
        yield f"{'DAMAGED' if finding.severity == 'damage' else 'note'}  {finding.where}: {finding.problem}"
    count = len(report.damaged)
    yield f"{count} {'thing is' if count == 1 else 'things are'} damaged" if count else "nothing is damaged"


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
