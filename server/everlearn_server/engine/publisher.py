"""Solves heads while learning goes on, so that a prediction knows a batch moments after its last byte.

Two solves, both pure functions of the sums. The *quick* one reuses the last regularization (one Cholesky) and follows
the stream. The *exact* one searches the regularization anew: beside the stream when it has brought a class or doubled,
and once when it rests. So the head that stays is the exact one, and equal sums end in equal predictions whatever the
schedule was.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import structlog

from everlearn.errors import PreconditionError
from everlearn.export.parity import head_parity
from everlearn.learners.base import Learned
from everlearn.values import FeaturesBd, LinearHead
from everlearn_server.engine.head_file import dump_solution
from everlearn_server.engine.tails import LiveTail
from everlearn_server.engine.writer import ModelWriter

_logger = structlog.get_logger(__name__)
NO_NUMBERS = "NO_NUMBERS"
"""Reason of the PreconditionError that `install` raises while version numbers are being reserved."""
_AGAIN_S = 0.05
"""Until `install` is tried again then."""
_AFTER_FAILURE_S = 0.5
"""Until an unforeseen failure is tried again."""
_FRESH_S = 0.15
"""Longest rest between quick heads while somebody asks for predictions, where solving is quick."""
_ASKED_S = 10.0
"""So long after a prediction somebody is taken to be asking."""
_PROBES = 16
_MEANWHILE_S = 1.0
"""Longest rest while nobody asks; the test before training is then made with a head of at most that age."""


@dataclass(frozen=True, kw_only=True)
class Solved:
    """A head and what it knows."""

    head: LinearHead
    tails: Mapping[str, int]
    """Last sequence of each client that it knows."""
    sample_count: int
    samples_C: tuple[int, ...]
    """Per label of the head."""
    memory_digest: str
    """Of what it was solved from; empty for a quick head."""
    exact: bool
    solve_ms: float
    parity: float
    """Largest relative difference of a score between the exported head and this one, on probe features."""
    data: bytes
    """Head and tail, serialised."""
    tail: LiveTail | None = None
    """Where a part of the backbone learns."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Of the last gradient steps."""


@lru_cache(maxsize=8)
def probe_features(dim: int) -> FeaturesBd:
    """Deterministic stand-ins for features: non-negative, as pooled activations are."""
    return np.abs(np.random.default_rng(0).standard_normal((_PROBES, dim))).astype(np.float32)


class Publisher:
    """Follows one writer. `install` receives each head on the event loop."""

    def __init__(
        self,
        *,
        model: str,
        writer: ModelWriter,
        executor: Executor,
        install: Callable[[Solved], None],
        hint: float | None = None,
    ) -> None:
        self._model = model
        self._writer = writer
        self._executor = executor
        self._install = install
        self._hint = hint
        self._touched = asyncio.Event()
        self._hurry = asyncio.Event()
        self._asked_s = -_ASKED_S
        self._generation = 0
        self._exact_generation = 0
        self._has_installed = False
        self._searching: asyncio.Task[None] | None = None
        self._searched = (0, 0)
        self._search_again_s = 0.0
        self._known: Mapping[str, int] = {}
        self._changed = asyncio.Event()
        self._closed = False
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"publisher-{model}")

    def touch(self) -> None:
        """The sums have changed."""
        self._generation += 1
        self._touched.set()

    def ask(self) -> None:
        """Somebody wants predictions: heads are to be fresh from now on."""
        self._asked_s = time.monotonic()
        self._hurry.set()

    async def settled(self, tails: Mapping[str, int], *, timeout_s: float) -> None:
        """Waits until a head knows these sequences and, if nothing else is streaming, until it is the exact one."""

        self._hurry.set()

        def rests() -> bool:
            knows = all(self._known.get(client, 0) >= sequence for client, sequence in tails.items())
            # Untouched since the start, the stored head knows all there is.
            return self._closed or (
                (knows or not self._generation)
                and (self._exact_generation == self._generation or not self._writer.idle)
            )

        try:
            async with asyncio.timeout(timeout_s):
                while not rests():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            _logger.info("head not settled in time", model=self._model, timeout_s=timeout_s)

    def close(self) -> None:
        """Stops solving; nobody waits for a head any more."""
        self._closed = True
        self._changed.set()
        self._task.cancel()
        if self._searching is not None:
            self._searching.cancel()

    async def _run(self) -> None:
        while True:
            await self._touched.wait()
            self._touched.clear()
            try:
                await self._follow()
            except Exception:  # or heads would stay as they are for ever, while learning goes on
                _logger.exception("heads do not follow the stream; trying again", model=self._model)
                asyncio.get_running_loop().call_later(_AFTER_FAILURE_S, self._touched.set)

    async def _follow(self) -> None:
        """Brings the head up to the present sums, and where the stream rests, the exact one."""
        generation = self._generation
        learned, tails = await self._writer.learned()
        started_s = time.monotonic()
        if self._hint is None:
            await self._search(learned, tails, generation)
        else:
            if self._is_search_due(learned):
                self._searching = asyncio.create_task(self._search(learned, tails, generation))
            await self._publish(learned, tails, generation, hint=self._hint)
        await self._rest(time.monotonic() - started_s)
        if not self._touched.is_set() and self._exact_generation != generation == self._generation:
            # The stream rests: the head that stays is the exact one of these sums.
            if self._searching is not None:
                await asyncio.wait([self._searching])
            if self._exact_generation != generation:
                await self._search(learned, tails, generation)

    async def _rest(self, solve_s: float) -> None:
        """Lets the stream go on: a twentieth of a core for solving. More where somebody asks, whose first question
        ends the long rest, so that the next answer knows it all; half a core at most, where solving is slow."""
        if time.monotonic() - self._asked_s > _ASKED_S:
            self._hurry.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), max(min(19 * solve_s, _MEANWHILE_S), solve_s))
        else:
            await asyncio.sleep(max(min(9 * solve_s, _FRESH_S), solve_s))

    def _is_search_due(self, learned: Learned) -> bool:
        """While a stream goes on: soon after it has brought a class or doubled, seldom otherwise."""
        if self._searching is not None and not self._searching.done():
            return False
        classes, samples = self._searched
        grown = int(np.count_nonzero(learned.count_C)) > classes or learned.samples > 2 * samples
        return grown or time.monotonic() >= self._search_again_s

    async def _search(self, learned: Learned, tails: Mapping[str, int], generation: int) -> None:
        started_s = time.monotonic()
        await self._publish(learned, tails, generation, hint=None)
        self._searched = (int(np.count_nonzero(learned.count_C)), learned.samples)
        self._search_again_s = time.monotonic() + max(1.0, 20 * (time.monotonic() - started_s))

    async def _publish(
        self, learned: Learned, tails: Mapping[str, int], generation: int, *, hint: float | None
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            solved = await loop.run_in_executor(self._executor, solve, learned, tails, hint)
            self._take(solved, tails, generation)
        except PreconditionError as error:
            if error.reason == NO_NUMBERS:
                loop.call_later(_AGAIN_S, self.touch)
                return
            # Nothing learned yet: no head comes of these sums, and nobody waits for one.
            _logger.debug("no head yet", model=self._model, reason=error.reason)
            self._settle(tails, generation, exact=True)
        except Exception:  # the present head goes on serving, and the next batch tries again
            _logger.exception("no head could be solved", model=self._model)

    def _take(self, solved: Solved, tails: Mapping[str, int], generation: int) -> None:
        if solved.exact:
            self._hint = solved.head.regularization
        elif generation <= self._exact_generation:
            return  # overtaken: the exact head of these sums is there already, and stays
        if not solved.exact or generation == self._generation or not self._has_installed:
            self._install(solved)
            self._has_installed = True
            self._settle(tails, generation, exact=solved.exact)

    def _settle(self, tails: Mapping[str, int], generation: int, *, exact: bool) -> None:
        self._known = tails
        if exact and generation == self._generation:
            self._exact_generation = generation
        self._changed.set()


async def solved_of(writer: ModelWriter, executor: Executor) -> Solved | None:
    """The exact head of what has been learned by now; None of nothing."""
    learned, tails = await writer.learned()
    if not learned.samples:
        return None
    return await asyncio.get_running_loop().run_in_executor(executor, solve, learned, tails)


def solve(learned: Learned, tails: Mapping[str, int], hint: float | None = None) -> Solved:
    """The head of what has been learned: the exact one, or a quick one with `hint`. Raises PreconditionError."""
    begun_s = time.perf_counter()
    solution = learned.solve(hint=hint)
    head, tail = solution.head, solution.tail
    solve_ms = (time.perf_counter() - begun_s) * 1e3
    return Solved(
        head=head,
        tails=tails,
        sample_count=learned.samples,
        samples_C=tuple(int(count) for count in learned.count_C),
        memory_digest=learned.digest() if hint is None else "",
        exact=hint is None,
        solve_ms=solve_ms,
        parity=head_parity(head, probe_features(head.weight_dC.shape[0])),
        data=dump_solution(solution),
        tail=LiveTail(tail) if tail is not None else None,
        figures=learned.figures,
    )
