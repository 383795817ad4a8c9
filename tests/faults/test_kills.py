"""`kill -9` at random: sums, and models that learn by gradient steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.faults.parts import gradient_kills, gradient_power_cuts, kills


@pytest.mark.slow
def test_a_hundred_kills_lose_nothing_and_count_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = kills.run(tmp_path, **kills.SHORT)
    with capsys.disabled():
        print(f"\n{found}")
    assert float(str(found["restart CPU s, most"])) < 6.0


@pytest.mark.slow
def test_gradient_steps_go_on_after_kills_as_a_replay_in_the_ledgers_order_to_the_bit(tmp_path: Path) -> None:
    gradient_kills.run(tmp_path, **gradient_kills.SHORT)


@pytest.mark.slow
def test_control_a_batch_that_is_learned_twice_by_gradient_steps_is_caught(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not what a replay in order gives"):
        gradient_kills.run(tmp_path, kills=0, fault="twice")


@pytest.mark.slow
def test_gradient_steps_go_on_after_power_cuts_as_a_replay_in_the_ledgers_order_to_the_bit(tmp_path: Path) -> None:
    gradient_power_cuts.run(tmp_path, **gradient_power_cuts.SHORT)


@pytest.mark.slow
def test_control_a_checkpoint_that_is_not_synced_is_caught_by_a_power_cut(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="told"):
        gradient_power_cuts.run(tmp_path, cuts=1, fault="not_synced")
