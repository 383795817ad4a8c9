"""Tier `aggregate`: a step of k samples does not tell which image was in it, to who decodes what it added."""

from __future__ import annotations

import pytest
from tests.faults.inversion import Observer

MOST = 0.10
"""Share of steps whose sample may be named."""


@pytest.fixture(scope="module")
def observer() -> Observer:
    return Observer(256)


def test_of_eight_alike_samples_none_is_named_from_disk_or_from_heads(observer: Observer) -> None:
    """3 to 4 and 5 to 8 % of steps."""
    assert observer.from_sums(8, steps=200, one_class=True).rate <= MOST
    assert observer.from_heads(8, steps=150, one_class=True).rate <= MOST


def test_of_sixty_four_samples_as_they_come_few_are_named(observer: Observer) -> None:
    """The default of min_samples, over ten classes: 7 to 8 % from disk, 0 to 5 % from heads."""
    assert observer.from_sums(64, steps=400, one_class=False).rate <= 0.13
    assert observer.from_heads(64, steps=150, one_class=False).rate <= MOST


def test_control_of_single_samples_nearly_all_are_named(observer: Observer) -> None:
    assert observer.from_sums(1, steps=50, one_class=False).rate == 1.0
    assert observer.from_heads(1, steps=100, one_class=True).rate > 0.7


def test_what_is_not_promised_is_seen_too(observer: Observer) -> None:
    """A class that grew by one in a step of eight shows that one on disk. And who knows a sample's features sees there
    whether it was in a step of fewer samples than features."""
    assert observer.from_sums(8, steps=100, one_class=False).rate > 0.4
    assert observer.spans(64, steps=3).rate == 1.0
