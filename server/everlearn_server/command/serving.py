"""`everlearn-server` without a command: serves."""

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
from everlearn.runtime.hardening import is_hardened, observed
from everlearn_server.app import Server
from everlearn_server.settings import Settings, load_settings
from everlearn_server.telemetry import configure_logging

_logger = structlog.get_logger(__name__)


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
    working_set_bytes: Annotated[int | None, typer.Option(help="Of models at rest, in RAM. (default: 1 GiB)")] = None,
    max_message_bytes: Annotated[int | None, typer.Option(help="Largest OIP request. (default: 16 MiB)")] = None,
    min_free_bytes: Annotated[int | None, typer.Option(help="Floor of free disk space. (default: 128 MiB)")] = None,
    hub_offline: Annotated[bool | None, typer.Option(help="Use only cached backbones.")] = None,
    hub_cache: Annotated[Path | None, typer.Option(help="Fetched files. (default: hub in the data folder)")] = None,
    ready_file: Annotated[Path | None, typer.Option(help="Written when the server answers.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error. (default: info)")] = None,
    log_json: Annotated[bool | None, typer.Option(help="One JSON object a line.")] = None,
    heartbeat_bytes: Annotated[int | None, typer.Option(help="Of learners, 0 for none. (default: 136 KiB)")] = None,
    image_decoding: Annotated[str | None, typer.Option(help="apart or here. (default: apart)")] = None,
    unhardened: Annotated[bool | None, typer.Option("--unhardened", help="For profilers: wipe no memory.")] = None,
    grace_s: Annotated[float | None, typer.Option(help="Seconds that calls may take to end. (default: 5)")] = None,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Serve models that keep learning. Everything durable is in one data folder; stop with SIGTERM or Ctrl-C. Without a
    command it serves; the commands below tend a data folder.

    Each option is also a variable: EVERLEARN_ and its name, e.g. EVERLEARN_QUEUE_IMAGES. The hub is steered by
    HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE.
    """
    if ctx.invoked_subcommand is not None:
        return
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
    _serve(settings)


def _serve(settings: Settings) -> None:
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_run(settings))
    except EverlearnError as error:
        typer.echo(f"everlearn-server: {error.message}", err=True)
        raise typer.Exit(1) from None


async def _run(settings: Settings) -> None:
    server = Server(settings, protection=_protection(settings))
    await server.start()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await stopping.wait()
    _logger.info("draining")
    await server.stop()


def _protection(settings: Settings) -> dict[str, str]:
    """What keeps raw data from staying behind in this process; what does not is said in the log."""
    protection = observed(os.environ)
    if not is_hardened(protection):
        why = "asked for with --unhardened" if settings.unhardened else "this system lacks something"
        _logger.warning("raw data may stay behind", why=why, **protection)
    return protection


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ModuleNotFoundError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
