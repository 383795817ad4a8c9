"""The file that holds a data folder's keys, and what becomes of it when the signing key is exchanged.

`keys/master` is 32 random bytes. Once its signing key has been exchanged it is JSON: what was derived for sealing stays
as it was, and the master is gone, or the old signing key could be derived again. One file, so that one rename exchanges
all of it.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from everlearn.errors import DataLossError
from everlearn_server.store.blobs import make_folder, sync_folder

KEY_BYTES: Final = 32
PART: Final = "master.part"
_KIND: Final = "everlearn keys 2"
ROTATION_KIND: Final = "everlearn signing key 1"
"""Nothing else that is signed begins like it."""
_SEALING: Final = ("seal:receipt", "mac:learned", "seal:client_key")
"""What is derived for keeps. A purpose that is not among them could not be opened any more after a rotation."""


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """A signing key that gave way to another, in words that both have signed (Ed25519)."""

    statement: bytes
    """JSON: kind, old, new (hex), number (1 for the first), time."""
    by_old: bytes
    by_new: bytes


@dataclass(frozen=True, kw_only=True)
class Secrets:
    """All that the file holds."""

    root: bytes
    derived: Mapping[str, bytes] = field(default_factory=dict)
    """Of an earlier root."""
    signing: bytes = b""
    """Empty where it is derived from the root."""
    rotations: tuple[Rotation, ...] = ()

    def of(self, purpose: str) -> bytes:
        """32 bytes."""
        return self.derived.get(purpose) or _derived(self.root, purpose)

    @property
    def signing_key(self) -> Ed25519PrivateKey:
        """The present one."""
        return Ed25519PrivateKey.from_private_bytes(self.signing or _derived(self.root, "signing"))

    def rotated(self) -> Secrets:
        """Another signing key, and no way back to this one."""
        old, seed = self.signing_key, secrets.token_bytes(KEY_BYTES)
        new = Ed25519PrivateKey.from_private_bytes(seed)
        told = {
            "kind": ROTATION_KIND,
            "old": public_bytes(old).hex(),
            "new": public_bytes(new).hex(),
            "number": len(self.rotations) + 1,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        statement = json.dumps(told, sort_keys=True).encode()
        made = Rotation(statement=statement, by_old=old.sign(statement), by_new=new.sign(statement))
        kept = self.derived or {purpose: self.of(purpose) for purpose in _SEALING}
        root = self.root if self.derived else secrets.token_bytes(KEY_BYTES)
        return replace(self, root=root, derived=kept, signing=seed, rotations=(*self.rotations, made))

    def dump(self) -> bytes:
        """The file's bytes."""
        if not self.signing:
            return self.root
        told = {
            "kind": _KIND,
            "root": self.root.hex(),
            "derived": {purpose: key.hex() for purpose, key in self.derived.items()},
            "signing": self.signing.hex(),
            "rotations": [{name: data.hex() for name, data in asdict(each).items()} for each in self.rotations],
        }
        return json.dumps(told, indent=1).encode()

    @classmethod
    def load(cls, data: bytes, *, where: str) -> Secrets:
        """Raises DataLossError, naming `where`."""
        if len(data) == KEY_BYTES:
            return cls(root=data)
        try:
            told = json.loads(data)
            found = cls(
                root=bytes.fromhex(told["root"]),
                derived={purpose: bytes.fromhex(key) for purpose, key in told["derived"].items()},
                signing=bytes.fromhex(told["signing"]),
                rotations=tuple(
                    Rotation(**{name: bytes.fromhex(text) for name, text in each.items()}) for each in told["rotations"]
                ),
            )
            whole = told["kind"] == _KIND and {len(found.root), len(found.signing)} == {KEY_BYTES}
        except (ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise DataLossError(
                f"{where} is not a key of {KEY_BYTES} bytes, nor what a rotation makes of one; restore it from a backup"
            )
        return found


def write_secrets(path: Path, data: bytes) -> None:
    """Whole or not at all: half a key would keep the server from ever starting again. What the file held is written
    over, so far as the disk lets go of it."""
    make_folder(path.parent)
    temporary = path.with_name(PART)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    with ExitStack() as opened:
        before = opened.enter_context(path.open("r+b", buffering=0)) if path.exists() else None
        temporary.rename(path)
        sync_folder(path.parent)
        if before is not None:
            with suppress(OSError):  # the exchange is done, whatever becomes of what has no name any more
                before.write(bytes(os.fstat(before.fileno()).st_size))
                os.fsync(before.fileno())


def _derived(root: bytes, purpose: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=f"everlearn/{purpose}".encode()).derive(root)


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """32 bytes that check what it signs."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
