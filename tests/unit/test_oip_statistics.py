"""ModelStatistics' counters: bounded, and a request that fails is a failure."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.e2e.oip_server import ColourServing

from everlearn_server.rpc import oip_statistics
from everlearn_server.rpc.oip_statistics import Statistics


def test_the_version_unused_for_longest_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oip_statistics, "MAX_VERSIONS", 3)
    statistics = Statistics(lambda: 0.0)
    snapshot = ColourServing().snapshot("colours")
    for number in (1, 2, 3, 1, 4):
        with statistics.timing(replace(snapshot, version=number)):
            pass  # no scores: a failure
    assert [statistics.counters("colours", number).failures for number in (1, 2, 3, 4)] == [2, 0, 1, 1]


def test_a_request_that_raises_is_a_failure_and_the_error_goes_on() -> None:
    statistics = Statistics(lambda: 0.0)
    with pytest.raises(KeyError), statistics.timing(ColourServing().snapshot("colours")):
        raise KeyError
    counters = statistics.counters("colours", 2)
    assert (counters.failures, counters.successes) == (1, 0)
    assert counters.fail_ns > 0
