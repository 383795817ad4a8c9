"""Loads CUDA and cuDNN out of NVIDIA's wheels before ONNX Runtime asks for them; torch is not needed for that.

torch's wheels bring the libraries to `nvidia/*/lib` in site-packages, where the system's loader does not look. What is
loaded once is found again by its name, so they are loaded by their path first. ONNX Runtime knows which it needs and in
which order (`onnxruntime.preload_dlls`), and tells what it misses by printing; here that becomes an error.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import sys
from typing import Final

import onnxruntime as ort

from everlearn.errors import UnavailableError

DRIVER: Final = "libcuda.so.1"
CUDNN: Final = "libcudnn.so.9"
"""What ONNX Runtime opens by itself at the first convolution; it neither links it nor says that it is not there."""
_FAILED: Final = "Failed to load "


@functools.cache
def load_cuda_libraries() -> None:
    """Before the first session on CUDA; once is enough, and a failure is tried again.

    Raises UnavailableError which names every library that cannot be loaded, and what brings it.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        ort.preload_dlls()
    if not sys.platform.startswith("linux"):  # other names; there the session itself says what it misses
        return
    missing = [name for name in (DRIVER, *_named(said.getvalue()), CUDNN) if not _loads(name)]
    if not missing:
        return
    cures = []
    if DRIVER in missing:
        cures.append(f"{DRIVER} is NVIDIA's driver, which a container has to be given (docker run --gpus all)")
    if missing != [DRIVER]:
        others = "the others come" if DRIVER in missing else "they come"
        cures.append(f"{others} with everlearn[server-gpu]: onnxruntime-gpu[cuda,cudnn], and torch of the same CUDA")
    raise UnavailableError(f"CUDA cannot be used, for these cannot be loaded: {', '.join(missing)}; {'; '.join(cures)}")


def _named(said: str) -> tuple[str, ...]:
    """Files that ONNX Runtime could not load where it looked first; the loader may know them from elsewhere."""
    lines = [line.removeprefix(_FAILED) for line in said.splitlines() if line.startswith(_FAILED)]
    return tuple(dict.fromkeys(line.partition(":")[0].rpartition("/")[2] for line in lines))


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
