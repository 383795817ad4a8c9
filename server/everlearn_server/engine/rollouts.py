"""A model's rollout as it runs: takes what devices report, says which version each is to run, and moves the aliases.

The state is durable before anything moves by it; what devices reported is not (see `device_reports.py`). A restarted
server goes on with the canary and all that was withdrawn, and waits until the devices have told it anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import structlog

from everlearn.errors import EverlearnError, PreconditionError
from everlearn.spec.device_labels import matches
from everlearn.spec.rollout import Rollout
from everlearn_server.engine.device_reports import Cohort, Device, DeviceReports, Report
from everlearn_server.engine.rollout import RolloutState
from everlearn_server.engine.versions import Versioned

if TYPE_CHECKING:
    from everlearn_server.engine.live_model import LiveModel

_logger = structlog.get_logger(__name__)
_JUDGE_EVERY_S: Final = 0.5
_IDLE_SHARE: Final = 20
"""Judging looks at every device that is known, where everyone waits: it rests for so many times as long."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What one device is to run."""

    number: int
    """0 for nothing yet."""
    canary: bool = False


class LiveRollout:
    """Of one model; where none is declared, only what devices say is kept. Event loop only."""

    def __init__(self, model: LiveModel) -> None:
        self._model = model
        self.state = RolloutState()
        self.reports = DeviceReports()
        self.lock = asyncio.Lock()
        """Held by whoever moves `stable` or the canary, by a verdict or by hand."""
        self._judging: asyncio.Task[None] | None = None
        self._again, self._ended = False, asyncio.Event()

    # -- life ---------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Takes up what is stored, and lets go of what does not hold any more. Raises DataLossError."""
        stored = await self._model.store.catalog.rollout(self._model.name)
        self._ended.clear()
        self.state = RolloutState.from_json(stored) if stored is not None else RolloutState()
        async with self.lock:
            await self._tidy()
        self._model.book.canary = self.state.canary

    async def close(self) -> None:
        """Ends judging; a move that has begun is made."""
        self._ended.set()
        if self._judging is not None:
            await asyncio.gather(self._judging, return_exceptions=True)

    async def revised(self) -> None:
        """The declaration has changed."""
        async with self.lock:
            await self._tidy()

    def forget(self, gone: frozenset[int], client: str) -> None:
        """Versions that are not there any more, and a client of which nothing is to be known."""
        self.state = self.state.without(gone)
        self.reports.forget(client)

    # -- devices ------------------------------------------------------------------------------------------------

    @property
    def declared(self) -> Rollout | None:
        """None where every version is for all at once."""
        return self._model.spec.spec.rollout

    def heard(self, client: str, report: Report) -> None:
        """What a device says of itself; of one without a name nothing is kept."""
        if client and self.reports.take(client, report, now_s=time.monotonic(), asked=self._asked()):
            self.judge_soon()

    def wanted(self, client: str, labels: Mapping[str, str], follows: str) -> Wanted:
        """The version that a device is to run. A canary it is only for devices that have a name."""
        book, device = self._model.book, self.reports.find(client)
        found = book.latest if follows == "latest" else book.stable
        number, canary = found.record.number if found is not None else 0, self.state.canary
        if follows == "latest" or not client or not canary or not self.is_chosen(client, labels):
            return Wanted(number=number)
        if device is not None and canary in device.given_up:
            return Wanted(number=number)
        return Wanted(number=canary, canary=True)

    def is_withdrawn(self, number: int) -> bool:
        """Whether a version that runs somewhere is to run there no more: it was bad, or an erasure took it. What was
        exported is kept for as long as it may run."""
        is_gone = self._stable > 0 and number not in self._model.book.numbers()
        return number > 0 and (is_gone or self.state.is_withdrawn(number))

    def cohorts(self) -> tuple[Cohort, Cohort]:
        """The chosen devices with the canary; all devices with the stable version."""
        declared, stable = self.declared, self._stable
        most = declared.canary.most_of_one if declared is not None else 1

        def chosen(client: str, device: Device) -> bool:
            return self.is_chosen(client, device.labels)

        tried = self.reports.cohort(self.state.canary, most_of_one=most, chosen=chosen)
        return tried, self.reports.cohort(stable, most_of_one=most, chosen=self._counts)

    def is_chosen(self, client: str, labels: Mapping[str, str]) -> bool:
        """Whether a device is to run canaries."""
        declared = self.declared
        return declared is not None and matches(declared.canary.chosen, labels) and self._is_trusted(client)

    # -- judging ------------------------------------------------------------------------------------------------

    def judge_soon(self) -> None:
        """Something has come that may change what is to be done."""
        self._again = True
        if self.declared is None or self._ended.is_set():
            return
        if self._judging is None or self._judging.done():
            self._judging = asyncio.get_running_loop().create_task(self._judge_on(), name=f"judge-{self._model.name}")

    async def judge(self) -> None:
        """Moves what is to be moved now, and opens a canary where one waits. Raises UnavailableError."""
        async with self.lock:
            declared = self.declared
            if declared is None or self._ended.is_set():
                return
            if self.state.watch is not None:
                await self._judge_watched(declared)
            if self.state.canary:
                await self._judge_canary(declared)
            await self._offer()

    async def moved_by_hand(self, before: int) -> None:
        """Somebody has pointed `stable` at a version, with the lock; `before` is what it pointed at."""
        if self.declared is not None or self.state != RolloutState():
            state = self.state.moved_by_hand(self._stable, before=before, now_s=time.time())
            await self._move(
                state, {"canary": None, "previous": state.watch.before if state.watch else None}, "by hand"
            )

    async def point_stable(self, versioned: Versioned, reason: str) -> None:
        """By hand, with the lock: stores the alias `stable` and whether promotion is paused. Raises DataLossError where
        its head is damaged."""
        model, number = self._model, versioned.record.number
        async with model.store_lock:
            model.book.take_head(number, await asyncio.to_thread(model.pages.whole, versioned.snapshot.head))
            await model.put_version(versioned, {})
            await model.store.catalog.set_alias(model.name, "stable", number, reason)
            model.pointed["stable"] = number
        await model.update_row(promotion_paused=model.book.promotion_paused)

    async def pointed(self, alias: str) -> tuple[Versioned, int]:
        """Stores the version that an alias names now, and that it does; returns it and the number of that move."""
        model = self._model
        async with model.store_lock:
            versioned = model.book.find(alias)
            await model.put_version(versioned, {alias: versioned.record.number})
            rows = await model.store.catalog.aliases(model.name)
            return versioned, next(row.moved for row in rows if row.alias == alias)

    async def withdraw_canary(self) -> None:
        """Somebody withdraws the canary. Raises PreconditionError (NO_CANARY)."""
        async with self.lock:
            if not self.state.canary:
                raise PreconditionError(f"model {self._model.name!r} has no canary to withdraw", reason="NO_CANARY")
            state = self.state.withdrawn_canary("withdrawn by hand", newest=self._newest, now_s=time.time())
            await self._move(state, {"canary": None}, "withdrawn by hand")

    async def _judge_on(self) -> None:
        while self._again and not self._ended.is_set():
            self._again, begun_s = False, time.perf_counter()
            try:
                await self.judge()
            except EverlearnError as error:  # the next report asks again
                _logger.warning("no verdict", model=self._model.name, reason=error.reason, message=error.message)
            pause_s = max(_JUDGE_EVERY_S, _IDLE_SHARE * (time.perf_counter() - begun_s))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), pause_s)

    async def _judge_watched(self, declared: Rollout) -> None:
        watch = self.state.watch
        assert watch is not None
        most = declared.canary.most_of_one
        took, before = (
            self.reports.cohort(number, most_of_one=most, chosen=self._counts)
            for number in (watch.number, watch.before)
        )
        now_s = time.time()
        verdict = self.state.watched(declared, took, before, now_s=now_s)
        if verdict.kind == "promote":
            await self._move(replace(self.state, watch=None), {"previous": None}, verdict.reason)
        elif verdict.kind == "withdraw":
            state = self.state.gone_back(verdict.reason, newest=self._newest, now_s=now_s)
            aliases = {"stable": watch.before, "canary": None, "previous": None}
            await self._move(state, aliases, f"version {watch.number} is withdrawn: {verdict.reason}")

    async def _judge_canary(self, declared: Rollout) -> None:
        now_s, canary = time.time(), self.state.canary
        verdict = self.state.judged(declared, *self.cohorts(), now_s=now_s)
        if verdict.kind == "promote":
            before = self._stable
            state = self.state.promoted(before=before, now_s=now_s)
            aliases = {"stable": canary, "canary": None, "previous": before or None}
            await self._move(state, aliases, f"promoted: {verdict.reason}")
        elif verdict.kind == "withdraw":
            state = self.state.withdrawn_canary(verdict.reason, newest=self._newest, now_s=now_s)
            await self._move(state, {"canary": None}, f"withdrawn: {verdict.reason}")
        elif verdict.kind == "give_way":
            await self._move(self.state.gave_way(), {"canary": None}, verdict.reason)

    async def _offer(self) -> None:
        """The newest version becomes the canary, if it is stored, has passed the gate, and would be stable."""
        book = self._model.book
        latest = book.latest
        if latest is None or book.stable is None or book.promotion_paused or not latest.record.gate_passed:
            return
        number = latest.record.number
        if number > self._stable and number in book.stored:
            state = self.state.offered(number, now_s=time.time())
            if state != self.state:
                await self._move(state, {"canary": number}, "a canary from here on")

    async def _tidy(self) -> None:
        """Lets go of what is not there any more, was overtaken by hand, or is not declared any more."""
        book, state = self._model.book, self.state
        known = set(book.numbers())
        named = {state.canary, *((state.watch.number, state.watch.before) if state.watch else ())}
        state = state.without(frozenset(named - known - {0}))
        if state.watch is not None and (self.declared is None or state.watch.number != self._stable):
            state = replace(state, watch=None)
        lineage = book.find(str(state.canary)).record.lineage if state.canary else self._model.row.lineage
        overtaken = state.canary <= self._stable or lineage != self._model.row.lineage or book.promotion_paused
        if state.canary and (self.declared is None or overtaken):
            state = state.gave_way()
        if state != self.state:
            aliases: dict[str, int | None] = {} if state.canary else {"canary": None}
            await self._move(state, aliases if state.watch else {**aliases, "previous": None}, "let go")

    async def _move(self, state: RolloutState, aliases: Mapping[str, int | None], reason: str) -> None:
        """The state and the aliases that move by it (None: points at nothing any more), durable first; with the lock.
        Raises NotFoundError, DataLossError where the head of a version that is to be stable is damaged."""
        model, book = self._model, self._model.book
        async with model.store_lock:
            stable = book.find(str(aliases["stable"])) if aliases.get("stable") else None
            if stable is not None:
                whole = await asyncio.to_thread(model.pages.whole, stable.snapshot.head)
                book.take_head(stable.record.number, whole)
            await model.store.catalog.move_rollout(model.name, state.to_json(), aliases, reason)
            pointed = {**model.pointed, **aliases}
            model.pointed = {alias: number for alias, number in pointed.items() if number is not None}
            if stable is not None:
                book.stable = book.find(str(stable.record.number))
        self.state, book.canary = state, state.canary
        _logger.info("rollout", model=self._model.name, canary=state.canary, stable=self._stable, reason=reason)

    # -- what is known ------------------------------------------------------------------------------------------

    @property
    def _stable(self) -> int:
        stable = self._model.book.stable
        return stable.record.number if stable is not None else 0

    @property
    def _newest(self) -> int:
        return max(self._model.book.numbers(), default=0)

    def _asked(self) -> set[int]:
        watch = self.state.watch
        return {self._stable, self.state.canary, *((watch.number, watch.before) if watch else ())} - {0}

    def _counts(self, client: str, device: Device) -> bool:
        return self._is_trusted(client)

    def _is_trusted(self, client: str) -> bool:
        """Of a client in quarantine nothing is believed, and it is no canary."""
        if not self._model.is_started:
            return True
        tail = self._model.writer.work.tails.get(client)
        return tail is None or not tail.quarantined
