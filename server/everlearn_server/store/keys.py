"""The secrets of a data folder: `keys/master`, 32 random bytes that never leave it, and what is derived from them.

What is sealed with them (AES-256-GCM, NIST SP 800-38D) can be opened by this folder's server alone, and only for the
purpose and in the place that it was sealed for. Losing the folder `keys` loses what was sealed, and nothing else.
"""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from everlearn.errors import DataLossError, InvalidError
from everlearn_server.store.blobs import make_folder, sync_folder

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
OVERHEAD_BYTES: Final = NONCE_BYTES + 16
"""What a sealed text is longer than the plain one: nonce and tag."""


class Keys:
    """Seals, opens and signs. Thread-safe; the master key is read once.

    A purpose is a word of the code, such as `receipt`: each has a key of its own (HKDF, RFC 5869). `place` is what the
    sealed bytes belong to (model, client, sequence ...): elsewhere they do not open.
    """

    def __init__(self, master: bytes) -> None:
        if len(master) != KEY_BYTES:
            raise InvalidError(f"a key has {KEY_BYTES} bytes, this one {len(master)}", field="master")
        self._master = master
        self._signing = Ed25519PrivateKey.from_private_bytes(self._derived("signing"))
        self._sealing: dict[str, AESGCM] = {}
        self._checking: dict[str, bytes] = {}

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Reads the folder's master key, or makes one, durably. Raises DataLossError for a file that is not one."""
        path = folder / "keys" / "master"
        try:
            master = path.read_bytes()
        except FileNotFoundError:
            master = secrets.token_bytes(KEY_BYTES)
            _write(path, master)
        if len(master) != KEY_BYTES:
            raise DataLossError(f"{path} is not a key of {KEY_BYTES} bytes; restore it from a backup")
        return cls(master)

    def seal(self, plain: bytes, *, purpose: str, place: bytes) -> bytes:
        """Nonce and ciphertext. The nonce is random: a purpose may seal 2^32 times."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._key_of(purpose).encrypt(nonce, plain, place)

    def unseal(self, sealed: bytes, *, purpose: str, place: bytes) -> bytes:
        """What was sealed. Raises DataLossError if it was changed, belongs elsewhere, or is another folder's."""
        try:
            return self._key_of(purpose).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], place)
        except (InvalidTag, ValueError):
            raise DataLossError(
                f"a sealed {purpose} does not open: it was changed, belongs elsewhere, or another server sealed it"
            ) from None

    def mac(self, message: bytes, *, purpose: str) -> bytes:
        """HMAC-SHA256 (RFC 2104), 32 bytes, under a key of the purpose: nobody else can make it, or guess from it."""
        if purpose not in self._checking:
            self._checking[purpose] = self._derived(f"mac:{purpose}")
        return hmac.digest(self._checking[purpose], message, "sha256")

    def sign(self, message: bytes) -> bytes:
        """Ed25519 (RFC 8032), 64 bytes."""
        return self._signing.sign(message)

    @property
    def public_key(self) -> bytes:
        """32 bytes that check what `sign` signed."""
        return self._signing.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def _key_of(self, purpose: str) -> AESGCM:
        if purpose not in self._sealing:
            self._sealing[purpose] = AESGCM(self._derived(f"seal:{purpose}"))
        return self._sealing[purpose]

    def _derived(self, purpose: str) -> bytes:
        derivation = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=f"everlearn/{purpose}".encode())
        return derivation.derive(self._master)


def _write(path: Path, master: bytes) -> None:
    """Whole or not at all: half a key would keep the server from ever starting again."""
    make_folder(path.parent)
    temporary = path.with_name("master.part")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, master)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.rename(path)
    sync_folder(path.parent)
