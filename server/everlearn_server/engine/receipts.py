"""Receipts: what a batch contributed, sealed, for its client to keep. The server keeps one number a client.

That number is a sum of keyed hashes, one of each batch that was learned (MSet-Add-Hash, Clarke et al. 2003, doi
10.1007/978-3-540-40061-5_12). Receipts that add up to it are all that was learned of the client, no more and no less,
however many batches were refused, sent again or answered twice. It tells nothing of any batch, and fits in 32 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from everlearn.contribution import Contribution
from everlearn.errors import DataLossError, InputError
from everlearn_server.store.store import Store

MODULUS: Final = 1 << 256
_SEALED: Final = "receipt"
_LEARNED: Final = "learned"
_TIMELINE_BYTES: Final = 16


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """An opened one."""

    contribution: Contribution
    mac: int
    """Its part in the sum."""
    is_witnessed: bool
    """Whether it was given for the batch as it was learned, on this timeline; else for the same sequence sent again."""


class Receipts:
    """Of one model and lineage. Thread-safe."""

    def __init__(self, store: Store, *, uid: str, lineage: int) -> None:
        self._keys = store.keys
        self._place = f"{uid}/{lineage}/"
        self._timeline = bytes.fromhex(store.timeline)[:_TIMELINE_BYTES]

    def mac(self, client: str, sequence: int, contribution: Contribution) -> int:
        """What a batch adds to the client's sum, below MODULUS."""
        message = self._at(client, sequence) + b"\0" + contribution.canonical
        return int.from_bytes(self._keys.mac(message, purpose=_LEARNED))

    def seal(self, client: str, sequence: int, contribution: Contribution, *, again: bool = False) -> bytes:
        """The receipt. `again`: the batch had its effect before, and this is what was sent for it this time."""
        plain = bytes([again]) + self._timeline + contribution.packed()
        return self._keys.seal(plain, purpose=_SEALED, place=self._at(client, sequence))

    def open(self, client: str, sequence: int, sealed: bytes, *, field: str = "receipts") -> Receipt:
        """What was sealed. Raises InputError for what is no receipt of this model, lineage, client and sequence."""
        try:
            plain = self._keys.unseal(sealed, purpose=_SEALED, place=self._at(client, sequence))
            contribution = Contribution.parse(plain[1 + _TIMELINE_BYTES :])
        except DataLossError:
            raise InputError(
                f"is no receipt of batch {sequence} of client {client!r} for this model as it is now: it was changed, "
                "or belongs to another model, client or server, or to what the model was before it was replaced",
                field=field,
            ) from None
        return Receipt(
            contribution=contribution,
            mac=self.mac(client, sequence, contribution),
            is_witnessed=plain[0] == 0 and plain[1 : 1 + _TIMELINE_BYTES] == self._timeline,
        )

    def _at(self, client: str, sequence: int) -> bytes:
        return f"{self._place}{client}/{sequence}".encode()
