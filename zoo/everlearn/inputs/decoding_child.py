"""The processes in which image files are decoded: `python -m everlearn.inputs.decoding_child`, started by `decoding`.

    parent --descriptors--> a nursery that has everything imported and sees no image --fork--> a decoder, confined
    parent --question on a socket--> decoder: reads the file and writes the pixels in memory that both share

A decoder that crashes, hangs or asks for too much is one decoder less; the next one is forked within milliseconds.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import sys
from dataclasses import asdict
from functools import lru_cache
from typing import Any, Final

import numpy as np
from PIL import Image

from everlearn.errors import EverlearnError
from everlearn.inputs.figures import figures_of
from everlearn.inputs.front import pixels_of
from everlearn.inputs.image import open_rgb
from everlearn.runtime.malloc import tune_malloc
from everlearn.runtime.process import become_background_child
from everlearn.runtime.sandbox import confine, limit_memory, mapped_bytes
from everlearn.values import FrontConfig

FILE_BYTES: Final = 4 * 2**20
"""The shared memory's first part, for the file: as large as any declaration allows."""
PIXELS_BYTES: Final = 1024 * 1024 * 3 * 4
"""The rest: as large as any trunk's input."""
MEMORY_BYTES: Final = FILE_BYTES + PIXELS_BYTES
QUESTION_BYTES: Final = 16 * 2**10
_LEAST_BYTES: Final = 512 * 2**20
_BYTES_A_PIXEL: Final = 24
"""RGBA of Pillow and its turned, its RGB and its cut copy, and NumPy's work on 16-bit channels."""
_CPU_S: Final = 2.0
_USUAL_PIXELS: Final = 16_777_216
_SOCKET, _MEMORY = 3, 4
"""Descriptors of a decoder; 0 to 2 lead nowhere."""


def main() -> None:
    """The nursery: forks a decoder for each pair of descriptors (socket, memory) that it is sent."""
    become_background_child(niceness=0)
    tune_malloc()
    Image.init()
    # Nobody waits for a decoder that ended; its parent sees it by the socket.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(fileno=os.dup(0)) as orders:
        while True:
            message, descriptors, _, _ = socket.recv_fds(orders, 16, 2)
            if not message:
                return
            pid = os.fork()
            if pid == 0:
                _be_a_decoder(*descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            orders.send(str(pid).encode())


def _be_a_decoder(connection: int, memory: int) -> None:
    try:
        become_background_child(niceness=0)
        nowhere = os.open(os.devnull, os.O_RDWR)
        kept = [os.dup(descriptor) for descriptor in (nowhere, nowhere, nowhere, connection, memory)]
        kept = [os.dup2(descriptor, 64 + place) for place, descriptor in enumerate(kept)]
        for place, descriptor in enumerate(kept):
            os.dup2(descriptor, place)
        os.closerange(_MEMORY + 1, 128)
        shared = mmap.mmap(_MEMORY, MEMORY_BYTES)
        questions = socket.socket(fileno=_SOCKET)
        mapped = mapped_bytes()
        walls = confine(open_files=_MEMORY + 1)
        questions.send(json.dumps({"walls": str(walls)}).encode())
        while question := questions.recv(QUESTION_BYTES):
            questions.send(_answer(question, shared, mapped))
    finally:
        os._exit(0)


def _answer(question: bytes, shared: mmap.mmap, mapped: int) -> bytes:
    size, told = int.from_bytes(question[:4], "little"), _told(question[4:])
    limits = told["limits"]
    share = max(1.0, limits["max_pixels"] / _USUAL_PIXELS)
    limit_memory(mapped + max(_LEAST_BYTES, _BYTES_A_PIXEL * limits["max_pixels"]))
    signal.setitimer(signal.ITIMER_PROF, _CPU_S * share)  # of CPU time; ends the process
    try:
        return json.dumps(_carry_out(told, shared, size, limits)).encode()
    except EverlearnError as error:
        return json.dumps({"error": [type(error).__name__, error.message]}).encode()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _carry_out(told: dict[str, Any], shared: mmap.mmap, size: int, limits: dict[str, Any]) -> dict[str, Any]:
    image = open_rgb(shared[:size], field="", **limits)
    if "front" not in told:
        return asdict(figures_of(np.asarray(image), field=""))
    front: FrontConfig = told["front"]
    shape = (3, front.height, front.width)
    out = np.frombuffer(shared, np.float32, count=int(np.prod(shape)), offset=FILE_BYTES).reshape(shape)
    pixels_of(image, front, out)
    return {}


@lru_cache(maxsize=64)
def _told(question: bytes) -> dict[str, Any]:
    """What is wanted, which is the same for all images of a model."""
    told: dict[str, Any] = json.loads(question)
    if "front" in told:
        front = told["front"]
        told["front"] = FrontConfig(**front | {"mean": tuple(front["mean"]), "std": tuple(front["std"])})
    return told


if __name__ == "__main__":
    main()
    sys.exit(0)
