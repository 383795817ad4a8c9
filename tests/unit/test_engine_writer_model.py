"""The writer against a model of it: any interleaving of clients, resends, gaps, stale epochs and crashes."""

from __future__ import annotations

import pytest
from hypothesis import Phase, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test
from tests.faults.protocol_machine import ForgetfulMachine, WriterMachine, sized

WriterMachine.TestCase.settings = sized(300, 8)
test_any_interleaving_counts_every_accepted_batch_once = WriterMachine.TestCase


def test_control_the_model_catches_a_writer_that_forgets_what_is_staged() -> None:
    once = settings(sized(25, 20), phases=[Phase.generate], report_multiple_bugs=False)
    # When it forgets depends on when its commits come: hypothesis, which repeats what failed, may see something else.
    with pytest.raises((AssertionError, Flaky)):
        run_state_machine_as_test(ForgetfulMachine, settings=once)
