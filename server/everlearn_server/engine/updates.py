"""What a device has to download that holds an earlier version: differences, made when one is asked for and kept.

A difference leads to a file that is stored, and is forgotten with it: what an erasure takes back leaves no longer.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from everlearn.errors import DataLossError, NotFoundError
from everlearn_protos.delta.encoding import encode
from everlearn_server.store.blobs import Blobs

KEPT_BYTES: Final = 64 * 2**20
"""Of differences in memory; those not asked for the longest give way, and are made again."""
MAX_FILE_BYTES: Final = 256 * 2**20
"""Larger files are downloaded whole: making a difference takes a few times the memory."""
WORTH_IT: Final = 0.9
"""A difference of more than this part of its file is none worth applying."""

_FIELD: Final = "base_sha256"
Key = tuple[str, str, str]
"""Model, sha256 of the base, sha256 of the target."""


@dataclass(frozen=True, kw_only=True)
class Delta:
    """The difference between two files."""

    base_sha256: str
    target_sha256: str
    target_size: int
    """Bytes."""
    size: int
    """Bytes of the difference, or what it would take at least."""
    sha256: str = ""
    data: bytes = b""
    """Empty where it is not worth it."""


class Updates:
    """Makes differences, one at a time. `stored`: sizes of a model's exported files, of any version, by sha256."""

    def __init__(self, blobs: Blobs, *, kept_bytes: int = KEPT_BYTES) -> None:
        self._blobs, self._kept_bytes = blobs, kept_bytes
        self._deltas: OrderedDict[Key, Delta] = OrderedDict()
        self._turn = asyncio.Lock()

    async def plan(self, model: str, stored: Mapping[str, int], have: str, wanted: str) -> tuple[Delta, ...]:
        """What to apply to the file `have`, one after the other, to come to `wanted`; empty where it is downloaded
        whole.

        Where the first is not stored any more, a difference that was made while it was may still lead to one that is.
        """
        self._forget(model, stored)
        if have == wanted or not have:
            return ()
        if have in stored or (model, have, wanted) in self._deltas:
            return await self._worthwhile(model, stored, (have, wanted))
        between = next((target for of, base, target in reversed(self._deltas) if (of, base) == (model, have)), "")
        return await self._worthwhile(model, stored, (have, between), (between, wanted)) if between else ()

    async def delta(self, model: str, stored: Mapping[str, int], base: str, target: str) -> Delta:
        """One of a plan's. Raises NotFoundError where it cannot be made any more, DataLossError
        for a file that is damaged."""
        self._forget(model, stored)
        made = None
        if target in stored and (base in stored or (model, base, target) in self._deltas):
            made = await self._made((model, base, target), stored)
        if made is None or not made.data:
            raise NotFoundError("there is no such difference any more; plan the update anew", field=_FIELD)
        return made

    async def _worthwhile(self, model: str, stored: Mapping[str, int], *pairs: tuple[str, str]) -> tuple[Delta, ...]:
        try:
            deltas = tuple([await self._made((model, *pair), stored) for pair in pairs])
        except DataLossError:  # an old version that has rotted keeps nobody from the new one
            return ()
        saves = sum(each.size for each in deltas) <= WORTH_IT * deltas[-1].target_size
        return deltas if saves and all(each.data for each in deltas) else ()

    async def _made(self, key: Key, stored: Mapping[str, int]) -> Delta:
        async with self._turn:
            if key not in self._deltas:
                if key[1] not in stored:  # it was kept when it was asked for, and has given way since
                    raise NotFoundError("there is no such difference any more; plan the update anew", field=_FIELD)
                self._deltas[key] = await asyncio.to_thread(self._make, key[1], key[2], stored)
                self._make_room()
            self._deltas.move_to_end(key)
            return self._deltas[key]

    def _make(self, base: str, target: str, stored: Mapping[str, int]) -> Delta:
        size = stored[target]
        if max(size, stored[base]) > MAX_FILE_BYTES:
            return Delta(base_sha256=base, target_sha256=target, target_size=size, size=size)
        data = encode(self._blobs.read(base), self._blobs.read(target))
        kept = data if len(data) <= WORTH_IT * size else b""
        digest = hashlib.sha256(data).hexdigest()
        return Delta(base_sha256=base, target_sha256=target, target_size=size, size=len(data), sha256=digest, data=kept)

    def _make_room(self) -> None:
        while sum(len(each.data) for each in self._deltas.values()) > self._kept_bytes and len(self._deltas) > 1:
            self._deltas.popitem(last=False)

    def _forget(self, model: str, stored: Mapping[str, int]) -> None:
        for key in [key for key in self._deltas if key[0] == model and key[2] not in stored]:
            del self._deltas[key]
