"""Features of single samples, sealed: what a memory of latents is at rest.

Rows of one client are sealed together, under a key that only the owner of the keys knows (`Sealer`); who destroys a
key makes that client's rows unreadable wherever the key has not been copied to, too. What stays readable are counts,
options, and names of labels and clients. The sums of a class that `herding` keeps are of no single client and are
sealed under the name "". Latents are personal data: inputs can be rebuilt from them (Dosovitskiy & Brox 2016).

Axes: N rows, n rows of one client, d features.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from everlearn.errors import DataLossError
from everlearn.memories import _state
from everlearn.memories.latents import KIND

SEALED: Final = "sealed_latents"
NOBODY: Final = ""
"""In the place of a client, for what is of no single one."""
_ROWS: Final = ("code", "class", "arrival", "time_s", "score")
_PLAIN: Final = ("shift", "seen")
_PLACE: Final = np.dtype("<i8")

Arrays = Mapping[str, npt.NDArray[Any]]


class Sealer(Protocol):
    """Who has the keys. One thread at a time."""

    def seal(self, client: str, plain: bytes) -> bytes | None:
        """None where the client's key was destroyed: what is of it is not to be at rest any more."""

    def unseal(self, client: str, sealed: bytes) -> bytes | None:
        """What `seal` was given; None where the client's key was destroyed. Raises DataLossError for other bytes."""

    def renew(self, client: str) -> None:
        """The client's key goes: what it sealed opens no more, and what comes of the client later gets another."""


def seal(data: bytes, sealer: Sealer | None) -> bytes:
    """Bytes of a memory for rest: of latents sealed, of others (sums and counts) as they are; so without a sealer.

    Raises DataLossError for bytes that are not a memory.
    """
    if sealer is None or _kind(data) != KIND:
        return data
    state, arrays = _state.parse(KIND, data)
    rows: Arrays = {name: _little(arrays[name]) for name in _ROWS if name in arrays}
    means = {name: _little(array) for name, array in arrays.items() if name not in (*rows, *_PLAIN, "client")}
    parts: list[tuple[str, str, bytes]] = []
    by_client = np.argsort(arrays["client"], kind="stable")
    ends = np.searchsorted(arrays["client"][by_client], np.arange(len(state["clients"]) + 1))
    for number, client in enumerate(state["clients"]):
        plain = _joined(by_client[ends[number] : ends[number + 1]], rows)
        if (sealed := sealer.seal(client, plain)) is not None:
            parts.append(("rows", client, sealed))
    if means and (sealed := sealer.seal(NOBODY, b"".join(array.tobytes() for array in means.values()))) is not None:
        parts.append(("means", NOBODY, sealed))
    told = {
        "state": state,
        "order": list(arrays),
        "rows": {name: [array.dtype.str, array.shape[1:]] for name, array in rows.items()},
        "means": {name: [array.dtype.str, array.shape] for name, array in means.items()},
        "parts": [[what, client, len(sealed)] for what, client, sealed in parts],
    }
    blob = np.frombuffer(b"".join(sealed for _, _, sealed in parts), np.uint8)
    return _state.dump(SEALED, told, {**{name: arrays[name] for name in _PLAIN}, "sealed": blob})


def unseal(data: bytes, sealer: Sealer | None) -> bytes:
    """Bytes of the memory, without the rows of clients whose keys were destroyed.

    Bytes that were never sealed come back as they are. Raises DataLossError, for sealed ones without a sealer too.
    """
    if _kind(data) != SEALED:
        return data
    if sealer is None:
        raise DataLossError("these latents are sealed, and nobody here has the keys")
    told, arrays = _state.parse(SEALED, data)
    with _state.sealed():
        state, blob, end = told["state"], arrays["sealed"].tobytes(), 0
        number_of = {client: number for number, client in enumerate(state["clients"])}
        columns = {name: (np.dtype(dtype), tuple(shape)) for name, (dtype, shape) in told["rows"].items()}
        parts: list[dict[str, Any]] = [_split(b"", columns, 0)]
        means: dict[str, Any] = {}
        for what, client, size in told["parts"]:
            plain = sealer.unseal(client, blob[end : end + size])
            end += size
            if plain is None:
                continue
            if what == "means":
                means = _means(plain, told["means"])
            else:
                parts.append(_split(plain, columns, number_of[client]))
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        order = np.argsort(joined.pop("place"), kind="stable")
        rows = {name: column[order] for name, column in joined.items()}
        whole = {**{name: arrays[name] for name in _PLAIN}, **rows, **means}
    return _state.dump(KIND, state, {name: whole[name] for name in told["order"] if name in whole})


def emptied(data: bytes) -> bytes:
    """Bytes of a memory of latents, sealed or not, without any row, name of a client or mean: counts alone, which need
    no key. Other memories come back as they are. Raises DataLossError for bytes that are not a memory."""
    kind = _kind(data)
    if kind not in (KIND, SEALED):
        return data
    told, arrays = _state.parse(kind, data)
    with _state.sealed():
        if kind == SEALED:
            state, columns = told["state"], {name: (dtype, shape) for name, (dtype, shape) in told["rows"].items()}
        else:
            state, columns = (
                told,
                {name: (arrays[name].dtype, arrays[name].shape[1:]) for name in _ROWS if name in arrays},
            )
        rows = {name: np.zeros((0, *shape), np.dtype(dtype)) for name, (dtype, shape) in columns.items()}
        plain = {name: arrays[name] for name in _PLAIN}
        return _state.dump(KIND, {**state, "clients": []}, {**plain, **rows, "client": np.zeros(0, np.int32)})


def counts(data: bytes) -> dict[str, int] | None:
    """Label -> samples learned, of sealed bytes: what can be read of them without keys. None for other bytes.

    Raises DataLossError for damaged ones.
    """
    if _kind(data) != SEALED:
        return None
    told, arrays = _state.parse(SEALED, data)
    with _state.sealed():
        return {str(label): int(seen) for label, seen in zip(told["state"]["labels"], arrays["seen"], strict=True)}


def _joined(at_n: npt.NDArray[np.intp], rows: Arrays) -> bytes:
    """Some rows, column by column; their places in the table first, for the order of rows is part of the state."""
    places = at_n.astype(_PLACE)
    return b"".join([places.tobytes(), *(array[at_n].tobytes() for array in rows.values())])


def _split(plain: bytes, columns: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], client: int) -> dict[str, Any]:
    """Inverse of `_joined`. Raises ValueError."""
    row_bytes = _PLACE.itemsize + sum(dtype.itemsize * math.prod(shape) for dtype, shape in columns.values())
    count, left = divmod(len(plain), row_bytes)
    if left:
        raise ValueError(f"{left} bytes beyond whole rows")
    found, end = {"place": np.frombuffer(plain, _PLACE, count)}, count * _PLACE.itemsize
    for name, (dtype, shape) in columns.items():
        values = count * math.prod(shape)
        found[name] = np.frombuffer(plain, dtype, values, end).reshape(count, *shape)
        end += values * dtype.itemsize
    return found | {"client": np.full(count, client, np.int32)}


def _means(plain: bytes, told: Mapping[str, Sequence[Any]]) -> dict[str, npt.NDArray[Any]]:
    found, end = {}, 0
    for name, (dtype, shape) in told.items():
        count = math.prod(shape)
        found[name] = np.frombuffer(plain, np.dtype(dtype), count, end).reshape(shape)
        end += count * np.dtype(dtype).itemsize
    return found


def _kind(data: bytes) -> str:
    """Of a memory's bytes; empty for other bytes."""
    start = len(_state.MAGIC) + 4
    if not data.startswith(_state.MAGIC) or len(data) < start:
        return ""
    size = int.from_bytes(data[len(_state.MAGIC) : start], "little")
    with _state.sealed():
        return str(json.loads(data[start : start + size])["kind"])


def _little(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
