"""The spool of a device: what it keeps, what gives way, and what the server's answers do to it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from everlearn_client import Batch, Features, InvalidArgument, Pixels, Tensors, Texts
from everlearn_client.edge.clock import Uptime
from everlearn_client.edge.spool import Dropped, Spool
from everlearn_client.errors import SpoolFull

KIB = 2**10


class Device:
    """A clock under the test's control."""

    def __init__(self) -> None:
        self.boot, self.seconds = "first", 10.0

    def __call__(self) -> Uptime:
        return Uptime(self.boot, self.seconds)


def batch(label: str, size: int = 10) -> Batch:
    return Batch([os.urandom(size)], [label])


def given(spool: Spool) -> list[str]:
    """Labels of all that the server has not confirmed, in the order in which they would be sent."""
    if not spool.is_placed:
        spool.place(1)
    labels, sequence = [], spool.watermark + 1
    while (outgoing := spool.give(sequence)) is not None:
        labels += [str(label) for label in outgoing.batch.labels] or ["-"]
        sequence += 1
    return labels


def test_every_form_of_batch_comes_out_as_it_went_in(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    forms: list[Batch] = [
        Batch([b"jpeg", b"png"], ["a", "b"], "winter"),
        Batch(rng.integers(0, 255, (2, 4, 5, 3), np.uint8), ["a", "é"]),
        Batch(Features(rng.normal(size=(3, 7)).astype(np.float32)), ["x", "y", "z"]),
        Batch(Pixels(rng.normal(size=(1, 3, 4, 4)).astype(np.float32)), ["p"]),
        Batch(Tensors(rng.normal(size=(2, 3)).astype(np.float32)), [["a", "b"], []]),
        Batch(Texts(["it rains", "it snows"]), np.array([[1.5], [2.5]], np.float32)),
    ]
    with Spool(tmp_path) as spool:
        for each in forms:
            spool.put(each, feature_digest="f" * 64 if isinstance(each.samples, Features) else "")
    with Spool(tmp_path) as spool:
        spool.place(1)
        for sequence, each in enumerate(forms, 1):
            outgoing = spool.give(sequence)
            assert outgoing is not None
            assert outgoing.feature_digest == ("f" * 64 if isinstance(each.samples, Features) else "")
            out = outgoing.batch
            assert out.step == each.step
            np.testing.assert_array_equal(_raw(out.samples), _raw(each.samples))
            assert [list(np.atleast_1d(x)) for x in out.labels] == [list(np.atleast_1d(x)) for x in each.labels]


def _raw(samples: object) -> object:
    return next(iter(vars(samples).values())) if hasattr(samples, "__dict__") else samples


def test_a_large_batch_becomes_several_records_and_a_path_is_read_at_once(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"x" * 100)
    with Spool(tmp_path / "spool", record_samples=2) as spool:
        ids = spool.put(Batch([photo] * 5, list("abcde")))
        photo.unlink()
        assert [number for _, number in ids] == [1, 2, 3]
        assert given(spool) == list("abcde")
        with pytest.raises(InvalidArgument, match="cannot be read"):
            spool.put(Batch([photo], ["f"]))


def test_only_the_watermark_deletes_and_then_nothing_is_left_on_the_disk(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        for label in "abc":
            spool.put(batch(label))
        assert given(spool) == list("abc")
        spool.durable(2)
        assert given(spool) == ["c"]
        assert spool.stats().counts["durable"] == (2, 2)
        spool.durable(3)
        assert spool.pending == 0
        assert spool.stats().bytes_on_disk == 0
        assert not list((tmp_path / "segments").iterdir())


def test_sequences_go_on_over_openings_and_records_are_named_apart(tmp_path: Path) -> None:
    ids: list[tuple[int, int]] = []
    for opening in range(3):
        with Spool(tmp_path) as spool:
            ids += spool.put(batch(f"o{opening}"))
            assert given(spool) == [f"o{opening}"]
            assert spool.watermark == opening
            spool.durable(opening + 1)
    assert len(set(ids)) == 3
    assert [boot for boot, _ in ids] == [1, 2, 3]


def test_a_wiped_device_goes_on_behind_what_the_server_has(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.put(batch("new"))
        assert spool.give(1) is None  # nobody knows yet which sequences are spent
        spool.place(501)
        outgoing = spool.give(501)
        assert outgoing is not None
        assert outgoing.batch.labels == ["new"]
        spool.durable(501)
        assert spool.pending == 0


@pytest.mark.parametrize("when_full", ["oldest", "newest"])
def test_a_full_spool_drops_as_declared_and_tells_all_of_it(tmp_path: Path, when_full: str) -> None:
    told: list[Dropped] = []
    with Spool(tmp_path, max_bytes=64 * KIB, when_full=when_full, on_drop=told.append) as spool:  # type: ignore[arg-type]  # one of two
        for number in range(200):
            spool.put(batch(str(number), KIB))
            assert spool.stats().bytes_on_disk <= 64 * KIB
        kept = [int(label) for label in given(spool)]
        dropped = sum(each.samples for each in told)
        assert len(kept) + dropped == 200
        assert 45 <= len(kept) < 64
        assert kept == list(range(200 - len(kept), 200) if when_full == "oldest" else range(len(kept)))
        reason = f"FULL_{when_full.upper()}"
        assert {each.reason for each in told} == {reason}
    with Spool(tmp_path, max_bytes=64 * KIB) as spool:
        assert spool.stats().counts[reason] == (dropped, dropped)
        assert [int(label) for label in given(spool)] == kept


def test_a_spool_told_to_refuse_says_so_and_takes_more_once_there_is_room(tmp_path: Path) -> None:
    with Spool(tmp_path, max_bytes=8 * KIB, when_full="refuse") as spool:
        for number in range(7):
            spool.put(batch(str(number), KIB))
        with pytest.raises(SpoolFull, match="durable"):
            spool.put(batch("late", KIB))
        assert len(given(spool)) == 7
        spool.durable(7)
        spool.put(batch("late", KIB))
        assert given(spool) == ["late"]
        with pytest.raises(InvalidArgument, match="a record takes"):
            spool.put(batch("huge", 9 * KIB))


def test_what_the_server_may_have_is_never_dropped(tmp_path: Path) -> None:
    with Spool(tmp_path, max_bytes=16 * KIB) as spool:
        spool.put(batch("sent", KIB))
        assert given(spool) == ["sent"]
        for number in range(100):
            spool.put(batch(str(number), KIB))
        assert given(spool)[0] == "sent"
        assert given(spool)[-1] == "99"


def test_age_is_the_devices_own_and_a_wall_clock_or_a_reboot_drops_nothing(tmp_path: Path) -> None:
    device = Device()
    with Spool(tmp_path, max_age_s=100, clock=device) as spool:
        spool.put(batch("old"))
        device.seconds += 60
        spool.put(batch("young"))
    device.boot, device.seconds = "second", 5.0  # off for a year, or a minute: nobody knows
    with Spool(tmp_path, max_age_s=100, clock=device) as spool:
        device.seconds += 30
        spool.put(batch("youngest"))
        assert spool.stats().waiting == 3
        device.seconds += 20
        assert given(spool) == ["young", "youngest"]
        assert spool.stats().counts["AGE"] == (1, 1)


def test_time_asleep_between_two_openings_of_one_boot_counts(tmp_path: Path) -> None:
    device = Device()
    with Spool(tmp_path, max_age_s=100, clock=device) as spool:
        spool.put(batch("old"))
    device.seconds += 101
    with Spool(tmp_path, max_age_s=100, clock=device) as spool:
        assert given(spool) == []


def test_a_rejected_record_is_a_dead_letter_with_its_reason_and_is_not_sent_for_ever(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.put(batch("good"))
        spool.put(batch("bad"))
        assert given(spool) == ["good", "bad"]
        spool.reject(2, "INVALID_INPUT", "no image", "batch.samples")
        assert given(spool) == ["good", "-"]  # until it is final
        spool.durable(2)
        assert given(spool) == []
        (letter,) = spool.dead_letters()
        assert (letter.reason, letter.field, letter.samples) == ("INVALID_INPUT", "batch.samples", 1)
        assert b"bad" in letter.payload
        assert spool.stats().counts["REJECTED"] == (1, 1)


def test_dead_letters_are_bounded_and_the_oldest_give_way(tmp_path: Path) -> None:
    with Spool(tmp_path, dead_letter_bytes=4 * KIB) as spool:
        for number in range(8):
            spool.put(batch(str(number), KIB))
        assert len(given(spool)) == 8
        for sequence in range(1, 9):
            spool.reject(sequence, "NO", "no")
            assert spool.stats().dead_letter_bytes <= 4 * KIB
        assert spool.stats().counts["LETTERS_DROPPED"][0] == 8 - spool.stats().dead_letters
        assert b"7" in spool.dead_letters()[-1].payload


def test_after_a_restore_of_the_server_what_is_here_follows_what_it_has_and_the_loss_is_told(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        for label in "abcd":
            spool.put(batch(label))
        assert given(spool) == list("abcd")
        spool.durable(3, "t1")
        spool.rewind(1, "t2")
        assert spool.watermark == 1
        assert given(spool) == ["d"]
        outgoing = spool.give(2)
        assert outgoing is not None
        assert outgoing.batch.labels == ["d"]
        assert spool.stats().counts["UNDONE"] == (2, 0)


def test_an_identity_that_somebody_else_uses_is_told(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.put(batch("mine"))
        assert given(spool) == ["mine"]
        spool.durable(9)
        assert spool.stats().counts["SHARED_ID"] == (1, 1)
        spool.put(batch("next"))
        outgoing = spool.give(10)
        assert outgoing is not None
        assert outgoing.batch.labels == ["next"]


def test_a_folder_belongs_to_one_process_and_one_stream(tmp_path: Path) -> None:
    with Spool(tmp_path, stream="models/a"), pytest.raises(InvalidArgument, match="in use"):
        Spool(tmp_path, stream="models/a")
    with pytest.raises(InvalidArgument, match="is the spool of models/a"):
        Spool(tmp_path, stream="models/b")
    with Spool(tmp_path):
        assert os.stat(tmp_path / "segments").st_mode & 0o077 == 0


def test_a_disk_that_is_full_loses_the_record_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Spool(tmp_path) as spool:
        spool.put(batch("before"))
        real, left = os.fsync, [1]

        def fsync(handle: int) -> None:
            if left and left.pop():
                raise OSError(errno.ENOSPC, "No space left on device")
            real(handle)

        monkeypatch.setattr(os, "fsync", fsync)
        assert spool.put(batch("lost")) == []
        spool.put(batch("after"))
        assert spool.stats().counts["DISK"] == (1, 1)
    with Spool(tmp_path) as spool:
        assert given(spool) == ["before", "after"]
        assert "TORN" not in spool.stats().counts
