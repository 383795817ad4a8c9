"""How sums with targets lie on disk: magic, length and JSON header, integers, the shared sums, sha256 of all before it.

8   b"EVLTGTS1"
4   uint32: bytes of the header
.   header: {"version", "dim", "names", "outputs", "sums", "squares", "cross_bytes"}
.   products of each target with each feature, row by row, `cross_bytes` a number, as in `_sums_format`
.   the shared sums, as `Sums.to_bytes` writes them
32  sha256
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from everlearn import _sums_format
from everlearn.errors import DataLossError
from everlearn.outputs import Output
from everlearn.sums import Sums

MAGIC: Final = b"EVLTGTS1"
VERSION: Final = 1
_DIGEST_BYTES: Final = 32


@dataclass(frozen=True, kw_only=True)
class State:
    """What is stored."""

    shared: Sums
    names: list[str]
    outputs: tuple[Output, ...]
    sum_K: npt.NDArray[np.int64]
    square_K: npt.NDArray[np.int64]
    cross_Kd: npt.NDArray[np.float64]


def dump(state: State) -> bytes:
    """Bytes of a state."""
    width, planes = _sums_format.pack(state.cross_Kd.astype(np.int64).ravel())
    header = json.dumps(
        {
            "version": VERSION,
            "dim": state.shared.dim,
            "names": state.names,
            "outputs": [asdict(output) for output in state.outputs],
            "sums": state.sum_K.tolist(),
            "squares": state.square_K.tolist(),
            "cross_bytes": width,
        }
    ).encode()
    body = b"".join([MAGIC, struct.pack("<I", len(header)), header, *planes, state.shared.to_bytes()])
    return body + hashlib.sha256(body).digest()


def parse(data: bytes) -> State:
    """What `dump` wrote; DataLossError for anything else."""
    if not data.startswith(MAGIC) or len(data) < len(MAGIC) + 4 + _DIGEST_BYTES:
        raise DataLossError("these bytes are not a memory of targets: they do not begin as one")
    body, seal = memoryview(data)[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != seal:
        raise DataLossError("these bytes are damaged: their sha256 is not the one they end with")
    try:
        return _parse_sealed(body)
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise DataLossError(f"these bytes are sealed but not a memory of targets: {error}") from error


def _parse_sealed(body: memoryview) -> State:
    start = len(MAGIC) + 4
    end = start + struct.unpack("<I", body[len(MAGIC) : start])[0]
    header = json.loads(bytes(body[start:end]))
    if header["version"] != VERSION:
        raise ValueError(f"version {header['version']}; this release reads version {VERSION}")
    names = [str(name) for name in header["names"]]
    sum_K, square_K = np.array(header["sums"], np.int64), np.array(header["squares"], np.int64)
    outputs = tuple(Output(**each) for each in header["outputs"])
    if sum_K.shape != (len(names),) or square_K.shape != (len(names),) or len(set(names)) < len(names):
        raise ValueError("its header contradicts itself")
    if outputs and [each.name for each in outputs] != names:
        raise ValueError("its outputs are not its targets")
    cross, end = _sums_format.unpack(body, end, len(names) * int(header["dim"]), header["cross_bytes"])
    shared = Sums.from_bytes(bytes(body[end:]))
    cross_Kd = cross.reshape(len(names), shared.dim)
    return State(shared=shared, names=names, outputs=outputs, sum_K=sum_K, square_K=square_K, cross_Kd=cross_Kd)
