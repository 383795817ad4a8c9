"""The secrets of a data folder: `keys/master`, 32 random bytes that never leave it, and what is derived from them.

What is sealed with them (AES-256-GCM, NIST SP 800-38D) can be opened by this folder's server alone, and only for the
purpose and in the place that it was sealed for. Losing the folder `keys` loses what was sealed, and nothing else.
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from everlearn.errors import DataLossError, InvalidError
from everlearn_server.store.key_file import KEY_BYTES, PART, Rotation, Secrets, public_bytes, write_secrets

NONCE_BYTES: Final = 12
OVERHEAD_BYTES: Final = NONCE_BYTES + 16
"""What a sealed text is longer than the plain one: nonce and tag."""


class Keys:
    """Seals, opens and signs. Thread-safe; the file is read once.

    A purpose is a word of the code, such as `receipt`: each has a key of its own (HKDF, RFC 5869). `place` is what the
    sealed bytes belong to (model, client, sequence ...): elsewhere they do not open.
    """

    def __init__(self, master: bytes, *, path: Path | None = None) -> None:
        """`master`: as the file holds it; `path`: of the file, for those who rotate."""
        if len(master) < KEY_BYTES:
            raise InvalidError(f"a key has {KEY_BYTES} bytes, this one {len(master)}", field="master")
        self._path, self._rotating = path, threading.Lock()
        self._take(Secrets.load(master, where=str(path or "master")))
        self._sealing: dict[str, AESGCM] = {}
        self._checking: dict[str, bytes] = {}

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Reads the folder's keys, or makes a master, durably. Raises DataLossError for a file that is none."""
        path = folder / "keys" / "master"
        try:
            master = path.read_bytes()
        except FileNotFoundError:
            master = secrets.token_bytes(KEY_BYTES)
            write_secrets(path, master)
        path.with_name(PART).unlink(missing_ok=True)  # what a crash left may hold keys
        if len(master) < KEY_BYTES:
            raise DataLossError(f"{path} is not a key of {KEY_BYTES} bytes; restore it from a backup")
        return cls(master, path=path)

    def rotate(self) -> Rotation:
        """Signs with another key from now on; durable on return, and the old one destroyed. Through a crash it is the
        old one or the new one, whole. Raises OSError; it signs with what the file holds then."""
        assert self._path is not None, "opened from a folder"
        with self._rotating:
            try:
                write_secrets(self._path, self._secrets.rotated().dump())
            finally:
                self._take(Secrets.load(self._path.read_bytes(), where=str(self._path)))
        return self.rotations[-1]

    @property
    def rotations(self) -> tuple[Rotation, ...]:
        """From the first signing key to the present one, in order."""
        return self._secrets.rotations

    def signer(self, message: bytes, signature: bytes) -> bytes:
        """The public key, present or earlier, that has signed this; the present one where none has."""
        earlier = (bytes.fromhex(json.loads(each.statement)["old"]) for each in self.rotations)
        return next((key for key in earlier if _is_signed(message, signature, key)), self.public_key)

    def _take(self, found: Secrets) -> None:
        self._secrets, self._signing = found, found.signing_key

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
            self._checking[purpose] = self._secrets.of(f"mac:{purpose}")
        return hmac.digest(self._checking[purpose], message, "sha256")

    def sign(self, message: bytes) -> bytes:
        """Ed25519 (RFC 8032), 64 bytes."""
        return self._signing.sign(message)

    @property
    def public_key(self) -> bytes:
        """32 bytes that check what `sign` signed."""
        return public_bytes(self._signing)

    def _key_of(self, purpose: str) -> AESGCM:
        if purpose not in self._sealing:
            self._sealing[purpose] = AESGCM(self._secrets.of(f"seal:{purpose}"))
        return self._sealing[purpose]


def _is_signed(message: bytes, signature: bytes, key: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except InvalidSignature:
        return False
    return True
