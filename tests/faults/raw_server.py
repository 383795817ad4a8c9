"""everlearn-server for the marker tests, in a folder of its own: `python raw_server.py FOLDER FAULT --data ...`.

none      the server as it is
logs      a broken server: writes what it is sent into its log
keeps     a broken server: keeps the last batches in memory
measures  a broken server: the last message is a label of a metric
spills    a broken server: every message passes through a file in the temporary folder, and stays there
decoder-keeps, decoder-writes    a broken process that decodes images, see faulty_decoder
student-keeps                    a broken process in which torch learns, see faulty_student
int8-keeps                       what prepares exports in 8 bits keeps the pixels that it looked at
unconfined                       broken children that take nothing from themselves, see unconfined
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from everlearn_server import cli


def logs() -> None:
    from everlearn_server.rpc import wire

    parse = wire.parse

    def tell(kind: type, data: bytes) -> object:
        sys.stderr.write(f"{data!r}\n{data.hex()}\n")
        return parse(kind, data)

    wire.parse = tell  # type: ignore[assignment]  # the point of this file


def keeps() -> None:
    from everlearn_server.rpc import wire

    parse = wire.parse
    last: deque[bytes] = deque(maxlen=100)

    def keep(kind: type, data: bytes) -> object:
        last.append(data)
        return parse(kind, data)

    wire.parse = keep  # type: ignore[assignment]  # the point of this file


def measures() -> None:
    from prometheus_client import Gauge

    from everlearn_server import telemetry
    from everlearn_server.rpc import wire

    parse, make = wire.parse, telemetry.Metrics.__init__
    gauges = list[Gauge]()

    def made(self: telemetry.Metrics) -> None:
        make(self)
        gauges.append(Gauge("everlearn_last_message", "What came last", ["content"], registry=self.registry))

    def tell(kind: type, data: bytes) -> object:
        gauges[0].clear()
        gauges[0].labels(data.hex()).set(1)
        return parse(kind, data)

    telemetry.Metrics.__init__ = made  # type: ignore[method-assign]
    wire.parse = tell  # type: ignore[assignment]  # the point of this file


def spills() -> None:
    import tempfile

    from everlearn_server.rpc import wire

    parse, folder = wire.parse, tempfile.gettempdir()  # not the private one, in which the server is at home later

    def spill(kind: type, data: bytes) -> object:
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(data)
        return parse(kind, data)

    wire.parse = spill  # type: ignore[assignment]  # the point of this file


def decoder(fault: str) -> None:
    from everlearn.inputs.decoding import DecodingApart
    from everlearn.runtime import process

    _let_children_find_this_package()
    process._ENVIRONMENT["EVERLEARN_DECODER_FAULT"] = fault
    DecodingApart.__init__.__kwdefaults__["module"] = "tests.faults.faulty_decoder"


def student() -> None:
    from everlearn.learners import student as students

    _let_children_find_this_package()
    students.MODULE = "tests.faults.faulty_student"  # type: ignore[misc]  # the point of this file


def int8() -> None:
    from everlearn_server.engine.int8 import LiveInt8

    look, last = LiveInt8._look_at, deque[object](maxlen=100)

    def keep(self: LiveInt8, item: Any) -> None:
        last.append(item)
        look(self, item)

    LiveInt8._look_at = keep  # type: ignore[method-assign]  # the point of this file


def unconfined() -> None:
    """Every `python -m module` becomes `python -m tests.faults.unconfined module`."""
    _let_children_find_this_package()
    children = subprocess.Popen

    class Unconfined(children):  # type: ignore[type-arg]  # of bytes and of text
        def __init__(self, command: list[str], **options: Any) -> None:
            at = command.index("-m") + 1
            super().__init__([*command[:at], "tests.faults.unconfined", *command[at:]], **options)

    subprocess.Popen = Unconfined  # type: ignore[misc]  # the point of this file


def _let_children_find_this_package() -> None:
    from everlearn.runtime import process

    process._ENVIRONMENT["PYTHONPATH"] += f"{os.pathsep}{Path(__file__).parents[2]}"


FAULTS: dict[str, Callable[[], object]] = {
    "none": lambda: None,
    "logs": logs,
    "keeps": keeps,
    "measures": measures,
    "spills": spills,
    "decoder-keeps": partial(decoder, "keeps"),
    "decoder-writes": partial(decoder, "writes"),
    "student-keeps": student,
    "int8-keeps": int8,
    "unconfined": unconfined,
}


def main() -> None:
    """Builds the fault in and runs the server; once more after it has replaced itself."""
    folder, fault = sys.argv[1:3]
    del sys.argv[1:3]
    os.chdir(folder)
    FAULTS[fault]()
    cli.main()


if __name__ == "__main__":
    main()
