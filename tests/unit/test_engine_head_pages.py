"""Weights that are read when they are needed: the same scores, in bounded memory, of the version that was meant."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.unit.test_engine_versions import book, publish, solved, spec

from everlearn.errors import DataLossError, NotFoundError
from everlearn.learners.base import Solution
from everlearn.values import LinearHead, Novelty
from everlearn_server.engine.head_file import dump_solution
from everlearn_server.engine.head_pages import HeadPages, PagedHead
from everlearn_server.engine.versions import Versioned

CLASSES, DIM = 4, 8
HEAD_BYTES = (DIM + 1) * CLASSES * 4


class Disk:
    """Heads as they are stored, and how often each was read."""

    def __init__(self) -> None:
        self.heads: dict[int, bytes] = {}
        self.reads: list[int] = []

    def read(self, model: str, number: int) -> bytes:
        self.reads.append(number)
        if number not in self.heads:
            raise DataLossError("rotten")
        return self.heads[number]

    def stored(self, number: int, novelty: Novelty | None = None) -> Versioned:
        """A version with a head of its own."""
        head = replace(head_of(number), novelty=novelty)
        self.heads[number] = dump_solution(Solution(head=head))
        made = publish(book(first=number), spec())
        return replace(
            made, snapshot=replace(made.snapshot, head=head), record=replace(made.record, head=self.heads[number])
        ).stored()


def head_of(seed: int) -> LinearHead:
    random = np.random.default_rng(seed)
    return LinearHead(
        weight_dC=random.normal(size=(DIM, CLASSES)).astype(np.float32),
        bias_C=random.normal(size=CLASSES).astype(np.float32),
        normalise=False,
        labels=tuple("abcd"),
        regularization=0.25,
    )


FEATURES = np.random.default_rng(0).normal(size=(3, DIM)).astype(np.float32)


def test_a_paged_head_scores_as_the_whole_one_and_tells_the_rest_without_being_read() -> None:
    disk = Disk()
    whole, pages = disk.stored(3), HeadPages(disk.read)
    paged = pages.paged(whole)
    head = paged.snapshot.head
    assert (head.labels, head.regularization, head.task) == (whole.snapshot.head.labels, 0.25, "classification")
    assert not head.is_loaded
    assert disk.reads == []
    assert np.array_equal(paged.snapshot.scores(FEATURES), whole.snapshot.scores(FEATURES))
    assert head.is_loaded
    paged.snapshot.scores(FEATURES)
    assert disk.reads == [3]
    assert isinstance(pages.whole(head), LinearHead)
    assert not isinstance(pages.whole(head), PagedHead)


def test_only_the_last_ones_asked_for_stay() -> None:
    disk = Disk()
    pages = HeadPages(disk.read, capacity_bytes=2 * HEAD_BYTES)
    paged = [pages.paged(disk.stored(number)).snapshot.head for number in (1, 2, 3)]
    for head in paged:
        head.scores(FEATURES)
    assert [head.is_loaded for head in paged] == [False, True, True]
    paged[1].scores(FEATURES)
    paged[0].scores(FEATURES)
    assert [head.is_loaded for head in paged] == [True, True, False]
    assert disk.reads == [1, 2, 3, 1]


def test_a_version_of_a_model_that_was_made_anew_is_not_taken_for_the_one_that_is_gone() -> None:
    disk = Disk()
    head = HeadPages(disk.read).paged(disk.stored(3)).snapshot.head
    disk.heads[3] = dump_solution(Solution(head=head_of(99)))
    with pytest.raises(NotFoundError, match="no longer stored"):
        head.scores(FEATURES)


def test_what_is_damaged_is_said_and_is_read_again_when_it_is_asked_for_again() -> None:
    disk = Disk()
    head = HeadPages(disk.read).paged(disk.stored(3)).snapshot.head
    data = disk.heads.pop(3)
    with pytest.raises(DataLossError, match="rotten"):
        head.scores(FEATURES)
    disk.heads[3] = data
    assert head.scores(FEATURES).shape == (3, CLASSES)


def test_a_book_keeps_the_weights_of_what_its_aliases_name_alone() -> None:
    disk, made = Disk(), book()
    made.paged = HeadPages(disk.read).paged
    versions = [publish(made, spec()) for _ in range(4)]
    for versioned in versions:
        made.keep(versioned)
    kinds = [type(made.find(str(versioned.record.number)).snapshot.head) for versioned in versions]
    assert kinds == [PagedHead] * 3 + [LinearHead]
    assert made.stable is not None
    assert type(made.stable.snapshot.head) is LinearHead
    assert made.stored_bytes == 4 * len(solved().data)
    made.roll_back(versions[1].record.number)
    made.take_head(versions[1].record.number, versions[1].snapshot.head)
    assert type(made.stable.snapshot.head) is LinearHead
    made.page()
    assert type(made.find(str(versions[1].record.number)).snapshot.head) is LinearHead


def test_what_tells_the_unknown_is_read_with_the_weights_and_that_there_is_something_is_known_before() -> None:
    disk = Disk()
    random = np.random.default_rng(0)
    shapes = {"basis_dk": (DIM, 3), "offset_k": 3, "weight_kC": (3, CLASSES), "bias_C": CLASSES, "scale_C": CLASSES}
    novelty = Novelty(**{name: random.uniform(0, 1, shape).astype(np.float32) for name, shape in shapes.items()})
    pages = HeadPages(disk.read)
    with_it, without = (pages.paged(disk.stored(1, novelty)).snapshot, pages.paged(disk.stored(2)).snapshot)
    assert (with_it.head.tells_novelty, without.head.tells_novelty) == (True, False)
    assert without.novelty(FEATURES) is None
    assert disk.reads == []
    told = with_it.novelty(FEATURES)
    assert told is not None
    assert np.array_equal(told, novelty.of(FEATURES))
    assert disk.reads == [1]
