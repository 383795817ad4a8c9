"""A spool after a power cut at any byte, and with any byte rotten: a prefix, or all but the damaged record."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from everlearn_client import Batch
from everlearn_client.edge.frames import MAGIC
from everlearn_client.edge.spool import Spool

COUNT = 4
"""Records of the small spool."""


def fill(folder: Path, count: int = COUNT) -> None:
    with Spool(folder) as spool:
        for number in range(count):
            spool.put(Batch([MAGIC + bytes([number]) * 3], [f"n{number}"]))


def taken(folder: Path) -> tuple[list[str], Spool]:
    """Labels that a sender would be given; the spool is closed."""
    with Spool(folder) as spool:
        spool.place(1)
        labels, sequence = [], spool.watermark + 1
        while (outgoing := spool.give(sequence)) is not None:
            labels += [str(label) for label in outgoing.batch.labels]
            sequence += 1
    return labels, spool


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in the files is tested, not the disk under them."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def segment_of(folder: Path) -> Path:
    (segment,) = (folder / "segments").iterdir()
    return segment


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "spool"
    fill(folder)
    return folder


@pytest.mark.usefixtures("fast")
def test_a_segment_cut_at_every_length_gives_a_prefix_and_takes_more(whole: Path, tmp_path: Path) -> None:
    size = segment_of(whole).stat().st_size
    lengths = set()
    for length in range(size + 1):
        folder = tmp_path / str(length)
        shutil.copytree(whole, folder)
        with segment_of(folder).open("r+b") as file:
            file.truncate(length)
        with Spool(folder) as spool:
            (new,) = spool.put(Batch([b"new"], ["new"]))
            assert new[0] == 2  # an opening of its own, so that no (boot, number) comes again
        labels, _ = taken(folder)
        assert labels == [*(f"n{number}" for number in range(len(labels) - 1)), "new"]
        lengths.add(len(labels) - 1)
        shutil.rmtree(folder)
    assert lengths == set(range(COUNT + 1))


@pytest.mark.usefixtures("fast")
def test_any_one_rotten_byte_costs_one_record_which_is_kept_aside(whole: Path, tmp_path: Path) -> None:
    size = segment_of(whole).stat().st_size
    for offset in range(size):
        folder = tmp_path / str(offset)
        shutil.copytree(whole, folder)
        with segment_of(folder).open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ (1 << offset % 8)]))
        labels, spool = taken(folder)
        lost = {f"n{number}" for number in range(COUNT)} - set(labels)
        assert len(lost) == 1
        assert labels == [f"n{number}" for number in range(COUNT) if f"n{number}" not in lost]
        counts = spool.stats().counts
        assert counts.get("ROT", (0, 0))[0] + counts.get("TORN", (0, 0))[0] == 1
        assert len(spool.dead_letters()) == counts.get("ROT", (0, 0))[0]
        taken(folder)
        with Spool(folder) as again:
            assert again.stats().counts.get("ROT") == counts.get("ROT")  # counted once
        shutil.rmtree(folder)


@pytest.mark.usefixtures("fast")
def test_a_state_cut_or_rotten_anywhere_in_one_copy_changes_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "whole", 3)
    with Spool(tmp_path / "whole") as spool:
        spool.place(5)
        assert spool.give(5) is not None
        spool.durable(5, "t1")
    size = (tmp_path / "whole" / "state.0").stat().st_size
    for name in ("state.0", "state.1"):
        for offset in range(0, size, 7):
            folder = tmp_path / "copy"
            shutil.copytree(tmp_path / "whole", folder)
            data = bytearray((folder / name).read_bytes())
            if offset % 2:
                data[offset] ^= 1
            else:
                del data[offset:]
            (folder / name).write_bytes(bytes(data))
            with Spool(folder) as spool:
                assert (spool.watermark, spool.timeline, spool.pending) == (5, "t1", 2)
                outgoing = spool.give(6)
                assert outgoing is not None
                assert outgoing.batch.labels == ["n1"]
            shutil.rmtree(folder)


def test_with_both_copies_lost_nothing_is_sent_twice_and_nothing_vanishes(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "spool")
    for name in ("state.0", "state.1"):
        (tmp_path / "spool" / name).write_bytes(b"")
    labels, spool = taken(tmp_path / "spool")
    assert labels == []
    assert [letter.reason for letter in spool.dead_letters()] == ["STATE_LOST"] * COUNT
    with Spool(tmp_path / "spool") as again:
        assert again.put(Batch([b"new"], ["new"]))[0][0] == 3


@settings(max_examples=40, deadline=None)
@example(["put", "give", "reject", "reopen", "give"])
@given(st.lists(st.sampled_from(["put", "give", "durable", "reject", "reopen"]), max_size=40))
def test_whatever_happens_a_sequence_carries_one_record_for_good_and_none_is_lost(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    spool = Spool(folder)
    spool.place(1)
    carried: dict[int, list[str]] = {}
    rejected: set[int] = set()

    def hear(sequence: int, labels: list[str]) -> None:
        # What the server will never take leaves an empty batch, which spends the sequence.
        assert carried.setdefault(sequence, labels) == labels or (labels == [] and sequence in rejected)

    put: list[str] = []
    ids: set[tuple[int, int]] = set()
    sequence = durable = 0
    for step in steps:
        if step == "put":
            (name,) = spool.put(Batch([b"x"], [f"n{len(put)}"]))
            assert name not in ids
            ids.add(name)
            put.append(f"n{len(put)}")
        elif step == "give" and (outgoing := spool.give(sequence + 1)) is not None:
            sequence += 1
            hear(sequence, [str(label) for label in outgoing.batch.labels])
        elif step == "durable" and sequence > durable:
            durable += 1
            spool.durable(durable)
        elif step == "reject" and sequence > durable:
            spool.reject(sequence, "NO", "no")
            rejected.add(sequence)
        elif step == "reopen":
            spool.close()
            spool = Spool(folder)
            sequence = spool.watermark  # the sender begins again where the server's watermark is
            assert sequence == durable
    while (outgoing := spool.give(sequence + 1)) is not None:
        sequence += 1
        hear(sequence, [str(label) for label in outgoing.batch.labels])
    assert [label for at in sorted(carried) for label in carried[at]] == put
    spool.durable(sequence)
    assert spool.stats().bytes_on_disk == 0
    spool.close()


CHILD = """
import sys
from everlearn_client import Batch
from everlearn_client.edge.spool import Spool
with Spool(sys.argv[1], max_bytes=2**28) as spool:
    begin = spool.stats().waiting
    for number in range(begin, 100000):
        spool.put(Batch([bytes(500)], [f"n{number}"]))
        sys.stdout.write(f"{number}\\n"); sys.stdout.flush()
"""


def test_what_put_returned_for_outlives_kill_9(tmp_path: Path) -> None:
    told = -1
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            told = int(child.stdout.readline())
            time.sleep(0.05)
            child.kill()
            told = max([told, *(int(line) for line in child.stdout.read().split("\n")[:-1] if line)])
    labels, spool = taken(tmp_path)
    assert labels == [f"n{number}" for number in range(len(labels))]
    assert told + 1 <= len(labels) <= told + 2
    assert "ROT" not in spool.stats().counts
