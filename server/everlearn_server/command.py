"""The command line of the server. `cli` sets the process up first and then loads this."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import structlog
import typer

import everlearn
from everlearn.errors import EverlearnError
from everlearn_server.app import Server
from everlearn_server.settings import Settings, from_environment
from everlearn_server.telemetry import configure_logging

app = typer.Typer(add_completion=False, no_args_is_help=False, pretty_exceptions_enable=False)
_logger = structlog.get_logger(__name__)


@app.command()
def serve(
    data: Annotated[Path | None, typer.Option(help="Data folder. [default: ./everlearn-data]")] = None,
    listen: Annotated[str | None, typer.Option(help="Address:port; port 0 takes a free one.")] = None,
    metrics_listen: Annotated[str | None, typer.Option(help="Address:port of Prometheus' /metrics.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that run trunks. [default: one a core]")] = None,
    queue_images: Annotated[int | None, typer.Option(min=1, help="Images that may wait. [default: 256]")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    hub_offline: Annotated[bool, typer.Option("--hub-offline", help="Use only cached backbones.")] = False,
    ready_file: Annotated[Path | None, typer.Option(help="Written when the server answers.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_json: Annotated[bool, typer.Option("--log-json", help="One JSON object a line.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Serve models that keep learning. Everything durable is in one data folder; stop with SIGTERM or Ctrl-C."""
    if version:
        typer.echo(everlearn.__version__)
        return
    flags = {
        "data_dir": data,
        "listen": listen,
        "metrics_listen": metrics_listen,
        "workers": workers,
        "queue_images": queue_images,
        "device": device,
        "ready_file": ready_file,
        "log_level": log_level,
        "hub_offline": hub_offline or None,
    }
    settings = _settings({name: value for name, value in flags.items() if value is not None}, log_json=log_json)
    configure_logging(settings.log_level, json=settings.log_json)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_run(settings))
    except EverlearnError as error:
        typer.echo(f"everlearn-server: {error.message}", err=True)
        raise typer.Exit(1) from None


def _settings(flags: dict[str, object], *, log_json: bool) -> Settings:
    values: dict[str, object] = {"data_dir": Path("everlearn-data"), **from_environment(os.environ), **flags}
    values["data_dir"] = Path(str(values["data_dir"])).absolute()
    values["hub_offline"] = str(values.get("hub_offline", "")).lower() in {"1", "true", "yes", "on"}
    if values.get("device", "cpu") not in {"cpu", "cuda"}:
        raise typer.BadParameter(f"device {values['device']!r} is unknown; use cpu or cuda")
    return Settings(log_json=log_json, **values)  # type: ignore[arg-type]  # names are checked by the dataclass


async def _run(settings: Settings) -> None:
    server = Server(settings)
    await server.start()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await stopping.wait()
    _logger.info("draining")
    await server.stop()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ModuleNotFoundError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
