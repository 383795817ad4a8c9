"""One model that learns and serves: its writer, its publisher, its versions. Event loop only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import structlog

from everlearn.errors import DataLossError, EverlearnError, NotFoundError
from everlearn.learners.trainer import TrainerSettings
from everlearn.spec.load import dump
from everlearn.spec.model import Model
from everlearn.values import LinearHead
from everlearn_server.engine.beside import Beside
from everlearn_server.engine.budget import Budget
from everlearn_server.engine.client_parts import accounts_of, drop_parts
from everlearn_server.engine.conditions import conditions_json, not_ready
from everlearn_server.engine.damages import Damages
from everlearn_server.engine.head_pages import HeadPages
from everlearn_server.engine.hold import Hold
from everlearn_server.engine.integration import Integration
from everlearn_server.engine.learners import make_learner, make_records, sealer_of
from everlearn_server.engine.pace import Pace
from everlearn_server.engine.publisher import Publisher, Solved, solved_of
from everlearn_server.engine.restoring import TrunkOf, aliased, stored_versions
from everlearn_server.engine.rollouts import LiveRollout
from everlearn_server.engine.serving import Snapshot
from everlearn_server.engine.tails import LiveTail
from everlearn_server.engine.trunks import LiveTrunk
from everlearn_server.engine.versions import VersionBook, Versioned, judged_by, tested
from everlearn_server.engine.writer import ModelWriter
from everlearn_server.store.rows import Commit, Erasing, ModelRow, Receipt
from everlearn_server.store.store import Store

_logger = structlog.get_logger(__name__)
_STORE_EVERY_S = 2.0
"""While a stream goes on, a version is stored this often at most; at rest the last one always is."""


class LiveModel:
    """A declared model. `start` makes it ready; before that, and after `stop`, it neither learns nor serves."""

    def __init__(
        self,
        *,
        row: ModelRow,
        spec: Model,
        store: Store,
        executor: Executor,
        solvers: Executor,
        pages: HeadPages,
        commit_share: float,
        trainer: TrainerSettings = TrainerSettings(),  # noqa: B008  # frozen
        release_trunk: Callable[[LiveTrunk], None] = lambda trunk: None,
        on_first_stable: Callable[[str], None] = lambda name: None,
        on_calibrated: Callable[[LiveModel], None] = lambda model: None,
        damages: Damages | None = None,
    ) -> None:
        self.row, self.spec = row, spec
        self.unloaded = self._closed = False
        self.trunk: LiveTrunk | None = None
        self.beside: Beside | None = None
        self.earlier_trunks: dict[str, LiveTrunk] = {}
        """Of versions from earlier lineages, by feature digest."""
        self.book = VersionBook(model=row.name, lineage=row.lineage, first_number=0)
        self.book.paged = pages.paged
        self.book.promotion_paused = row.promotion_paused
        self.book.class_samples = spec.spec.privacy.min_class_samples or 0
        self.store = store
        self._executor, self.solvers = executor, solvers
        self._release_trunk, self.pages = release_trunk, pages
        self._commit_share, self._trainer = commit_share, trainer
        self._own_threads: ThreadPoolExecutor | None = None
        self._row_lock, self.store_lock = asyncio.Lock(), asyncio.Lock()
        self._on_first_stable, self._on_calibrated = on_first_stable, on_calibrated
        self.damages = damages or Damages()
        self.rollout = LiveRollout(self)
        self._writer: ModelWriter | None = None
        self._publisher: Publisher | None = None
        self._storing: asyncio.Task[None] | None = None
        self._reserving: asyncio.Task[None] | None = None
        self._stored_at_s = 0.0
        self.pointed: dict[str, int] = {}  # aliases, as they are stored

    @property
    def name(self) -> str:
        """`{model}`, without the collection."""
        return self.row.name

    @property
    def is_started(self) -> bool:
        """Whether it learns."""
        return self._writer is not None

    @property
    def writer(self) -> ModelWriter:
        """Raises PreconditionError (MODEL_NOT_READY) before `start`."""
        if self._writer is None:
            raise self._not_ready()
        return self._writer

    @property
    def publisher(self) -> Publisher:
        """Raises PreconditionError (MODEL_NOT_READY) before `start`."""
        if self._publisher is None:
            raise self._not_ready()
        return self._publisher

    @property
    def ready_trunk(self) -> LiveTrunk:
        """The trunk it learns on. Raises PreconditionError (MODEL_NOT_READY) before `start`."""
        if self.trunk is None or self._writer is None:
            raise self._not_ready()
        return self.trunk

    async def start(
        self, trunk: LiveTrunk, trunk_of: TrunkOf, first: Solved | None = None, beside: Beside | None = None
    ) -> None:
        """Loads what is stored and begins to learn. `first`: the head of exactly that, where it is known already.

        Raises DataLossError where the memory is damaged; what was published before is taken up all the same, to serve.
        """
        self.trunk, self.beside, self._closed = trunk, beside, False
        await self._restore_versions(trunk, trunk_of)
        await self.rollout.load()
        try:
            data = await self.store.ledger.memory(self.name)
            ledger = await self.store.ledger.state(self.name)
            sealer = await sealer_of(self.spec.spec, self.store, self.name)
            learner = await asyncio.to_thread(make_learner, self.spec.spec, trunk, data, self._trainer, sealer)
            prequential, limits = make_records(self.spec.spec, ledger.prequential_json if ledger else None)
        except DataLossError as error:
            self.damages.found("memory", self.name, error)
            raise
        await self._reserve_numbers()
        latest, accounts = self.book.latest, await accounts_of(self.store, self.row, self.spec.spec)
        self._writer = ModelWriter(
            model=self.name,
            uid=self.row.uid,
            lineage=self.row.lineage,
            timeline=self.store.timeline,
            learner=learner,
            scale=trunk.scale,
            prequential=prequential,
            streams=await self.store.ledger.streams(self.name),
            ledger=self.store.ledger,
            executor=self._threads(),
            live=lambda: self.book.latest.snapshot if self.book.latest else None,
            on_integrated=self._on_integrated,
            on_durable=self._store_soon,
            hold=Hold.of(self.spec.spec),
            budget=Budget.of(self.spec.spec, self.row.lineage, await self.store.ledger.spends(self.name)),
            limits=limits,
            pace=Pace(self._commit_share, clock=time.monotonic if self._own_threads else time.thread_time),
        )
        self._writer.commit_id = ledger.commit_id if ledger else 0
        self._writer.held.rounds = trunk.calibrated_on > 0
        self._writer.work.receipts, self._writer.work.parts = accounts
        self._publisher = self._make_publisher(latest)
        if first is not None:  # before anybody can open a stream, which then is tested by it
            self._install(first)
        elif learner.samples and (latest.record.memory_digest if latest else "") != await self._writer.digest():
            self._publisher.touch()

    async def stop(self, *, commit: bool = True) -> None:
        """Commits what is staged, stores the last version, and stops."""
        self._closed = True
        await self.rollout.close()
        if self._writer is not None:
            await self._writer.close(commit=commit)
        if self._publisher is not None:
            self._publisher.close()
        await asyncio.gather(*(task for task in (self._storing, self._reserving) if task), return_exceptions=True)
        if self.beside is not None:
            await self.beside.stop(save=commit)
        if commit:
            await self._store_latest()
        if self._writer is not None:
            await asyncio.to_thread(self._writer.learner.close)
        if self._own_threads is not None:
            self._own_threads.shutdown()
        self._writer, self._publisher, self._own_threads = None, None, None

    async def revise(self, spec: Model) -> None:
        """Takes up a changed declaration that needs no new lineage; what changes the versions makes one at once."""
        before, now, writer = self.spec.spec, spec.spec, self.writer
        await writer.configure(spec.spec)
        await self.update_row(
            declaration=dump(spec), generation=self.row.generation + 1, conditions_json=conditions_json(None)
        )
        self.spec = spec
        if before.privacy.client_sums and not now.privacy.client_sums:
            await writer.between_commits(lambda work: drop_parts(work, self.store, self.name))
        self.book.take_input(now.input)
        self.book.class_samples = now.privacy.min_class_samples or 0
        await writer.declare(now.labels)
        await self.prune()
        await self.rollout.revised()
        await self.store.moments.thin(self.name, writer.work.keeping)
        if now.head != before.head:
            self.publisher.close()
            self._publisher = self._make_publisher(None)
        if judged_by(before) != judged_by(now):
            self.publisher.touch()

    async def update_row(self, *, memory: Commit | None = None, **changes: Any) -> ModelRow:
        """Writes the model's row, and with it the memory of its new lineage, if there is one; one at a time, so that no
        writer meets another's etag. Raises NotFoundError."""
        async with self._row_lock:
            row, etag = replace(self.row, update_time_s=time.time(), **changes), self.row.etag
            if memory is None:
                self.row = await self.store.catalog.put_model(row, expected_etag=etag)
            else:
                self.row = await self.store.ledger.replace(row, memory, expected_etag=etag)
            return self.row

    def let_go(self) -> list[LiveTrunk]:
        """The trunks it used, to be released; for a model that has been stopped."""
        own = [self.trunk, self.beside.trunk if self.beside else None]
        used = [*(trunk for trunk in own if trunk), *self.earlier_trunks.values()]
        self.trunk, self.beside, self.earlier_trunks = None, None, {}
        return used

    # -- publishing ---------------------------------------------------------------------------------------------

    def _make_publisher(self, latest: Versioned | None) -> Publisher:
        return Publisher(
            model=self.name,
            writer=self.writer,
            executor=self.solvers,
            install=self._install,
            hint=latest.snapshot.head.regularization if latest else None,
        )

    def _threads(self) -> Executor:
        """A gradient step may take seconds: those wait in a thread of their own, not where others integrate."""
        if not self.spec.spec.by_gradient and self.spec.spec.adapt.kind == "frozen":
            return self._executor
        self._own_threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"trainer-{self.name}")
        return self._own_threads

    def ask(self) -> None:
        """Somebody wants predictions of this model: its heads are to be fresh."""
        if self._publisher is not None:
            self._publisher.ask()

    def _on_integrated(self) -> None:
        if self.trunk is not None and self.trunk.observes:
            if not self.writer.learner.waits_for:
                self._on_calibrated(self)
        elif self._publisher is not None:
            self._publisher.touch()

    def _install(self, solved: Solved) -> None:
        assert self.trunk is not None
        trunk, first = self.trunk, self.book.stable is None

        def make(number: int, solved: Solved) -> Snapshot:
            return self._snapshot(number, solved.head, solved.tail, trunk, time.time())

        self.book.publish(solved, spec=self.spec, trunk=trunk, prequential=tested(self.writer), make=make)
        if first and self.book.stable is not None:
            self._on_first_stable(self.name)
        if self.book.needs_numbers and (self._reserving is None or self._reserving.done()):
            # Not left to the store's loop: a small model publishes a hundred heads a second.
            self._reserving = asyncio.get_running_loop().create_task(self._reserve_numbers())
        self._store_soon()

    def _snapshot(self, number: int, head: LinearHead, tail: LiveTail | None, on: LiveTrunk, at_s: float) -> Snapshot:
        return Snapshot(
            model=self.name,
            version=number,
            trunk=on,
            front=on.front,
            head=head,
            tail=tail,
            input=self.spec.spec.input,
            feature_digest=on.feature_digest,
            create_time_s=at_s,
        )

    # -- storing versions ---------------------------------------------------------------------------------------

    def _store_soon(self) -> None:
        if not self._closed and (self._storing is None or self._storing.done()):
            self._storing = asyncio.get_running_loop().create_task(self._store_loop(), name=f"store-{self.name}")

    async def _store_loop(self) -> None:
        while self.book.latest is not None and not self._is_stored(self.book.latest):
            wait_s = self._stored_at_s + _STORE_EVERY_S - time.monotonic()
            if wait_s > 0 and not self.writer.idle:
                await asyncio.sleep(min(wait_s, 0.1))
                continue
            if not self.writer.is_durable(self.book.latest.tails):
                return  # the commit that makes it durable calls again
            await self._store_latest()

    def _is_stored(self, latest: Versioned) -> bool:
        return latest.record.number in self.book.stored and self.pointed.get("latest") == latest.record.number

    async def _store_latest(self) -> None:
        async with self.store_lock:
            latest, stable = self.book.latest, self.book.stable
            if latest is None or self._writer is None or not self._writer.is_durable(latest.tails):
                return
            if stable is not None and stable is not latest:
                # It may be a head that was superseded before it was stored, by one that the gate held back.
                await self.put_version(stable, {"stable": stable.record.number})
            number = latest.record.number
            await self.put_version(latest, {"latest": number, **({"stable": number} if stable is latest else {})})
            await self._prune()
            await self._reserve_numbers()
            self._stored_at_s = time.monotonic()
        self.rollout.judge_soon()

    async def prune(self) -> None:
        """Deletes stored versions beyond the declared number."""
        async with self.store_lock:
            await self._prune()

    async def _prune(self) -> None:
        gone = await self.store.catalog.prune_versions(self.name, self.spec.spec.serving.keep_versions)
        self.book.forget(gone)
        for number in gone:
            self.damages.gone(self.name, kind="version", name=str(number))
        served = {self.book.find(str(number)).snapshot.feature_digest for number in self.book.numbers()}
        for features in self.earlier_trunks.keys() - served:
            self._release_trunk(self.earlier_trunks.pop(features))

    async def store_version(self, versioned: Versioned) -> None:
        """Stores a version that somebody relies on (promoted, exported)."""
        async with self.store_lock:
            await self.put_version(versioned, {})

    async def put_version(self, versioned: Versioned, aliases: dict[str, int]) -> None:
        """Stores a version once and points aliases at it; holds the lock, or two callers would store it twice."""
        moved = {alias: number for alias, number in aliases.items() if self.pointed.get(alias) != number}
        if self.book.is_withdrawn(versioned.record.number):
            raise NotFoundError(f"version {versioned.record.number} was withdrawn by an erasure", field="version")
        if versioned.record.number not in self.book.stored:
            versioned = versioned.of_commit(self.writer.commit_id if self.writer.is_durable(versioned.tails) else 0)
            reason = "published" if aliases else "kept"
            await self.store.catalog.put_version(versioned.record, aliases=moved, reason=reason)
            self.book.keep(versioned)
        else:
            for alias, number in moved.items():
                await self.store.catalog.set_alias(self.name, alias, number, "published")
        self.pointed.update(moved)

    async def erase(self, take_out: Callable[[Integration], Erasing]) -> Receipt:
        """Takes something out, commits, and solves a head of what is left; what knew it serves until that is there, and
        never again. Raises what `take_out` raises; nothing has changed then."""
        async with self.store_lock:  # held from before the commit: a version that knew it must not be stored after it
            await self._reserve_numbers()
            receipt = await self.writer.erase(take_out)
            self.publisher.close()
            changes, solved = self.writer.work.changes, await solved_of(self.writer, self.solvers)
            self.book.withdraw(receipt.withdrawn)
            self.rollout.forget(frozenset(receipt.withdrawn), receipt.erased.client if receipt.erased else "")
            self.pointed = {alias: at for alias, at in self.pointed.items() if at in self.book.stored}
            if solved is not None:
                self._install(solved)
            self.book.fall_back()
            self._publisher = self._make_publisher(self.book.latest)
            if self.writer.work.changes != changes:
                self._publisher.touch()
        await self._store_latest()
        return receipt

    async def _reserve_numbers(self) -> None:
        count = self.book.needs_numbers
        if count:
            self.book.add_numbers(await self.store.catalog.reserve_versions(self.name, count), count)

    async def _restore_versions(self, trunk: LiveTrunk, trunk_of: TrunkOf) -> None:
        self.pointed = {row.alias: row.number for row in await self.store.catalog.aliases(self.name)}
        catalog, earlier, versions = self.store.catalog, self.earlier_trunks, dict[int, Versioned]()
        for each in await stored_versions(catalog, self.name, trunk, trunk_of, earlier, self.damages):
            tail = LiveTail(each.solution.tail) if each.solution.tail is not None else None
            snapshot = self._snapshot(each.row.number, each.solution.head, tail, each.trunk, each.row.create_time_s)
            versions[each.row.number] = self.book.restore(each.row, snapshot)
        self.book.stable, latest = await aliased(catalog, self.name, versions, self.pointed)
        if latest is not None and latest.record.lineage == self.row.lineage:
            self.book.latest = latest
        self.book.page()

    def _not_ready(self) -> EverlearnError:
        return not_ready(self.row, self.damages.of(self.name))
