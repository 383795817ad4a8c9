"""Moves a model to another backbone with all it has learned: calibrate, judge, and only then swap.

A calibration stream of unlabelled samples passes both trunks. Of it only sums of pairs are kept, and the features of
each fifth sample until the end of the call, in RAM; nothing of it is stored, and a call that breaks leaves no trace.
The model learns and serves all the while. The swap stops it, moves what is committed, and writes row and memory of the
next lineage in one transaction: before it the old model is whole, after it the new one. Streams keep their watermarks.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import structlog

from everlearn.errors import ConflictError, EverlearnError, InputError, SpecError, UnavailableError
from everlearn.heads import head_for
from everlearn.inputs.samples import Features, Pixels, Raw, Samples
from everlearn.learners import ClosedForm, Masked
from everlearn.memories.statistics import Statistics
from everlearn.metrics.fleet import FleetTally
from everlearn.metrics.prequential import Prequential
from everlearn.runtime.session import TrunkSession
from everlearn.spec.load import dump, parse
from everlearn.spec.model import Model
from everlearn.spec.plan import Plan
from everlearn.upgrade import Pairs, move
from everlearn.values import LinearHead, QuantisedBd, Trunk
from everlearn_server.engine.applier import Applier, Progress
from everlearn_server.engine.conditions import conditions_json
from everlearn_server.engine.declarations import Declarations
from everlearn_server.engine.embedding import features_of
from everlearn_server.engine.fleet import READY, Fleet
from everlearn_server.engine.fleet_records import FLEET, records_json
from everlearn_server.engine.hold import Hold
from everlearn_server.engine.live_model import LiveModel
from everlearn_server.engine.publisher import Solved, solve
from everlearn_server.engine.trunks import LiveTrunk
from everlearn_server.engine.truth_check import MAX_BATCH_SAMPLES
from everlearn_server.engine.upgrade_gate import (
    HELD_OUT_EVERY,
    MOST_HELD_OUT,
    HeldOut,
    Judged,
    Standing,
    Terms,
    judge,
    story,
)
from everlearn_server.engine.work_queue import WorkQueue
from everlearn_server.store.rows import Commit
from everlearn_server.store.store import Store

_logger = structlog.get_logger(__name__)
_MOVES = ("spec.backbone.", "spec.input.", "spec.projection", "spec.memory.bits")
"""What an upgrade may change: the trunk. Whatever else is to change is applied by itself."""
_SAME_SAMPLES = ("spec.input.modality", "spec.input.shape")
"""Both trunks see the same samples."""


@dataclass(frozen=True, kw_only=True)
class Upgraded:
    """How it ended."""

    judged: Judged
    live: bool


class Upgrades:
    """Begins upgrades, one a model at a time. Event loop only."""

    def __init__(
        self, *, store: Store, fleet: Fleet, applier: Applier, declarations: Declarations, queue: WorkQueue
    ) -> None:
        self.store, self.fleet, self.applier, self.declarations, self.queue = store, fleet, applier, declarations, queue
        self.under_way: dict[str, Upgrade] = {}
        self.swaps: set[asyncio.Task[None]] = set()
        self._closed = False

    async def begin(self, name: str, text: str, terms: Terms, progress: Progress) -> Upgrade:
        """Makes the successor's trunk ready; the caller closes what is returned.

        Raises what `plan` raises, SpecError where more than the trunk differs or the recipe cannot move,
        PreconditionError (MODEL_NOT_READY, EMPTY_MEMORY, TOO_MANY_FEATURES), ConflictError.
        """
        if self._closed:
            raise UnavailableError("the server is stopping; try again")
        if name in self.under_way:
            raise ConflictError(f"model {name!r} is being upgraded already; wait for that", field="open.name")
        upgrade = Upgrade(self, self.fleet.get(name, field="open.name"), terms)
        self.under_way[name] = upgrade
        try:
            await upgrade.prepare(text, progress)
        except BaseException:
            upgrade.close()
            raise
        return upgrade

    async def close(self) -> None:
        """A swap that has begun comes to its end; none begins any more."""
        self._closed = True
        await asyncio.gather(*self.swaps, return_exceptions=True)

    @property
    def closed(self) -> bool:
        """Whether the server is stopping."""
        return self._closed


class Upgrade:
    """One call: prepare, feed, finish, close."""

    def __init__(self, owner: Upgrades, model: LiveModel, terms: Terms) -> None:
        self._owner = owner
        self._model = model
        self._terms = terms
        self._generation = model.row.generation
        self._before = model.ready_trunk
        self._spec: Model
        self._trunk: Trunk
        self._lock: Mapping[str, str] = {}
        self._after: LiveTrunk | None = None
        self._head: LinearHead
        self._pairs: Pairs
        self._held_old: list[QuantisedBd] = []
        self._held_new: list[QuantisedBd] = []
        self._held = 0
        self.fed = 0
        """Samples so far."""

    async def prepare(self, text: str, progress: Progress) -> None:
        """See Upgrades.begin."""
        name = self._model.name
        if parse(text).metadata.name != name:
            raise SpecError(f"the declaration is of {parse(text).metadata.name!r}, not {name!r}", field="metadata.name")
        plan, _ = await self._owner.declarations.plan_for(text)
        _check(self._model.spec, plan)
        learned, _ = await self._model.writer.learned()
        self._head = (await asyncio.to_thread(learned.solve)).head
        self._spec = plan.declaration
        self._trunk, lock = await self._owner.applier.trunk(self._spec, progress)
        self._lock = {**lock, **await self._owner.applier.student(self._spec, progress)}
        self._pairs = Pairs(self._before.feature_dim, self._trunk.feature_dim)
        session: TrunkSession = await asyncio.to_thread(self._owner.fleet.open_session, self._trunk)
        self._after = self._owner.fleet.trunks.acquire(self._trunk, session)

    async def feed(self, samples: Samples) -> int:
        """Adds a batch of any form but features, up to 1,024; returns how many there are now. Raises InputError."""
        if len(samples) > MAX_BATCH_SAMPLES:
            raise InputError(f"{len(samples)} samples; send {MAX_BATCH_SAMPLES} a message at most", field="samples")
        if isinstance(samples, Features | Pixels):
            raise InputError("both backbones must see the same: send the samples themselves", field="samples")
        raw: Raw = samples
        assert self._after is not None
        queue, before, after = self._owner.queue, self._before, self._after
        old, new = await asyncio.gather(
            features_of(before, self._model.spec.spec.input, raw, queue),
            features_of(after, self._spec.spec.input, raw, queue),
        )
        await asyncio.to_thread(
            self._add, before.scale.quantise(old.features_Bd), after.scale.quantise(new.features_Bd)
        )
        return self.fed

    async def finish(self) -> Upgraded:
        """Judges, and where the gate passes goes live. Raises ConflictError where the model has changed meanwhile."""
        judged = await self._judge()
        if not judged.passed or self._terms.dry_run:
            return Upgraded(judged=judged, live=False)
        if self._owner.closed:
            raise UnavailableError("the server is stopping; nothing was changed")
        swap = asyncio.get_running_loop().create_task(self._swap(judged), name=f"upgrade-{self._model.name}")
        self._owner.swaps.add(swap)
        swap.add_done_callback(self._owner.swaps.discard)
        await asyncio.shield(swap)  # a caller that goes away does not leave it half done
        return Upgraded(judged=judged, live=True)

    def close(self) -> None:
        """Forgets the calibration."""
        if self._owner.under_way.get(self._model.name) is self:
            del self._owner.under_way[self._model.name]
        if self._after is not None:
            self._owner.fleet.trunks.release(self._after)
            self._after = None

    # -- inside -------------------------------------------------------------------------------------------------

    def _add(self, old_Bd: QuantisedBd, new_Be: QuantisedBd) -> None:
        index_B = self.fed + np.arange(len(old_Bd))
        judges_B = (index_B % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) & (self._held < MOST_HELD_OUT)
        self._held_old.append(old_Bd[judges_B])
        self._held_new.append(new_Be[judges_B])
        self._held += int(judges_B.sum())
        fitted_Bd = old_Bd[~judges_B]
        best_B = self._head.scores(self._before.scale.restore(fitted_Bd)).argmax(axis=1)
        self._pairs.add(fitted_Bd, new_Be[~judges_B], [self._head.labels[best] for best in best_B])
        self.fed += len(old_Bd)

    async def _judge(self) -> Judged:
        self._refuse_if_changed()
        model = self._model
        sums, _ = await model.writer.copy_sums()
        record = model.writer.prequential
        assert isinstance(record, Prequential), "of one label a sample"
        assert self._after is not None
        standing = Standing(
            windowed_accuracy=model.writer.held.shown.record.window_accuracy,
            stable_accuracy=model.book.stable_accuracy,
            temperature=record.temperature,
            class_samples=self._spec.spec.privacy.min_class_samples or 1,
        )
        held = HeldOut(
            old_Bd=_stacked(self._held_old, self._pairs.old_dim), new_Be=_stacked(self._held_new, self._pairs.new_dim)
        )
        scales = self._before.scale, self._after.scale
        return await asyncio.to_thread(judge, sums, self._pairs, held, scales, self._spec.spec, standing, self._terms)

    async def _swap(self, judged: Judged) -> None:
        fleet, model = self._owner.fleet, self._model
        async with self._owner.declarations.changing(model.name):
            self._refuse_if_changed()
            await model.stop()
            try:
                first = await self._write(judged)
            except BaseException:
                await self._revive()
                raise
            # Made ready before it takes the place: predictions go on meanwhile.
            successor = fleet.make(model.row, self._spec)
            try:
                await fleet.begin(successor, self._trunk, None, first)
            except EverlearnError as error:  # it is moved, and the next start takes it up
                fleet.tell_failure(successor, error)
                raise
            finally:
                fleet.take(successor)
                fleet.release(model)
            _logger.info("upgraded", model=model.name, trunk=self._trunk.digest, drop_bound=judged.agreed.drop_bound)

    async def _write(self, judged: Judged) -> Solved:
        """Moves what is committed, in one transaction. Returns the head that is to serve."""
        model, store = self._model, self._owner.store
        data, state = await store.ledger.memory(model.name), await store.ledger.state(model.name)
        assert data is not None, "it has learned, and is committed"
        assert state is not None
        tails = {client: row.durable_sequence for client, row in (await store.ledger.streams(model.name)).items()}
        told = json.loads(state.prequential_json)
        record, clients = Prequential.from_dict(told), FleetTally.from_dict(told.get(FLEET))
        record.forget_features()
        learner = await asyncio.to_thread(self._moved, data, judged)
        hold = Hold.of(self._spec.spec)
        learned = learner.learned() if hold is None else Masked(learner.learned(), hold.class_samples)
        first = await asyncio.to_thread(solve, learned, tails)
        commit = Commit(
            model=model.name,
            uid=model.row.uid,
            lineage=model.row.lineage + 1,
            timeline=store.timeline,
            memory=await asyncio.to_thread(learner.to_bytes),
            sample_count=learner.samples,
            streams={},
            prequential_json=records_json(record.to_dict(), clients),
        )
        await model.update_row(
            memory=commit,
            declaration=dump(self._spec),
            generation=model.row.generation + 1,
            lineage=commit.lineage,
            state=READY,
            conditions_json=conditions_json(None),
            lock_json=json.dumps(dict(self._lock)),
            trunk_digest=self._trunk.digest,
        )
        return first

    def _moved(self, data: bytes, judged: Judged) -> ClosedForm:
        spec, scale = self._spec.spec, self._trunk.scale
        memory = Statistics.from_bytes(data)
        sums = move(memory.sums, judged.to, self._before.scale, scale)
        told = story(judged, memory.seen, self._before.provenance)
        head = head_for(spec.head.kind, spec.head.regularization)
        moved = memory.moved_to(sums, spec.memory, story=told)
        return ClosedForm(moved, head, scale, false_alarms=spec.unknown.level)

    async def _revive(self) -> None:
        """Nothing was written: the old model goes on as it was."""
        fleet, model = self._owner.fleet, self._model
        assert model.row.trunk_digest is not None, "it was ready"
        old = await self._owner.applier.trunk_of(model.spec, model.row.trunk_digest)
        await fleet.begin(fleet.enlist(model.row, model.spec), old)
        fleet.release(model)

    def _refuse_if_changed(self) -> None:
        present = self._owner.fleet.get(self._model.name)
        if present is not self._model or present.row.generation != self._generation:
            raise ConflictError(
                f"model {present.name!r} was changed while its upgrade was calibrated; begin again", field="declaration"
            )


def _check(before: Model, plan: Plan) -> None:
    """Raises SpecError for what no upgrade can do."""
    spec = before.spec
    if spec.task != "classification":
        raise SpecError(f"sums of a {spec.task} model cannot be moved yet; only classification can", field="spec.task")
    if spec.by_gradient or spec.adapt.kind != "frozen":
        raise SpecError(
            "a part of this model learns by gradient steps, which belong to its own backbone; only a solved head on a "
            "frozen backbone can move",
            field="spec.adapt.kind",
        )
    if spec.privacy.tier == "dp":
        raise SpecError(
            "sums with noise cannot be moved: what is estimated from them would carry it on without its account; begin "
            "anew on the other backbone",
            field="spec.privacy.tier",
        )
    if spec.privacy.client_sums:
        raise SpecError(
            "sums that are moved are estimates, from which no client's own can be subtracted any more; write "
            "privacy.client_sums: false first, which deletes them, or declare another model on that backbone",
            field="spec.privacy.client_sums",
        )
    if spec.int8_trunk is not None:
        raise SpecError(
            "a trunk in 8 bits is made from the model's first images, and the other backbone would have to meet those "
            "first; declare another model on that backbone",
            field="spec.int8_trunk",
        )
    if spec.memory.kind != "statistics":
        raise SpecError(f"memory {spec.memory.kind} cannot be moved; statistics can", field="spec.memory.kind")
    for change in plan.changes:
        if change.field in _SAME_SAMPLES:
            raise SpecError("both backbones must take the same samples", field=change.field)
        if not change.field.startswith(_MOVES):
            raise SpecError(
                f"changes from {change.before or 'nothing'} to {change.after or 'nothing'}, and an upgrade moves the "
                "backbone and its input alone; apply that by itself",
                field=change.field,
            )
    if not plan.replaces:
        raise SpecError("the model has this backbone already; there is nothing to move", field="spec.backbone")


def _stacked(parts: list[QuantisedBd], dim: int) -> QuantisedBd:
    return np.concatenate([np.empty((0, dim), np.int16), *parts])
