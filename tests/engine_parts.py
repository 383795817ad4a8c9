"""A writer on a real store, and batches for it whose content follows from client and sequence alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from tests.store_rows import MODEL

from everlearn.errors import EverlearnError, InputError
from everlearn.heads.base import Head
from everlearn.heads.ridge import Ridge
from everlearn.learners import ClosedForm
from everlearn.memories.base import Memory
from everlearn.memories.statistics import Statistics
from everlearn.metrics.prequential import Prequential
from everlearn.sums import Sums
from everlearn.values import FeaturesBd, FeatureScale
from everlearn_server.engine.batches import Derived, Outcome
from everlearn_server.engine.hold import Hold
from everlearn_server.engine.pace import Pace
from everlearn_server.engine.writer import ModelWriter
from everlearn_server.store.ledger import Ledger
from everlearn_server.store.rows import Commit, ModelRow, Receipt
from everlearn_server.store.store import Store

DIM = 4
SCALE = FeatureScale(step_d=np.full(DIM, 2.0**-6, np.float32))
EXECUTOR = ThreadPoolExecutor(2, thread_name_prefix="tests-sums")


def features_of(client: str, sequence: int) -> tuple[FeaturesBd, tuple[str, ...]]:
    """What a client's n-th batch holds, whenever and however often it is sent."""
    rng = np.random.default_rng([*client.encode(), sequence])
    rows = int(rng.integers(1, 4))
    labels = tuple(f"class {label}" for label in rng.integers(0, 5, rows))
    return rng.normal(0, 4, (rows, DIM)).astype(np.float32), labels


def batch(client: str, sequence: int, *, epoch: int = 1, refused: bool = False) -> Derived:
    """The client's n-th batch as it comes out of the trunk, or as one that could not be decoded."""
    features_Bd, labels = features_of(client, sequence)
    refusal = InputError("not an image", field="batch.samples.encoded_images.images[0]") if refused else None
    return Derived(
        client=client, epoch=epoch, sequence=sequence, features_Bd=features_Bd, labels=labels, refusal=refusal
    )


def sums_of(*batches: tuple[str, int]) -> Sums:
    """Each batch added once, outside any writer."""
    sums = Sums(DIM)
    for client, sequence in batches:
        features_Bd, labels = features_of(client, sequence)
        sums.add(SCALE.quantise(features_Bd), labels)
    return sums


@dataclass(eq=False)
class Heard:
    """A connection that writes down what it is told."""

    durable: list[int] = field(default_factory=list)
    ends: list[EverlearnError] = field(default_factory=list)
    on_durable: Callable[[int], None] = lambda sequence: None

    def durable_up_to(self, sequence: int, commit_id: int) -> None:
        self.durable.append(sequence)
        self.on_durable(sequence)

    def over(self, error: EverlearnError) -> None:
        self.ends.append(error)


class SlowLedger:
    """The real ledger behind a disk that takes `delay_s` for a commit."""

    def __init__(self, ledger: Ledger, delay_s: float) -> None:
        self._ledger = ledger
        self.delay_s = delay_s
        self.commits: list[Commit] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def commit(self, commit: Commit) -> Receipt:
        self.commits.append(commit)
        await asyncio.sleep(self.delay_s)
        receipt = await self._ledger.commit(commit)
        return Receipt(
            commit_id=receipt.commit_id,
            busy_s=receipt.busy_s + self.delay_s,
            bytes_written=receipt.bytes_written,
        )


async def declared(store: Store, model: ModelRow = MODEL) -> None:
    """The model in the catalog, `digits` unless another is named."""
    if all(row.name != model.name for row in await store.catalog.models()):
        await store.catalog.put_model(model, expected_etag=None)


async def make_writer(
    store: Store,
    *,
    model: ModelRow = MODEL,
    memory: Memory | None = None,
    head: Head | None = None,
    ledger: Ledger | SlowLedger | None = None,
    executor: Executor = EXECUTOR,
    on_integrated: Callable[[], None] = lambda: None,
    on_fatal: Callable[[BaseException], None] | None = None,
    commit_share: float = 1.0,
    hold: Hold | None = None,
) -> ModelWriter:
    """A writer that has taken up what the store holds, as a server does when it starts."""
    await declared(store, model)
    data, state = await store.ledger.memory(model.name), await store.ledger.state(model.name)
    stored: Memory = Statistics.from_bytes(data) if data else Statistics.create(DIM, ())
    return ModelWriter(
        model=model.name,
        uid=model.uid,
        lineage=model.lineage,
        timeline=store.timeline,
        learner=ClosedForm(memory or stored, head or Ridge(), SCALE),
        scale=SCALE,
        prequential=Prequential.from_dict(json.loads(state.prequential_json)) if state else Prequential(),
        streams=await store.ledger.streams(model.name),
        ledger=cast(Ledger, ledger or store.ledger),
        executor=executor,
        live=lambda: None,
        on_integrated=on_integrated,
        on_durable=lambda: None,
        hold=hold,
        pace=Pace(commit_share),
        on_fatal=on_fatal or _unexpected,
    )


@asynccontextmanager
async def writer_of(store: Store, **options: Any) -> AsyncIterator[ModelWriter]:
    """`make_writer`, closed at the end."""
    writer = await make_writer(store, **options)
    try:
        yield writer
    finally:
        await writer.close()


def submitted(writer: ModelWriter, item: Derived) -> asyncio.Future[Outcome]:
    """Stages a batch; the future gives what becomes of it, or raises it."""
    outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def settled(result: Outcome | EverlearnError) -> None:
        if outcome.done():
            return
        if isinstance(result, Outcome):
            outcome.set_result(result)
        else:
            outcome.set_exception(result)
            outcome.exception()  # the test may not look

    writer.submit(item, settled)
    return outcome


async def learn(writer: ModelWriter, *batches: Derived) -> list[Outcome | BaseException]:
    """Stages all at once and waits for what becomes of each."""
    return await asyncio.gather(*(submitted(writer, item) for item in batches), return_exceptions=True)


async def until_durable(writer: ModelWriter, client: str, sequence: int) -> None:
    """Waits for the commit."""
    async with asyncio.timeout(60):
        while writer.durable(client) < sequence:
            await asyncio.sleep(0.002)


def _unexpected(error: BaseException) -> None:
    raise AssertionError("the writer would have ended the process") from error
