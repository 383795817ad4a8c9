"""A model over restarts: the same head bit for bit under the same number, and no number twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from tests import tiny
from tests.data_folders import flip_column
from tests.engine_parts import EXECUTOR, Heard, submitted
from tests.store_rows import MODEL

from everlearn.runtime.session import TrunkSession
from everlearn.spec.load import parse
from everlearn.values import Trunk
from everlearn_server.engine.batches import Derived
from everlearn_server.engine.head_pages import HeadPages
from everlearn_server.engine.live_model import LiveModel
from everlearn_server.engine.trunks import LiveTrunk, TrunkPool
from everlearn_server.store.store import Store

DIM = 16
SOLVERS = ThreadPoolExecutor(2, thread_name_prefix="tests-solvers")


def batch(sequence: int, *, epoch: int) -> Derived:
    """Batch n of client `a`: two classes."""
    features_Bd = tiny.features(4, sequence % 2, DIM, seed=sequence)
    return Derived(
        client="a", epoch=epoch, sequence=sequence, features_Bd=features_Bd, labels=(f"class {sequence % 2}",) * 4
    )


@asynccontextmanager
async def live_model(
    store: Store, folder: Path, *, crash: bool = False, **sections: object
) -> AsyncIterator[LiveModel]:
    """The model as a server that starts takes it up; `crash`: without the orderly stop."""
    backbone = folder / "tiny-16-0.onnx"
    if not backbone.exists():
        tiny.write_backbone(folder, DIM)
    spec = parse(tiny.declaration(backbone, "digits", **sections))
    trunk: Trunk = tiny.trunk_of(backbone)
    rows = await store.catalog.models()
    row = rows[0] if rows else await store.catalog.put_model(replace(MODEL, trunk_digest=None), expected_etag=None)
    pages = HeadPages(lambda model, number: store.catalog.version_now(model, number).head)
    model = LiveModel(
        row=row, spec=spec, store=store, executor=EXECUTOR, solvers=SOLVERS, pages=pages, commit_share=1.0
    )
    live = TrunkPool(lambda trunk: TrunkSession(trunk.onnx)).acquire(trunk)

    async def none(*digests: str) -> LiveTrunk | None:
        return None

    await model.start(live, none)
    yield model
    await model.stop(commit=not crash)


async def learn(model: LiveModel, *sequences: int) -> None:
    """Learns these batches on a new connection, and waits as a drain does."""
    tail = await model.writer.open_stream("a", 0, Heard())
    await asyncio.gather(*(submitted(model.writer, batch(sequence, epoch=tail.epoch)) for sequence in sequences))
    async with asyncio.timeout(60):
        while model.writer.durable("a") < sequences[-1]:
            await asyncio.sleep(0.002)
    await model.publisher.settled({"a": sequences[-1]}, timeout_s=60)


def head_bytes(model: LiveModel, version: str = "latest") -> tuple[int, bytes, bytes, tuple[str, ...]]:
    """Number, weights, biases and labels."""
    snapshot = model.book.find(version).snapshot
    return snapshot.version, snapshot.head.weight_dC.tobytes("C"), snapshot.head.bias_C.tobytes(), snapshot.head.labels


def test_a_restart_serves_the_same_head_under_the_same_number(tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        async with live_model(store, tmp_path) as model:
            await learn(model, 1, 2, 3)
            before, digest, tested = head_bytes(model), await model.writer.digest(), model.writer.prequential.tested
        async with live_model(store, tmp_path) as again:
            assert head_bytes(again) == head_bytes(again, "stable") == before
            assert (await again.writer.digest(), again.writer.prequential.tested) == (digest, tested)
            await asyncio.sleep(0.1)  # nothing is solved anew, because nothing is new
            assert head_bytes(again) == before

    with Store.open(tmp_path / "data") as store:
        asyncio.run(scenario(store))


def test_a_head_that_rotted_is_solved_again_from_the_memory_and_meanwhile_the_one_before_serves(tmp_path: Path) -> None:
    async def scenario(folder: Path) -> None:
        with Store.open(folder) as store:
            for sequence in (1, 2, 3):
                async with live_model(store, tmp_path) as model:
                    await learn(model, sequence)
                    before = head_bytes(model, "stable")
        flip_column(folder, "version", "head", f"number = {before[0]}")
        with Store.open(folder) as store:
            async with live_model(store, tmp_path) as again:
                meanwhile = again.book.find("stable").record
                assert meanwhile.number < before[0]
                assert (meanwhile.lineage, meanwhile.gate_passed) == (1, True)
                assert [damage.name for damage in again.damages.of("digits")] == [str(before[0])]
                await again.publisher.settled({}, timeout_s=60)
                number, *head = head_bytes(again, "stable")
                assert tuple(head) == before[1:]
                assert number > before[0]

    asyncio.run(scenario(tmp_path / "data"))


def test_after_a_crash_before_the_version_was_stored_the_same_head_is_solved_under_a_new_number(tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        seen: set[int] = set()
        for sequence in range(1, 4):
            async with live_model(store, tmp_path, crash=True) as model:
                await learn(model, sequence)
                seen |= set(model.book.numbers())
                before = head_bytes(model)
            async with live_model(store, tmp_path, crash=True) as again:
                await again.publisher.settled({"a": sequence}, timeout_s=60)
                number, *head = head_bytes(again)
                assert tuple(head) == before[1:]
                assert number == before[0] or number > max(seen)
                seen |= set(again.book.numbers())

    with Store.open(tmp_path / "data") as store:
        asyncio.run(scenario(store))


def test_numbers_are_never_given_twice_even_to_heads_that_were_never_stored(tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        highest = 0
        for start in (1, 4, 7):
            async with live_model(store, tmp_path, crash=True) as model:
                stored = {row.number for row in model.book.records()}
                assert all(number <= highest for number in model.book.numbers())
                await learn(model, start, start + 1, start + 2)
                new = set(model.book.numbers()) - stored
                assert new
                assert min(new) > highest
                highest = max(new)

    with Store.open(tmp_path / "data") as store:
        asyncio.run(scenario(store))


def test_rollback_and_its_pause_survive_a_restart(tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        async with live_model(store, tmp_path) as model:
            await learn(model, 1, 2)
            await model.store_version(model.book.find("latest"))
            first = head_bytes(model)
            await learn(model, 3, 4)
            await model.rollout.point_stable(model.book.roll_back(first[0]), "rolled back")
        async with live_model(store, tmp_path) as again:
            assert again.book.promotion_paused
            assert head_bytes(again, "stable") == first
            assert head_bytes(again, "latest")[0] > first[0]
            await learn(again, 5)
            assert head_bytes(again, "stable") == first

    with Store.open(tmp_path / "data") as store:
        asyncio.run(scenario(store))


def test_a_stable_head_that_was_never_stored_is_stored_with_the_one_that_the_gate_held_back(tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        async with live_model(store, tmp_path, serving={"promotion": "manual"}) as model:
            await learn(model, 1, 2)
            model.book.promote("latest")
            stable = head_bytes(model, "stable")
            await learn(model, 3)
            assert head_bytes(model, "latest")[0] > stable[0]
        async with live_model(store, tmp_path, serving={"promotion": "manual"}) as again:
            assert head_bytes(again, "stable") == stable

    with Store.open(tmp_path / "data") as store:
        asyncio.run(scenario(store))
