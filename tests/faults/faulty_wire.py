"""Faults of faulty_server.py that are on the wire.

unwalked          a broken server: parses whatever comes, as gRPC's generated handlers do
unnamed           a broken server: what is wrong with a name is an exception that nobody foresaw
unlimited         a broken server: one connection may begin any number of streams
hoarding          a broken server: keeps what it refuses
segfault          a broken server: a message that is no message brings it down
no_keepalive      a broken server: pings as gRPC does by itself, which is every two hours
brisk             no fault: pings ten times as often as it does, for tests that cannot wait
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable


def unwalked() -> None:
    from everlearn_server.rpc import prescan

    prescan.check = lambda data, kind: None


def unnamed() -> None:
    from everlearn.errors import InvalidError
    from everlearn_server.rpc import names

    careful = names.model_of

    def careless(name: str, *, field: str = "name") -> str:
        try:
            return careful(name, field=field)
        except InvalidError:
            raise KeyError(name) from None

    names.model_of = careless


def _on_refusal(act: Callable[[bytes], None]) -> None:
    from everlearn.errors import InvalidError
    from everlearn_server.rpc import prescan

    check = prescan.check

    def checked(data: bytes, kind: object) -> None:
        try:
            check(data, kind)
        except InvalidError:
            act(data)
            raise

    prescan.check = checked


def unlimited() -> None:
    from everlearn_server import app

    options = app._channel_options
    app._channel_options = lambda settings: [
        option for option in options(settings) if option[0] != "grpc.max_concurrent_streams"
    ]


def hoarding() -> None:
    kept: list[bytes] = []
    _on_refusal(lambda data: kept.append((data or b"x") * (1 + 2**20 // (len(data) or 1))))


def segfault() -> None:
    _on_refusal(lambda data: os.kill(os.getpid(), signal.SIGSEGV) if data[:1] == b"\xff" else None)


def no_keepalive() -> None:
    from everlearn_server import app

    app.KEEPALIVE = ()  # type: ignore[assignment]  # a tuple of pairs


def brisk() -> None:
    from everlearn_server import app

    app.KEEPALIVE = tuple((name, value // 10 if value > 1 else value) for name, value in app.KEEPALIVE)  # type: ignore[assignment]


FAULTS: dict[str, Callable[..., None]] = {
    "unwalked": unwalked,
    "unnamed": unnamed,
    "unlimited": unlimited,
    "hoarding": hoarding,
    "segfault": segfault,
    "no_keepalive": no_keepalive,
    "brisk": brisk,
}
