"""Differences between exported files: which are planned, kept, forgotten and refused."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from everlearn.errors import NotFoundError
from everlearn_protos import delta
from everlearn_server.engine import updates
from everlearn_server.engine.updates import Delta, Updates
from everlearn_server.store.blobs import Blobs

SIZE = 4096


def die(error: BaseException) -> None:
    raise error


@pytest.fixture
def blobs(tmp_path: Path) -> Iterator[Blobs]:
    made = Blobs(tmp_path, die=die, failpoint=lambda name: None)  # type: ignore[arg-type]  # it does not return
    yield made
    made.close()


def version(number: int) -> bytes:
    """Alike but for some bytes, as the heads of one model are."""
    noise = np.random.default_rng(1).integers(0, 256, SIZE, np.uint8)
    noise[:64] = number
    return noise.tobytes()


def stored(blobs: Blobs, *files: bytes) -> dict[str, int]:
    return {blobs.write(data): len(data) for data in files}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def plan(made: Updates, files: dict[str, int], have: bytes, wanted: bytes, model: str = "m") -> tuple[Delta, ...]:
    return asyncio.run(made.plan(model, files, digest(have), digest(wanted)))


def result(steps: tuple[Delta, ...], have: bytes) -> bytes:
    for step in steps:
        assert (digest(step.data), len(step.data)) == (step.sha256, step.size)
        have = delta.apply(have, step.data, max_bytes=step.target_size)
    return have


def test_a_difference_leads_from_one_version_to_another_in_a_fraction_of_the_bytes(blobs: Blobs) -> None:
    made, files = Updates(blobs), stored(blobs, version(1), version(2))
    (step,) = plan(made, files, version(1), version(2))
    assert result((step,), version(1)) == version(2)
    assert step.size < SIZE / 8


def test_nothing_is_planned_for_who_has_it_has_nothing_or_has_something_unknown(blobs: Blobs) -> None:
    made, files = Updates(blobs), stored(blobs, version(1), version(2))
    assert plan(made, files, version(2), version(2)) == ()
    assert plan(made, files, version(7), version(2)) == ()
    assert asyncio.run(made.plan("m", files, "", digest(version(2)))) == ()


def test_a_version_that_is_not_stored_any_more_is_left_by_what_was_made_while_it_was(blobs: Blobs) -> None:
    made = Updates(blobs)
    plan(made, stored(blobs, version(1), version(2)), version(1), version(2))
    later = stored(blobs, version(2), version(3))
    assert result(plan(made, later, version(1), version(2)), version(1)) == version(2)
    steps = plan(made, later, version(1), version(3))
    assert len(steps) == 2
    assert result(steps, version(1)) == version(3)
    assert plan(made, later, version(1), version(3), model="another") == ()


def test_what_was_withdrawn_is_reached_by_nothing(blobs: Blobs) -> None:
    made, files = Updates(blobs), stored(blobs, version(1), version(2), version(3))
    plan(made, files, version(1), version(2))
    left = {name: size for name, size in files.items() if name != digest(version(2))}
    with pytest.raises(NotFoundError, match="plan the update anew"):
        asyncio.run(made.delta("m", left, digest(version(1)), digest(version(2))))
    assert len(plan(made, left, version(1), version(3))) == 1
    # Forgotten, and not only hidden.
    assert (digest(version(1)), digest(version(2))) not in {key[1:] for key in made._deltas}


def test_files_that_have_nothing_in_common_are_downloaded_whole(blobs: Blobs) -> None:
    noise = np.random.default_rng(2).integers(0, 256, SIZE, np.uint8).tobytes()
    made, files = Updates(blobs), stored(blobs, version(1), noise)
    assert plan(made, files, version(1), noise) == ()
    with pytest.raises(NotFoundError):
        asyncio.run(made.delta("m", files, digest(version(1)), digest(noise)))
    assert all(not each.data for each in made._deltas.values())


def test_large_files_are_not_read_for_a_difference(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "MAX_FILE_BYTES", SIZE - 1)
    monkeypatch.setattr(blobs, "read", lambda name: pytest.fail("it was read"))
    assert plan(Updates(blobs), stored(blobs, version(1), version(2)), version(1), version(2)) == ()


def test_what_is_kept_is_bounded_and_made_again_to_the_byte(blobs: Blobs) -> None:
    everything = [version(number) for number in range(6)]
    made, files = Updates(blobs, kept_bytes=600), stored(blobs, *everything)
    first = [plan(made, files, version(0), each) for each in everything[1:]]
    assert sum(len(each.data) for each in made._deltas.values()) <= 600
    assert [plan(made, files, version(0), each) for each in everything[1:]] == first


def test_a_difference_that_gave_way_while_it_was_waited_for_is_asked_for_anew(blobs: Blobs) -> None:
    made, files = Updates(blobs), stored(blobs, version(1), version(2))
    plan(made, files, version(1), version(2))
    left = {digest(version(2)): SIZE}

    async def waits() -> Delta:
        async with made._turn:
            asked = asyncio.create_task(made.delta("m", left, digest(version(1)), digest(version(2))))
            await asyncio.sleep(0)
            made._deltas.clear()
        return await asked

    with pytest.raises(NotFoundError, match="plan the update anew"):
        asyncio.run(waits())


def test_an_earlier_version_that_has_rotted_keeps_nobody_from_the_new_one(blobs: Blobs) -> None:
    made, files = Updates(blobs), stored(blobs, version(1), version(2))
    blobs.path(digest(version(1))).write_bytes(b"rot")
    assert plan(made, files, version(1), version(2)) == ()
