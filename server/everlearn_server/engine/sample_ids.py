"""Ids of predicted samples: each is its number and its time, enciphered.

One block of AES under a key that dies with the process is a permutation that nobody tells from a random one (NIST
FIPS 197): an id says nothing to whoever has no key, and of 2^128 only those that were given mean anything. The server
needs no table of them, and knows of one that does not wait any more that it was given, and when.
"""

from __future__ import annotations

import secrets
import struct
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

_BLOCK: Final = struct.Struct(">QII")
"""Number, second, and zeros, by which one that was never given is known."""


class SampleIds:
    """Of one model, for as long as the process lives."""

    def __init__(self) -> None:
        # ECB, for each id is one block and no two are the same: there is nothing to chain.
        self._cipher = Cipher(algorithms.AES(secrets.token_bytes(16)), modes.ECB())

    def seal(self, first: int, count: int, second: int) -> list[str]:
        """Ids of the numbers from `first`: 32 hex digits each."""
        encryptor = self._cipher.encryptor()
        blocks = encryptor.update(b"".join(_BLOCK.pack(first + place, second, 0) for place in range(count)))
        text = (blocks + encryptor.finalize()).hex()
        return [text[start : start + 32] for start in range(0, len(text), 32)]

    def open(self, sample_id: str) -> tuple[int, int] | None:
        """(number, second) of an id; None for what was not sealed here."""
        try:
            block = bytes.fromhex(sample_id)
        except ValueError:
            return None
        if len(block) != _BLOCK.size:
            return None
        decryptor = self._cipher.decryptor()
        number, second, zeros = _BLOCK.unpack(decryptor.update(block) + decryptor.finalize())
        return None if zeros else (number, second)
