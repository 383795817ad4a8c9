"""When to try again, and when to stop: exponential back-off with jitter, without any IO of its own."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from everlearn_client.errors import EverlearnClientError, Overloaded, Unavailable

FIRST_DELAY_S = 0.1
FACTOR = 1.6
JITTER = random.SystemRandom()
"""Neither shared with a forked process, nor taken from the program's own `random`, which may be seeded."""
LONGEST_DELAY_S = 2.0
"""With the longest back-off of a channel (`_channel.OPTIONS`, 3 s with its jitter) it is 5 s: within so much after a
network is well again, however long it was not, a client is heard. A server that has too much to do names its own."""


class Retry:
    """Counts failures since the last progress. Jitter keeps a fleet from coming back all at once.

    Gives up, by raising the failure itself, once `give_up_after_s` have passed since the first failure in a row.
    """

    def __init__(
        self,
        *,
        give_up_after_s: float,
        clock_s: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = JITTER.uniform,
    ) -> None:
        self._give_up_after_s = give_up_after_s
        self._clock_s, self._uniform = clock_s, uniform
        self._failing_since_s: float | None = None
        self.attempt = 0
        """Failures since the last progress."""

    def progress(self) -> None:
        """Something final was achieved: start over with short delays."""
        self.attempt, self._failing_since_s = 0, None

    def delay_s(self, error: EverlearnClientError) -> float:
        """Seconds to wait before the next attempt. Raises `error` itself when time is up."""
        now_s = self._clock_s()
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        delay_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * FACTOR**self.attempt) * self._uniform(0.5, 1.0)
        if isinstance(error, Overloaded) and error.retry_after_s is not None:
            delay_s = max(delay_s, error.retry_after_s)
        if now_s + delay_s - self._failing_since_s > self._give_up_after_s:
            error.add_note(f"gave up after {self.attempt + 1} attempts in {now_s - self._failing_since_s:.1f} s")
            raise error
        self.attempt += 1
        return delay_s


def is_passing(error: EverlearnClientError) -> bool:
    """Whether the same call may succeed later: the connection, or a queue that says when to come back."""
    return isinstance(error, Unavailable) or (isinstance(error, Overloaded) and error.retry_after_s is not None)
