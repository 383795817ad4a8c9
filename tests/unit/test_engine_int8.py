"""What prepares exports in 8 bits beside a model: how much it looks at, what it lets leave, what it forgets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from tests import tiny

from everlearn.errors import GateError, NotFoundError, PreconditionError
from everlearn.export.int8 import Plan, quantised
from everlearn.inputs.front import to_pixels
from everlearn.runtime.session import TrunkSession
from everlearn.spec.input import Input
from everlearn.spec.int8_export import OBSERVED, SHARE, Int8Export
from everlearn.values import LinearHead, Trunk
from everlearn_server.engine import int8
from everlearn_server.engine.int8 import ROWS, LiveInt8, released_by
from everlearn_server.engine.serving import Snapshot
from everlearn_server.store.rows import TrunkRow

DIM = 16
LABELS = ("ash", "birch", "cedar")


class Kept:
    """The parts of a store that it uses."""

    def __init__(self) -> None:
        self.row: TrunkRow | None = None
        self.data = b""
        self.catalog = self.blobs = self

    async def find_trunk(self, key: str) -> TrunkRow | None:
        return self.row

    async def put_trunk(self, row: TrunkRow) -> None:
        self.row = row

    async def delete_trunk(self, key: str) -> None:
        if self.row is None:
            raise NotFoundError("gone")
        self.row = None

    async def put(self, data: bytes) -> str:
        self.data = data
        return "0" * 64

    async def get(self, digest: str) -> bytes:
        return self.data


class Model:
    """A trunk, a head that answers by it, and a stream whose labels are what that says in fp32."""

    def __init__(self, trunk: Trunk, declared: Int8Export, kept: Kept, *, lineage: int = 1) -> None:
        random = np.random.default_rng(0)
        self.trunk, self.session, self.seed = trunk, TrunkSession(trunk.onnx), 0
        features_Bd = np.concatenate([self.session.run(self.pixels(number)) for number in range(100)])
        weight_dC = random.normal(size=(DIM, 3)).astype(np.float32)
        head = LinearHead(
            labels=LABELS,
            weight_dC=weight_dC,
            bias_C=-(features_Bd @ weight_dC).mean(axis=0),  # so that each label is somebody's
            normalise=False,
            regularization=1.0,
        )
        self.snapshot = Snapshot(
            model="m",
            version=1,
            trunk=cast(Any, None),
            front=trunk.front,
            head=head,
            input=Input(),
            feature_digest=trunk.feature_digest,
            create_time_s=0.0,
        )
        self.int8 = LiveInt8(
            model="m",
            uid="u",
            lineage=lineage,
            declared=declared,
            of=trunk,
            live=lambda: self.snapshot,
            store=cast(Any, kept),
        )

    def pixels(self, number: int) -> Any:
        """An image of a colour of its own."""
        (image,) = tiny.images(1, number)
        return to_pixels(image, cast(Any, self.trunk.front))[None]

    async def batch(self, count: int) -> int:
        """Learns one; how many samples were looked at."""
        self.seed += 1
        pixels = [self.pixels(1000 * self.seed + index) for index in range(count)]
        captured = self.int8.room(count)
        if captured is not None:
            for index in range(count):
                captured.keeping(lambda index: pixels[index])(index)
        features_Bd = np.concatenate([self.session.run(each) for each in pixels])
        best_B = self.snapshot.scores(features_Bd).argmax(axis=1)
        wanted = len(captured.pixels) if captured is not None else 0
        self.int8.offer(captured, features_Bd, [LABELS[best] for best in best_B], None)
        while self.int8._working is not None and not self.int8._working.done():
            await asyncio.sleep(0)
        return wanted


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Trunk:
    return tiny.trunk_of(tiny.write_backbone(tmp_path_factory.mktemp("backbone"), DIM))


def run(work: Callable[[], Any]) -> Any:
    return asyncio.run(work())


def too_narrow(planned: Plan, ranges: dict[str, tuple[float, float]]) -> bytes:
    """Ranges of a sketch that has seen nothing of what comes."""
    return quantised(planned, {name: (low / 50, high / 50) for name, (low, high) in ranges.items()})


@pytest.mark.parametrize("good", [True, False])
def test_a_graph_that_loses_accuracy_stays_and_a_good_one_ships(
    trunk: Trunk, good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not good:
        monkeypatch.setattr(int8, "quantised", too_narrow)

    async def work() -> None:
        model = Model(trunk, Int8Export(min_tested=40, max_drop=0.1), Kept())
        await model.int8.start()
        for _ in range(12):
            await model.batch(ROWS)
        if good:
            graph, evidence = released_by(model.int8, "m", trunk.feature_digest)
            assert evidence.tested >= 40
            assert evidence.fp32_accuracy == 1
            assert evidence.accuracy >= 0.9
            assert graph.trunk.front == trunk.front
        else:
            with pytest.raises(GateError, match=r"in fp32 100\.0 %: more than int8_export\.max_drop 0\.1"):
                released_by(model.int8, "m", trunk.feature_digest)
        await model.int8.stop()

    run(work)


def test_it_says_what_is_missing_until_enough_is_known(trunk: Trunk) -> None:
    async def work() -> None:
        model = Model(trunk, Int8Export(min_tested=40, max_drop=1.0), Kept())
        await model.int8.start()
        missing = []
        while True:
            try:
                released_by(model.int8, "m", trunk.feature_digest)
                break
            except GateError as error:
                missing.append(error.message)
            assert await model.batch(ROWS) == ROWS  # all there is time for, while it is missing
        assert missing[0].startswith("ranges for int8 were learned from 0 images; 64 are needed")
        assert missing[OBSERVED // ROWS].startswith("the graph in 8 bits was tested on 0 labelled samples; 40 are")
        with pytest.raises(PreconditionError, match="another backbone"):
            released_by(model.int8, "m", "other")
        with pytest.raises(PreconditionError, match="declare int8_export"):
            released_by(None, "m", trunk.feature_digest)
        await model.int8.stop()

    run(work)


def test_later_it_looks_at_one_sample_in_32_and_at_few_batches_at_a_time(trunk: Trunk) -> None:
    async def work() -> None:
        model = Model(trunk, Int8Export(min_tested=1, max_drop=1.0), Kept())
        await model.int8.start()
        while not model.int8._knows_enough():
            await model.batch(ROWS)
        looked_at = [await model.batch(8) for _ in range(2 * SHARE)]
        assert sum(looked_at) == pytest.approx(8 * len(looked_at) / SHARE, abs=1)
        rooms = [model.int8.room(SHARE) for _ in range(5)]
        assert [room is not None for room in rooms] == [True, True, False, False, False]
        await model.int8.stop()
        assert model.int8.room(10 * SHARE) is None

    run(work)


def test_what_is_known_is_there_after_a_restart_and_not_for_another_lineage(trunk: Trunk) -> None:
    declared, kept = Int8Export(min_tested=20, max_drop=1.0), Kept()

    async def work() -> None:
        model = Model(trunk, declared, kept)
        await model.int8.start()
        for _ in range(8):
            await model.batch(ROWS)
        graph, evidence = released_by(model.int8, "m", trunk.feature_digest)
        await model.int8.stop()
        again = Model(trunk, declared, kept)
        await again.int8.start()
        found, told = released_by(again.int8, "m", trunk.feature_digest)
        assert (found.trunk.onnx, told) == (graph.trunk.onnx, evidence)
        await again.int8.stop()
        intact, kept.data = kept.data, kept.data[:-9] + b"otherwise"
        damaged = Model(trunk, declared, kept)
        await damaged.int8.start()
        with pytest.raises(GateError, match="0 images"):
            released_by(damaged.int8, "m", trunk.feature_digest)
        kept.data = intact
        replaced = Model(trunk, declared, kept, lineage=2)
        await replaced.int8.start()
        assert kept.row is None
        with pytest.raises(GateError, match="0 images"):
            released_by(replaced.int8, "m", trunk.feature_digest)

    run(work)


def test_a_new_graph_takes_over_only_when_it_has_shown_itself(trunk: Trunk) -> None:
    async def work() -> None:
        model = Model(trunk, Int8Export(min_tested=40, max_drop=1.0), Kept())
        await model.int8.start()
        seen: list[int] = []
        while len(set(seen)) < 2:
            assert model.seed < 400
            await model.batch(ROWS)
            if model.int8._shipped is not None:
                seen.append(released_by(model.int8, "m", trunk.feature_digest)[1].observed)
        assert seen == sorted(seen)
        assert set(seen) == {OBSERVED, 2 * OBSERVED}
        await model.int8.stop()

    run(work)


def test_a_trunk_that_cannot_be_looked_at_says_so(trunk: Trunk, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        model = Model(trunk, Int8Export(), Kept())
        await model.int8.start()
        model.int8._observer = SimpleNamespace(run=lambda *_: 1 / 0)
        await model.batch(4)
        with pytest.raises(GateError, match="could not be looked at: ZeroDivisionError"):
            released_by(model.int8, "m", trunk.feature_digest)
        await model.int8.stop()

    run(work)
