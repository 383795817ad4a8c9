"""A client over HTTP in a process of its own, for servers that speak no gRPC: one image a request, base64 in JSON.

    python -m tests.benchmarks.http_load HOST:PORT SIZE

Reads `CONCURRENCY SECONDS` from stdin and answers as `oip_load` does. Connections stay open, one a caller, over
asyncio's streams on uvloop: no client library that would be measured too.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time

import numpy as np
import uvloop


async def _main(address: str, size: int) -> None:
    raw = np.random.default_rng(0).standard_normal((1, 3, size, size)).astype("<f4").tobytes()
    body = json.dumps({"data": base64.b64encode(raw).decode()}).encode()
    fields = {"Host": address, "Content-Type": "application/json", "Content-Length": len(body)}
    told = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    head = f"POST /predict HTTP/1.1\r\n{told}\r\n"
    for line in sys.stdin:
        concurrency, seconds = line.split()
        took_s, latencies_ms = await _load(address, head.encode() + body, int(concurrency), float(seconds))
        sys.stdout.write(json.dumps({"seconds": took_s, "latencies_ms": latencies_ms}) + "\n")
        sys.stdout.flush()


async def _load(address: str, request: bytes, concurrency: int, seconds: float) -> tuple[float, list[float]]:
    latencies_ms: list[float] = []
    host, _, port = address.rpartition(":")
    begun_s = time.perf_counter()

    async def caller() -> None:
        reader, writer = await asyncio.open_connection(host, int(port), limit=2**24)
        while time.perf_counter() - begun_s < seconds:
            sent_s = time.perf_counter()
            writer.write(request)
            await _answer(reader)
            latencies_ms.append((time.perf_counter() - sent_s) * 1e3)
        writer.close()

    await asyncio.gather(*(caller() for _ in range(concurrency)))
    return time.perf_counter() - begun_s, latencies_ms


async def _answer(reader: asyncio.StreamReader) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = head.split(b" ", 2)[1]
    if b"transfer-encoding: chunked" in head:
        while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
            await reader.readexactly(size + 2)
        await reader.readuntil(b"\r\n")
    else:
        await reader.readexactly(int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0]))
    if status != b"200":
        raise RuntimeError(f"the answer has status {status.decode()}")


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(sys.argv[1], int(sys.argv[2])))
