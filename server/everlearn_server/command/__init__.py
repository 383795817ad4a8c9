"""The command line of the server. `cli` sets the process up first and then loads this."""

from __future__ import annotations

import typer

from everlearn_server.command.serving import serve
from everlearn_server.command.signing import rotate_signing_key
from everlearn_server.command.tending import backup, check, migrate, restore

__all__ = ["app", "serve"]

app = typer.Typer(add_completion=False, no_args_is_help=False, pretty_exceptions_enable=False)
app.callback(invoke_without_command=True)(serve)
for _command in (backup, restore, check, migrate, rotate_signing_key):
    app.command()(_command)
