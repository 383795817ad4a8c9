"""A client of the Open Inference Protocol in a process of its own: grpc.aio on uvloop, raw tensors as tritonclient's.

    python -m tests.benchmarks.oip_load ADDRESS MODEL SIZE

Reads `CONCURRENCY SECONDS` from stdin, line by line, and answers each with one line of JSON: seconds, latencies_ms.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import grpc
import numpy as np
import uvloop

from everlearn_protos.oip import SERVICE, message

INT32_MAX = 2**31 - 1


async def _main(address: str, model: str, size: int) -> None:
    # tritonclient's own limits.
    options = [("grpc.max_send_message_length", INT32_MAX), ("grpc.max_receive_message_length", INT32_MAX)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=message("ModelInferRequest").SerializeToString,
            response_deserializer=message("ModelInferResponse").FromString,
        )
        raw = np.random.default_rng(0).standard_normal((1, 3, size, size)).astype("<f4").tobytes()
        for line in sys.stdin:
            concurrency, seconds = line.split()
            took_s, latencies_ms = await _load(call, model, size, raw, int(concurrency), float(seconds))
            sys.stdout.write(json.dumps({"seconds": took_s, "latencies_ms": latencies_ms}) + "\n")
            sys.stdout.flush()


async def _load(
    call: grpc.aio.UnaryUnaryMultiCallable,  # type: ignore[type-arg]  # classes made at run time
    model: str,
    size: int,
    raw: bytes,
    concurrency: int,
    seconds: float,
) -> tuple[float, list[float]]:
    """Each of `concurrency` callers sends its next request when the last is answered."""
    latencies_ms: list[float] = []
    begun_s = time.perf_counter()

    async def caller() -> None:
        while time.perf_counter() - begun_s < seconds:
            request = message("ModelInferRequest")(model_name=model, raw_input_contents=[raw])
            request.inputs.add(name="pixels", datatype="FP32", shape=[1, 3, size, size])
            request.outputs.add(name="scores")
            sent_s = time.perf_counter()
            response = await call(request)
            latencies_ms.append((time.perf_counter() - sent_s) * 1e3)
            if len(response.raw_output_contents) != 1:
                raise RuntimeError("the answer has no scores")

    await asyncio.gather(*(caller() for _ in range(concurrency)))
    return time.perf_counter() - begun_s, latencies_ms


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
