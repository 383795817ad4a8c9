"""Image files to pixels, by processes that may do nothing else: the server hands a file over and never reads it itself.

One decoder works for one caller at a time; each has memory of its own that it shares with this process. After every
image what was used of that memory is overwritten.

Axes: 3 channels, h w of the trunk.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol

import numpy as np

from everlearn import errors
from everlearn.errors import InputError, PayloadTooLargeError, UnavailableError
from everlearn.inputs import image
from everlearn.inputs.decoding_child import FILE_BYTES, MEMORY_BYTES, PIXELS_BYTES, QUESTION_BYTES
from everlearn.inputs.figures import ImageFigures, figures_of
from everlearn.inputs.front import PixelsCHW, pixels_of
from everlearn.runtime.process import child_environment
from everlearn.values import FrontConfig

MODULE: Final = "everlearn.inputs.decoding_child"
KINDS: Final = ("apart", "here")
_START_S: Final = 30.0
_LIVES: Final = 2
"""Decoders that one image may cost: the first may have been ended by something else."""


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """Of what is accepted."""

    encodings: tuple[str, ...]
    max_bytes: int
    max_pixels: int


class ImageDecoding(Protocol):
    """Whoever turns image files into pixels. Thread-safe."""

    @property
    def walls(self) -> str:
        """Where it is done, and behind what."""
        ...

    def pixels(self, file: bytes, front: FrontConfig, limits: ImageLimits, *, field: str) -> PixelsCHW:
        """float32 [3, h, w]. Raises InputError, PayloadTooLargeError that name the field."""
        ...

    def figures(self, file: bytes, limits: ImageLimits, *, field: str) -> ImageFigures:
        """Of the image before it is resized. Raises as `pixels`."""
        ...

    def close(self) -> None:
        """Ends what it has started."""
        ...


class DecodingHere:
    """In this very process: for profilers, and where nothing hostile comes in."""

    @property
    def walls(self) -> str:
        """See ImageDecoding."""
        return "in the server itself"

    def pixels(self, file: bytes, front: FrontConfig, limits: ImageLimits, *, field: str) -> PixelsCHW:
        """See ImageDecoding."""
        opened = image.open_rgb(file, **asdict(limits), field=field)
        try:
            return pixels_of(opened, front)
        except errors.EverlearnError as error:
            error.field = error.field or field
            raise

    def figures(self, file: bytes, limits: ImageLimits, *, field: str) -> ImageFigures:
        """See ImageDecoding."""
        return figures_of(image.decode(file, **asdict(limits), field=field), field=field)

    def close(self) -> None:
        """See ImageDecoding."""


class DecodingApart:
    """In confined processes, at most `decoders` of them, started when they are needed."""

    def __init__(
        self,
        decoders: int,
        *,
        timeout_s: float = 60.0,
        module: str = MODULE,
        tell: Callable[[str], object] = lambda walls: None,
    ) -> None:
        """`timeout_s`: longest answer by the clock; the decoder's own limit is of CPU time, and far shorter. `tell`:
        called once with what confines the decoders, when there is one."""
        self._timeout_s = timeout_s
        self._module = module
        self._tell = tell
        self._lock = threading.Lock()
        self._room = threading.Semaphore(decoders)
        self._idle: list[_Decoder] = []
        self._nursery: _Nursery | None = None
        self._closed = False
        self._walls = ""

    @property
    def walls(self) -> str:
        """See ImageDecoding."""
        return f"in processes of its own, behind {self._walls}" if self._walls else "in processes of its own, none yet"

    def pixels(self, file: bytes, front: FrontConfig, limits: ImageLimits, *, field: str) -> PixelsCHW:
        """See ImageDecoding."""
        shape = (3, front.height, front.width)
        if 4 * int(np.prod(shape)) > PIXELS_BYTES:
            raise PayloadTooLargeError(f"a trunk of {front.height} x {front.width} pixels is too large", field=field)
        pixels_3hw = np.empty(shape, np.float32)
        self._ask(file, {"limits": asdict(limits), "front": asdict(front)}, limits, field, into=pixels_3hw)
        return pixels_3hw

    def figures(self, file: bytes, limits: ImageLimits, *, field: str) -> ImageFigures:
        """See ImageDecoding."""
        return ImageFigures(**self._ask(file, {"limits": asdict(limits)}, limits, field))

    def close(self) -> None:
        """See ImageDecoding. Whoever is being answered is answered."""
        with self._lock:
            self._closed = True
            for decoder in self._idle:
                decoder.close()
            self._idle.clear()
            if self._nursery is not None:
                self._nursery.close()

    def _ask(
        self, file: bytes, told: dict[str, Any], limits: ImageLimits, field: str, into: PixelsCHW | None = None
    ) -> dict[str, Any]:
        image.check_size(file, max_bytes=min(limits.max_bytes, FILE_BYTES), field=field)
        with self._room:
            for _ in range(_LIVES):
                decoder = self._take()
                answer = decoder.ask(file, told, into)
                if answer is not None:
                    self._give(decoder)
                    break
                decoder.close()
            else:
                raise InputError(
                    "the image ended its decoder, by a crash or for taking too much time or memory; send another",
                    field=field,
                )
        if "error" in answer:
            kind, message = answer["error"]
            error: errors.EverlearnError = getattr(errors, kind)(message, field=field)
            raise error
        return answer

    def _take(self) -> _Decoder:
        with self._lock:
            if self._closed:
                raise UnavailableError("the server is stopping; reconnect")
            if self._idle:
                return self._idle.pop()
            decoder = self._forked()
            if not self._walls:
                self._walls = decoder.walls
                self._tell(decoder.walls)
            return decoder

    def _forked(self) -> _Decoder:
        if self._nursery is not None:
            try:
                return self._nursery.fork(self._timeout_s)
            except UnavailableError:  # it has ended: by whoever ends processes where memory is short
                self._nursery = None
        self._nursery = _Nursery(self._module)
        return self._nursery.fork(self._timeout_s)

    def _give(self, decoder: _Decoder) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(decoder)
                return
        decoder.close()


class _Nursery:
    """The process that the decoders are forked from."""

    def __init__(self, module: str) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._orders.settimeout(_START_S)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=child_environment(),
            )

    def fork(self, timeout_s: float) -> _Decoder:
        """Raises UnavailableError where no decoder can be had."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        memory = os.memfd_create("decoder", os.MFD_CLOEXEC)
        try:
            os.ftruncate(memory, MEMORY_BYTES)
            socket.send_fds(self._orders, [b"fork"], [theirs.fileno(), memory])
            pid = int(self._orders.recv(16) or b"0")
            if not pid:
                raise OSError("the process that starts decoders has ended")
            theirs.close()
            return _Decoder(pid, ours, mmap.mmap(memory, MEMORY_BYTES), timeout_s)
        except (OSError, EOFError) as error:
            ours.close()
            self.close()
            raise UnavailableError(f"no decoder of images can be started: {error}") from error
        finally:
            theirs.close()
            os.close(memory)

    def close(self) -> None:
        self._orders.close()
        self._process.kill()
        self._process.wait()


class _Decoder:
    """One confined process, and the memory that is shared with it."""

    def __init__(self, pid: int, connection: socket.socket, shared: mmap.mmap, timeout_s: float) -> None:
        """Raises EOFError where it has not come up."""
        self._pid = pid
        self._connection = connection
        self._shared = shared
        connection.settimeout(_START_S)
        told = connection.recv(QUESTION_BYTES)
        if not told:
            raise EOFError("it ended at its start")
        self.walls: str = json.loads(told)["walls"]
        connection.settimeout(timeout_s)

    def ask(self, file: bytes, told: dict[str, Any], into: PixelsCHW | None) -> dict[str, Any] | None:
        """What it answers; None where it has ended or does not answer in time. Pixels are copied to `into`."""
        self._shared[: len(file)] = file
        try:
            self._connection.send(len(file).to_bytes(4, "little") + json.dumps(told).encode())
            answered = self._connection.recv(QUESTION_BYTES)
        except OSError:  # TimeoutError too
            return None
        if not answered:
            return None
        answer: dict[str, Any] = json.loads(answered)
        if into is not None:
            shared_N = np.frombuffer(self._shared, np.float32, count=into.size, offset=FILE_BYTES)
            if "error" not in answer:
                into[...] = shared_N.reshape(into.shape)
            shared_N.fill(0)
        np.frombuffer(self._shared, np.uint8, count=len(file)).fill(0)
        return answer

    def close(self) -> None:
        """Ends it; the memory goes with it."""
        try:
            # While the connection is open this is no other process, or nothing is lost by it: it runs as we do.
            if self._is_there():
                os.kill(self._pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._connection.close()
        self._shared.close()

    def _is_there(self) -> bool:
        """Not yet ended: then its number cannot be another's."""
        self._connection.setblocking(False)
        try:
            return self._connection.recv(1) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False
