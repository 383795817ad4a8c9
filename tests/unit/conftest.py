"""Fixtures of the unit tests: a hub on this machine, with the real weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.local_hub import LocalHub, efficientnet_lite0


@pytest.fixture(scope="session")
def lite0() -> dict[str, bytes]:
    return efficientnet_lite0()


@pytest.fixture
def local() -> Iterator[LocalHub]:
    with LocalHub() as hub:
        yield hub
