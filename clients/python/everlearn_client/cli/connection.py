"""From options and environment to a Client: the only place of the package that reads either."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from everlearn_client._channel import Tls
from everlearn_client.client import DEFAULT_TARGET, Client
from everlearn_client.errors import InvalidArgument

ServerOption = Annotated[
    str, typer.Option("--server", "-s", envvar="EVERLEARN_SERVER", help="host:port of the server.", show_default=True)
]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")]
FileOption = Annotated[str, typer.Option("--file", "-f", metavar="FILE", help="Declaration in YAML; - is stdin.")]
DEFAULT_SERVER = DEFAULT_TARGET


def connect(ctx: typer.Context, server: str, *, client_id: str | None = None) -> Client:
    """A client with the TLS and token options of the command's root."""
    root: dict[str, Any] = ctx.find_root().params
    certificate: Path | None = root.get("ca_certificate")
    roots = None if certificate is None else read_file(certificate)
    tls = Tls(root_certificates=roots) if root.get("tls") or roots else None
    return Client(server, client_id=client_id, tls=tls, token=root.get("token"))


def read_declaration(file: str) -> str:
    """Text of a YAML file, or of stdin for `-`. Raises InvalidArgument."""
    if file == "-":
        return sys.stdin.read()
    try:
        return read_file(Path(file)).decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{file} is not UTF-8 text", field="file") from error


def read_file(path: Path) -> bytes:
    """Bytes of a file. Raises InvalidArgument."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}", field="file") from error


def write_file(path: Path, text: str) -> None:
    """Writes a file's text at once or not at all; what is written to is the file that a link leads to.

    Raises InvalidArgument.
    """
    target = path.resolve()
    draft = target.with_name(f".{target.name}.{os.getpid()}.draft")
    try:
        draft.write_text(text, encoding="utf-8")
        if target.exists():
            draft.chmod(target.stat().st_mode & 0o777)
        draft.replace(target)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise InvalidArgument(f"{path} cannot be written: {error.strerror}", field="file") from error
