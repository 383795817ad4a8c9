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
from everlearn.errors import EverlearnError, InvalidError
from everlearn_server.app import Server
from everlearn_server.settings import Settings, load_settings
from everlearn_server.telemetry import configure_logging

app = typer.Typer(add_completion=False, no_args_is_help=False, pretty_exceptions_enable=False)
_logger = structlog.get_logger(__name__)


@app.command()
def serve(
    ctx: typer.Context,
    data: Annotated[Path | None, typer.Option(help="Data folder. (default: ./everlearn-data)")] = None,
    listen: Annotated[str | None, typer.Option(help="Address:port; 0 takes a free port.")] = None,
    metrics_listen: Annotated[str | None, typer.Option(help="Address:port of Prometheus' /metrics.")] = None,
    workers: Annotated[int | None, typer.Option(help="Threads that run trunks. (default: one a core)")] = None,
    queue_images: Annotated[int | None, typer.Option(help="Images that may wait. (default: 256)")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. (default: cpu)")] = None,
    max_batch: Annotated[int | None, typer.Option(help="Images in one trunk pass. (default: cpu 1, cuda 32)")] = None,
    commit_share: Annotated[float | None, typer.Option(help="Share of time for commits. (default: 0.1)")] = None,
    max_message_bytes: Annotated[int | None, typer.Option(help="Largest OIP request. (default: 16 MiB)")] = None,
    hub_offline: Annotated[bool | None, typer.Option(help="Use only cached backbones.")] = None,
    hub_cache: Annotated[Path | None, typer.Option(help="Fetched files. (default: hub in the data folder)")] = None,
    ready_file: Annotated[Path | None, typer.Option(help="Written when the server answers.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error. (default: info)")] = None,
    log_json: Annotated[bool | None, typer.Option(help="One JSON object a line.")] = None,
    grace_s: Annotated[float | None, typer.Option(help="Seconds that calls may take to end. (default: 5)")] = None,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Serve models that keep learning. Everything durable is in one data folder; stop with SIGTERM or Ctrl-C.

    Each option is also a variable: EVERLEARN_ and its name, e.g. EVERLEARN_QUEUE_IMAGES. The hub is steered by
    HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE.
    """
    if version:
        typer.echo(everlearn.__version__)
        return
    # Every option but two is a setting of the same name.
    flags = {name: value for name, value in ctx.params.items() if name not in ("data", "version")}
    try:
        settings = load_settings({"data_dir": data, **flags}, os.environ)
    except InvalidError as error:
        typer.echo(f"everlearn-server: {error.message}; see --help", err=True)
        raise typer.Exit(2) from None
    configure_logging(settings.log_level, json=settings.log_json)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_run(settings))
    except EverlearnError as error:
        typer.echo(f"everlearn-server: {error.message}", err=True)
        raise typer.Exit(1) from None


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
