from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from everlearn.errors import DataLossError, InvalidError
from everlearn_server.store.keys import OVERHEAD_BYTES, Keys

TEXT = b"what a client may hold and not read"


def test_what_a_folder_sealed_it_opens_after_a_restart_and_nobody_else_does(tmp_path: Path) -> None:
    sealed = Keys.open(tmp_path / "a").seal(TEXT, purpose="receipt", place=b"m/c/1")
    assert len(sealed) == len(TEXT) + OVERHEAD_BYTES
    assert Keys.open(tmp_path / "a").unseal(sealed, purpose="receipt", place=b"m/c/1") == TEXT
    with pytest.raises(DataLossError, match="another server sealed it"):
        Keys.open(tmp_path / "b").unseal(sealed, purpose="receipt", place=b"m/c/1")


@pytest.mark.parametrize(("purpose", "place"), [("receipt", b"m/c/2"), ("latents", b"m/c/1")])
def test_it_opens_for_its_purpose_and_in_its_place_alone(tmp_path: Path, purpose: str, place: bytes) -> None:
    keys = Keys.open(tmp_path)
    sealed = keys.seal(TEXT, purpose="receipt", place=b"m/c/1")
    with pytest.raises(DataLossError, match=f"sealed {purpose} does not open"):
        keys.unseal(sealed, purpose=purpose, place=place)


def test_every_changed_or_missing_byte_is_noticed(tmp_path: Path) -> None:
    keys = Keys.open(tmp_path)
    sealed = keys.seal(TEXT, purpose="receipt", place=b"")
    changed = [sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :] for at in range(len(sealed))]
    for wrong in (*changed, *(sealed[:size] for size in range(len(sealed))), sealed + b"x"):
        with pytest.raises(DataLossError):
            keys.unseal(wrong, purpose="receipt", place=b"")


def test_the_same_text_is_sealed_differently_each_time(tmp_path: Path) -> None:
    keys = Keys.open(tmp_path)
    assert len({keys.seal(TEXT, purpose="receipt", place=b"") for _ in range(100)}) == 100


def test_a_signature_stays_valid_after_a_restart(tmp_path: Path) -> None:
    signature = Keys.open(tmp_path).sign(TEXT)
    public = Ed25519PublicKey.from_public_bytes(Keys.open(tmp_path).public_key)
    public.verify(signature, TEXT)
    with pytest.raises(InvalidSignature):
        public.verify(signature, TEXT + b"!")


def test_the_key_is_for_its_owner_only_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    Keys.open(tmp_path)
    path = tmp_path / "keys" / "master"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    path.write_bytes(b"short")
    with pytest.raises(DataLossError, match="not a key of 32 bytes"):
        Keys.open(tmp_path)
    with pytest.raises(InvalidError, match="32 bytes"):
        Keys(b"")
