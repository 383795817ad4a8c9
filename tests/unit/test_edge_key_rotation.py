"""A device follows the keys of its server, each vouched for by the one before, and never goes back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.test_edge_trust import export_of, server

from everlearn_client.edge import trust as trusting
from everlearn_client.edge.trust import Trust
from everlearn_client.errors import DataLoss
from everlearn_client.key_chain import LONGEST, descendants
from everlearn_client.results import ExportInfo, KeyRotation
from everlearn_server.engine import receipts
from everlearn_server.store import client_keys, key_file
from everlearn_server.store.keys import Keys


class Owner:
    """A server's keys, and copies of what they were."""

    def __init__(self, folder: Path, *, rotations: int = 0) -> None:
        self.keys = Keys.open(folder)
        self.stolen = [self._copy(folder, 0)]
        for number in range(1, rotations + 1):
            self.keys.rotate()
            self.stolen.append(self._copy(folder, number))

    def _copy(self, folder: Path, number: int) -> Keys:
        copy = folder.with_name(f"{folder.name}.{number}")
        shutil.copytree(folder, copy)
        return Keys.open(copy)


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    """Three rotations."""
    return Owner(tmp_path / "owner", rotations=3)


@pytest.fixture
def device(tmp_path: Path) -> Path:
    folder = tmp_path / "device"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("first", range(4))
def test_from_any_earlier_key_a_device_follows_to_the_last_and_stays_there(
    owner: Owner, device: Path, first: int
) -> None:
    Trust(device).check(export_of(owner.stolen[first]), server(owner.stolen[first]))
    Trust(device).check(export_of(owner.keys), server(owner.keys))
    again = Trust(device)
    assert again.key == owner.keys.public_key.hex()
    for earlier in owner.stolen[:3]:
        with pytest.raises(DataLoss, match="not signed by the server that this device trusts"):
            again.check(export_of(earlier), server(earlier))
    again.check(export_of(owner.keys), server(owner.keys))


@pytest.mark.parametrize("first", range(4))
def test_an_operators_pin_holds_for_what_descends_from_it(owner: Owner, device: Path, first: int) -> None:
    pin = owner.stolen[first].public_key.hex()
    Trust(device, key=pin).check(export_of(owner.keys), server(owner.keys))
    for key in (pin, owner.keys.public_key.hex(), ""):
        again = Trust(device, key=key)
        again.check(export_of(owner.keys), server(owner.keys))
        if first < 3:
            assert again.key == owner.keys.public_key.hex()


def test_a_pin_that_is_newer_than_what_the_device_knows_is_reached_by_the_servers_chain(
    owner: Owner, device: Path
) -> None:
    Trust(device).check(export_of(owner.stolen[1]), server(owner.stolen[1]))
    Trust(device, key=owner.stolen[2].public_key.hex()).check(export_of(owner.keys), server(owner.keys))
    assert Trust(device).key == owner.keys.public_key.hex()


def test_the_new_key_is_on_the_disk_before_anything_is_trusted_by_it(
    owner: Owner, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trust(device).check(export_of(owner.stolen[0]), server(owner.stolen[0]))

    def full(*_: Any) -> None:
        raise OSError(28, "no space")

    with monkeypatch.context() as patched:
        patched.setattr(trusting, "write_twice", full)
        trust = Trust(device)
        for _ in range(2):
            with pytest.raises(OSError, match="no space"):
                trust.check(export_of(owner.keys), server(owner.keys))
    assert Trust(device).key == owner.stolen[0].public_key.hex()


def forked(owner: Owner, folder: Path) -> list[KeyRotation]:
    """Who has the first key signs a chain of their own."""
    thief = owner.stolen[0]
    thief.rotate()
    return told(thief)


def told(keys: Keys) -> list[KeyRotation]:
    return list(export_of(keys).key_rotations)


def restated(each: KeyRotation, **changes: Any) -> KeyRotation:
    return replace(each, statement=json.dumps({**json.loads(each.statement), **changes}, sort_keys=True).encode())


def back(owner: Owner) -> KeyRotation:
    """From the last key to the first, by who has both."""
    keys = {"old": owner.keys.public_key.hex(), "new": owner.stolen[0].public_key.hex()}
    statement = json.dumps({"kind": "everlearn signing key 1", **keys, "number": 4, "time": ""}).encode()
    return KeyRotation(statement, owner.keys.sign(statement), owner.stolen[0].sign(statement))


WRONG: dict[str, Callable[[list[KeyRotation], Owner, Path], list[KeyRotation]]] = {
    "gap": lambda chain, owner, folder: [chain[0], chain[2]],
    "beginning is missing": lambda chain, owner, folder: chain[1:],
    "order": lambda chain, owner, folder: [chain[1], chain[0], chain[2]],
    "twice": lambda chain, owner, folder: [chain[0], chain[0], *chain[1:]],
    "fork": lambda chain, owner, folder: [chain[0], *forked(owner, folder), *chain[1:]],
    "way back": lambda chain, owner, folder: [*chain, back(owner)],
    "old signature": lambda chain, owner, folder: [replace(chain[0], by_old=chain[0].by_new), *chain[1:]],
    "new signature": lambda chain, owner, folder: [*chain[:2], replace(chain[2], by_new=bytes(64))],
    "changed": lambda chain, owner, folder: [restated(chain[0], time="later"), *chain[1:]],
    "another kind": lambda chain, owner, folder: [restated(chain[0], kind="everlearn export manifest 1"), *chain[1:]],
    "no json": lambda chain, owner, folder: [replace(chain[0], statement=b"\xff"), *chain[1:]],
    "no object": lambda chain, owner, folder: [replace(chain[0], statement=b"[]"), *chain[1:]],
    "no keys": lambda chain, owner, folder: [restated(chain[0], old=3, new=None), *chain[1:]],
    "endless": lambda chain, owner, folder: chain * LONGEST,
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_chain_that_is_none_is_refused_and_the_device_stays_where_it_is(
    owner: Owner, device: Path, wrong: str, tmp_path: Path
) -> None:
    pinned, export = owner.stolen[0], export_of(owner.keys)
    Trust(device).check(export_of(pinned), server(pinned))
    before = Trust(device).key
    chain = WRONG[wrong](told(owner.keys), owner, tmp_path)
    with pytest.raises(DataLoss):
        Trust(device).check(replace(export, key_rotations=tuple(chain)), server(owner.keys))
    assert Trust(device).key == before
    Trust(device).check(export, server(owner.keys))


def test_a_device_that_has_followed_is_out_of_reach_for_who_has_an_earlier_key(owner: Owner, device: Path) -> None:
    Trust(device, key=owner.stolen[0].public_key.hex()).check(export_of(owner.keys), server(owner.keys))
    thief = owner.stolen[0]
    thief.rotate()
    with pytest.raises(DataLoss, match="not signed by the server"):
        Trust(device).check(export_of(thief), server(thief))


def test_a_rotation_leaves_no_way_to_the_old_key_and_what_was_sealed_opens(tmp_path: Path) -> None:
    keys = Keys.open(tmp_path)
    purposes = (receipts._SEALED, client_keys.PURPOSE)
    sealed = {purpose: keys.seal(b"secret", purpose=purpose, place=b"p") for purpose in purposes}
    mac, signature, key = keys.mac(b"m", purpose=receipts._LEARNED), keys.sign(b"m"), keys.public_key
    master = (tmp_path / "keys" / "master").read_bytes()
    for _ in range(2):
        keys.rotate()
        for found in (keys, Keys.open(tmp_path)):
            assert found.public_key not in (key,)
            assert {found.unseal(each, purpose=name, place=b"p") for name, each in sealed.items()} == {b"secret"}
            assert found.mac(b"m", purpose=receipts._LEARNED) == mac
            assert found.signer(b"m", signature) == key
            assert found.signer(b"n", found.sign(b"n")) == found.public_key
        assert master.hex() not in (tmp_path / "keys" / "master").read_text()
    names = {f"seal:{name}" for name in purposes} | {f"mac:{receipts._LEARNED}"}
    assert names == set(key_file._SEALING), "what is sealed under another purpose would not open after a rotation"
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["master"]


def test_descendants_of_a_key_that_is_the_last_or_foreign_are_none(owner: Owner) -> None:
    chain = told(owner.keys)
    assert descendants(owner.keys.public_key, chain) == []
    assert descendants(bytes(32), chain) == []
    assert descendants(owner.stolen[2].public_key, chain) == [owner.keys.public_key]


def test_the_test_signs_as_the_server_does(owner: Owner) -> None:
    export: ExportInfo = export_of(owner.keys)
    assert len(export.key_rotations) == 3
