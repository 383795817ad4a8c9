"""The command's root: every verb, its common options, and what an error looks like."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from everlearn_client.cli import exit_codes, output
from everlearn_client.cli.backbones import backbones
from everlearn_client.cli.clients import clients, quarantine
from everlearn_client.cli.declaring import apply, diff, lock, plan, schema
from everlearn_client.cli.doctor import doctor
from everlearn_client.cli.edge import edge
from everlearn_client.cli.erasing import erase, verify_receipt
from everlearn_client.cli.labelling import label
from everlearn_client.cli.learning import learn
from everlearn_client.cli.serving import export, predict
from everlearn_client.cli.showing import delete, describe, get, info, promote, rollback, versions
from everlearn_client.cli.tune import tune
from everlearn_client.cli.upgrading import upgrade_backbone
from everlearn_client.errors import EverlearnClientError, Unavailable

# typer has its own copy of click since 0.26 and names few of its classes: this one is the base of what it raises.
_UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class Root(TyperGroup):
    """Turns errors into one clear line and the exit code of `exit_codes`; never a traceback for a known error."""

    def main(  # type: ignore[override]  # typer's parameters are passed on as they come
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Runs and exits. click's usage errors exit with 2, which here means that changes are pending."""
        try:
            code = super().main(args, prog_name, **{**extra, "standalone_mode": False})
        except EverlearnClientError as error:
            output.report(error)
            if isinstance(error, Unavailable):
                output.say("  is the server running? --server or EVERLEARN_SERVER names another")
            code = exit_codes.exit_code_of(error)
        except (KeyboardInterrupt, typer.Abort):
            output.say("interrupted")
            code = exit_codes.INTERRUPTED
        except _UsageError as error:
            output.say(_usage(error))
            code = exit_codes.INVALID
        sys.exit(code if isinstance(code, int) else exit_codes.OK)


def _usage(error: Exception) -> str:
    text = str(getattr(error, "message", "") or error)
    if type(error).__name__ == "NoArgsIsHelpError":
        return text
    ctx = getattr(error, "ctx", None)
    return f"error: {error.format_message()}\n  see {ctx.command_path} --help" if ctx else f"error: {text}"  # type: ignore[attr-defined]  # ClickException has it


app = typer.Typer(
    cls=Root,
    name="everlearn",
    help="Declare models, teach them from labelled data, ask them and take them along.",
    epilog="\n\n".join(["Exit codes:", *exit_codes.table()]),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    tls: Annotated[bool, typer.Option("--tls", envvar="EVERLEARN_TLS", help="Encrypt the connection.")] = False,
    ca_certificate: Annotated[
        Path | None,
        typer.Option("--ca-certificate", envvar="EVERLEARN_CA_CERTIFICATE", help="PEM file to trust; implies --tls."),
    ] = None,
    token: Annotated[
        str | None, typer.Option("--token", envvar="EVERLEARN_TOKEN", help="Sent as a bearer token.")
    ] = None,
) -> None:
    """Read by `connection.connect`."""


_PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Declare": (apply, plan, diff, lock, schema, tune),
    "Look and manage": (
        get,
        describe,
        doctor,
        versions,
        promote,
        rollback,
        clients,
        quarantine,
        upgrade_backbone,
        delete,
        info,
    ),
    "Take out again": (erase, verify_receipt),
    "Learn and use": (learn, predict, label, export),
}
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
app.add_typer(backbones, rich_help_panel="Declare")
app.add_typer(edge, rich_help_panel="Learn and use")
