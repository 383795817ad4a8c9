"""`everlearn-server rotate-signing-key`: another key signs exports from now on, and devices follow it by themselves."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from everlearn.errors import InvalidError, UnavailableError
from everlearn_protos.v1 import admin_pb2
from everlearn_server.command.tending import DataOption, asking, data_folder, told
from everlearn_server.store.database import NAME
from everlearn_server.store.keys import Keys
from everlearn_server.store.lock import FolderLock, is_held


def rotate_signing_key(ctx: typer.Context, data: DataOption = None) -> None:
    """Exchange the key that exports and receipts are signed with; from a running server too, and it goes on meanwhile.

    The old key vouches for the new one and is destroyed: devices that trust it follow. Make a backup afterwards, and
    destroy those of before: the old key is in them. Where it was stolen, this does not lock out who has it: give each
    device the new key by hand.
    """
    with told():
        folder = data_folder(ctx, data)
        if is_held(folder):
            with asking(folder) as stub:
                statement = stub.RotateSigningKey(admin_pb2.RotateSigningKeyRequest()).rotation.statement
        else:
            if not (folder / NAME).is_file():
                raise InvalidError(f"there is no data folder at {folder}: it has no {NAME}", field="data")
            statement = _rotate(folder)
    rotation = json.loads(statement)
    typer.echo(f"rotation {rotation['number']}: {rotation['old']} gave way to {rotation['new']}")
    typer.echo("devices that trust the old key follow; make a backup now, and destroy those of before")


def _rotate(folder: Path) -> bytes:
    lock = FolderLock(folder)
    try:
        return Keys.open(folder).rotate().statement
    except OSError as error:
        raise UnavailableError(f"the signing key was not exchanged: {error.strerror}") from None
    finally:
        lock.release()
