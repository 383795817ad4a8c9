"""A TCP proxy that treats connections badly: cut, reset, late, silent, slow, held. One thread, asyncio.

with Proxy() as proxy: proxy.target = "127.0.0.1:8470"; ... a client of proxy.address ...; proxy.silence()
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

CHUNK = 1 << 16


class Proxy:
    """What holds for new connections and for those that stand; change it at any time, from any thread."""

    def __init__(self) -> None:
        self.target = ""
        """Address and port that is behind it."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._pairs: set[_Pair] = set()
        self.connections = 0
        """Since it began."""
        self.latency_s = 0.0
        """Each way."""
        self.bytes_a_second = float("inf")
        """Each way, of each connection."""
        self.refuses = False
        """New connections are reset."""
        self.holds_requests = self.holds_answers = False
        """What comes from clients, or goes to them, waits here, on connections that stand, until it does no more."""
        self.done = Counter[str]()
        """What was done to connections: `reset`, `cut`, `refused`, and messages that were `late` or `slow`."""
        self.passed_bytes = Counter[str]()
        """Written to either side: `requests`, `answers`."""
        self.address = ""

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._call(self._listen)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def reset(self) -> int:
        """Every connection ends with RST, on both sides; returns how many."""
        return self._each(_Pair.reset, "reset")

    def cut(self) -> int:
        """Every connection ends with FIN, on both sides."""
        return self._each(_Pair.close, "cut")

    def silence(self) -> int:
        """Half open: what stands goes on standing, and nothing comes through any more, nor ever will."""
        return self._each(_Pair.silence, "silenced")

    @property
    def silent_ends(self) -> int:
        """Ends of silenced connections that client or server have not closed by themselves."""
        return sum(2 - pair.ended for pair in list(self._pairs) if pair.is_silent)

    def _each(self, what: Callable[[_Pair], None], name: str) -> int:
        async def do() -> int:
            pairs = list(self._pairs)
            self.done[name] += len(pairs)
            for pair in pairs:
                what(pair)
            return len(pairs)

        return asyncio.run_coroutine_threadsafe(do(), self._loop).result(10)

    def _call(self, what: Callable[[], object]) -> asyncio.Server:
        return asyncio.run_coroutine_threadsafe(what(), self._loop).result(10)  # type: ignore[arg-type,no-any-return]

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=CHUNK)

    async def _close(self) -> None:
        self._server.close()
        for pair in list(self._pairs):
            pair.reset()
        await asyncio.sleep(0.05)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.refuses:
            self.done["refused"] += 1
            _reset(writer)
            return
        try:
            host, _, port = self.target.rpartition(":")
            far_reader, far_writer = await asyncio.open_connection(host, int(port), limit=CHUNK)
        except OSError:
            _reset(writer)
            return
        pair = _Pair(self, writer, far_writer)
        self._pairs.add(pair)
        try:
            await asyncio.gather(pair.pump(reader, far_writer, "requests"), pair.pump(far_reader, writer, "answers"))
        finally:
            self._pairs.discard(pair)
            pair.close()


class _Pair:
    """A client's connection and the one that was made for it."""

    def __init__(self, proxy: Proxy, *writers: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._writers = writers
        self.is_silent = False
        self.ended = 0
        """Of its two ends."""

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, what: str) -> None:
        """One way, until either end ends."""
        due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=64)
        sender = asyncio.create_task(self._send(due, writer, what))
        try:
            # Silent, it reads on and drops it: the sender's window stays open, as behind a NAT that has forgotten.
            while data := await reader.read(CHUNK):
                if not self.is_silent:
                    await due.put((asyncio.get_running_loop().time() + self._proxy.latency_s, data))
            if not self.is_silent:
                await due.put((0.0, b""))
                await sender
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.ended += 1
            sender.cancel()
            if not self.is_silent:
                self.close()

    async def _send(self, due: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, what: str) -> None:
        loop, done = asyncio.get_running_loop(), self._proxy.done
        while True:
            at_s, data = await due.get()
            done["late"] += bool(data and self._proxy.latency_s)
            await asyncio.sleep(max(0.0, at_s - loop.time()))
            while getattr(self._proxy, f"holds_{what}"):
                await asyncio.sleep(0.01)
            if not data or self.is_silent:
                return
            speed = self._proxy.bytes_a_second
            done["slow"] += speed != float("inf")
            size = len(data) if speed == float("inf") else max(1, int(speed / 20))
            for start in range(0, len(data), size):
                writer.write(data[start : start + size])
                self._proxy.passed_bytes[what] += len(data[start : start + size])
                await writer.drain()
                if size < len(data) or speed != float("inf"):
                    await asyncio.sleep(size / speed)

    def silence(self) -> None:
        self.is_silent = True

    def close(self) -> None:
        for writer in self._writers:
            writer.close()

    def reset(self) -> None:
        for writer in self._writers:
            _reset(writer)


def _reset(writer: asyncio.StreamWriter) -> None:
    plug = writer.get_extra_info("socket")
    if plug is not None and plug.fileno() >= 0:
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
