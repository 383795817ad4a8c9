"""What cannot be tested on this machine is skipped with its reason, and counted at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from tests.faults.not_here import NotHereError

from everlearn_client._channel import keep_grpc_aio

keep_grpc_aio()  # servers of tests, too, are freed by the garbage collector
# A commit is judged by the same examples on every machine. `pytest --hypothesis-profile explore` draws new ones, as
# the long run does (`python -m tests.faults properties`): what it finds becomes an @example of its test.
_SLOW = [HealthCheck.too_slow]
settings.register_profile("commit", derandomize=True, deadline=None, suppress_health_check=_SLOW)
settings.register_profile(
    "explore", max_examples=500, deadline=None, print_blob=True, suppress_health_check=_SLOW, derandomize=False
)
settings.load_profile("commit")
NOT_HERE = "not tested here"


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """A test that lacks a tool or a privilege."""
    try:
        return (yield)
    except NotHereError as error:
        pytest.skip(f"{NOT_HERE}: {error}")


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest) -> Iterator[None]:
    """A fixture that lacks one: every test that asks for it."""
    try:
        return (yield)
    except NotHereError as error:
        pytest.skip(f"{NOT_HERE}: {error}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The count; nothing where all was tested."""
    reasons = [str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", []) if report.longrepr]
    if not_here := [reason for reason in reasons if NOT_HERE in reason]:
        terminalreporter.write_line(f"faults not tested here: {len(not_here)}")
