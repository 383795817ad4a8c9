"""The work of `edge run`: records go out while a device answers, and it ends in order."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn_client.cli.output import say
from everlearn_client.errors import DeadlineExceeded, InvalidArgument, Overloaded, Unavailable

if TYPE_CHECKING:
    from everlearn_client.edge import EdgeModel
    from everlearn_client.edge.folder_source import FolderSource
    from everlearn_client.edge.runtime import Runtime

# As in `edge`: what loads ONNX Runtime is imported where it is used.

POLL_S = 0.25
"""Between two looks at the folder."""
_PASSING = (Unavailable, Overloaded, DeadlineExceeded)


class Records:
    """Records as lines of JSON, each on its way at once. Where nobody reads them any more, it is time to end."""

    def __init__(self, ended: list[int]) -> None:
        self._ended = ended

    def __call__(self, record: dict[str, Any]) -> None:
        """Writes one."""
        try:
            sys.stdout.write(json.dumps(record, allow_nan=False) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            # What Python itself writes out at its end has to go somewhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self._ended.append(signal.SIGPIPE)


def work(device: EdgeModel, runtime: Runtime, source: FolderSource | Path, ended: list[int], *, once: bool) -> None:
    """Answers what appears in a folder until a signal comes or, with `once`, until all of it was read; or what stands
    in a file of lines, or on standard input, to its end."""
    if isinstance(source, Path):
        _work_lines(device, runtime, source, ended, once=once)
    else:
        _work_files(device, runtime, source, ended, once=once)


def _work_files(device: EdgeModel, runtime: Runtime, files: FolderSource, ended: list[int], *, once: bool) -> None:
    try:
        _first_version(device, once=once)
        if not once:
            device.start()
        while not ended:
            count = runtime.step(lambda: bool(ended))
            if once and not files.settling:
                break
            if not count:
                time.sleep(POLL_S)
        if once and not ended and device.spool.samples:
            _send(device)
    finally:
        device.close()
    say(f"{runtime.answered} files answered, {runtime.failed} failed; {device.spool.samples} samples wait")


def _work_lines(device: EdgeModel, runtime: Runtime, source: Path, ended: list[int], *, once: bool) -> None:
    """A text a line, to the end of them; before there is a model, they wait where they are."""
    from everlearn_client.edge.line_source import lines, opened
    from everlearn_client.edge.texts import read_line

    try:
        with opened(source) as descriptor:
            _first_version(device, once=once)
            if not once:
                device.start()
            while not device.version and not ended:
                time.sleep(POLL_S)
            if device.version and not device.takes_texts:
                raise InvalidArgument(
                    "the model takes no texts, so no lines of them; give a folder of its samples", field="--source"
                )
            for number, line in lines(descriptor, lambda: bool(ended)):
                runtime.line(str(source), read_line(line, number))
        if not ended and device.spool.samples:
            _send(device)
    finally:
        device.close()
    say(f"{runtime.answered} texts answered, {runtime.failed} failed; {device.spool.samples} samples wait")


def _send(device: EdgeModel) -> None:
    try:
        device.flush()
    except _PASSING as error:
        say(f"not sent yet: {error.message}", style="yellow")


def _first_version(device: EdgeModel, *, once: bool) -> None:
    """Where nothing is installed yet, or nobody will ask later, the server is asked now. One that is away is waited for
    if there is time; one that has no such model, or does not let the device in, ends it."""
    if device.version and not once:
        return
    try:
        device.pull()
    except _PASSING as error:
        if once and not device.version:
            raise
        say(f"no new version yet: {error.message}", style="yellow")
