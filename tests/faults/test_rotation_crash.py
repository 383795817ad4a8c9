"""The power fails, or the disk does, while a server exchanges its signing key: one of the two is there, whole."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from tests.faults.disk import Disk

from everlearn.errors import DataLossError
from everlearn_server.store import key_file
from everlearn_server.store.keys import Keys

PLACE = b"a place"
CALLS = 12
"""More than one rotation makes."""


def rotations_cut_short(folder: Path, *, survives: float) -> set[bool]:
    """Whether the new key was there, over power cuts at each storage call of a rotation, in a folder on such a disk.

    Asserts that the old or the new one is there, whole, with what leads to it, and that what was sealed still opens.
    """
    found = set()
    with Disk(folder) as disk:
        for nth in range(1, CALLS + 1):
            data = disk.folder / f"data-{nth}"
            keys = Keys.open(data)
            if nth % 2:
                keys.rotate()  # an expanded file is exchanged as the plain one is
            old, sealed = keys.public_key, keys.seal(b"secret", purpose="client_key", place=PLACE)
            disk.settle()
            disk.plan(nth=nth, lasting=True)
            done = False
            with suppress(OSError):
                keys.rotate()
                done = True
            disk.plan()
            disk.cut(survives=survives, seed=nth)
            after = Keys.open(data)
            is_new = after.public_key != old
            assert is_new or not done, "told that it was exchanged, and it was not"
            assert after.public_key in (old, last_of(after)), "a key that nothing leads to"
            assert not is_new or json.loads(after.rotations[-1].statement)["old"] == old.hex()
            assert after.unseal(sealed, purpose="client_key", place=PLACE) == b"secret"
            found.add(is_new)
    return found


def last_of(keys: Keys) -> bytes:
    return bytes.fromhex(json.loads(keys.rotations[-1].statement)["new"]) if keys.rotations else b""


@pytest.mark.parametrize("survives", [0.0, 0.5])
def test_whenever_the_power_fails_the_old_key_or_the_new_one_is_whole(tmp_path: Path, survives: float) -> None:
    assert rotations_cut_short(tmp_path / "disk", survives=survives) == {False, True}


def test_control_a_key_that_is_written_in_place_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_file, "PART", "master")
    monkeypatch.setattr("everlearn_server.store.keys.PART", "none")
    with pytest.raises((DataLossError, AssertionError)):
        rotations_cut_short(tmp_path / "disk", survives=0.5)
