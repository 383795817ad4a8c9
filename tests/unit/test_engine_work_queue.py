"""The queue in front of the trunks: who goes first, what is refused, and that nobody waits for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from everlearn.errors import EverlearnError, ExpiredError, InputError, OverloadedError, UnavailableError
from everlearn.values import FeaturesBd, PixelsBCHW
from everlearn_server.engine.work_queue import Work, WorkQueue

DIM = 2


class Trunk:
    """Writes down which images came, in which order; `gate` holds the worker up."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()
        self.seen: list[float] = []
        self.batches: list[int] = []

    def run(self, pixels_BCHW: PixelsBCHW) -> FeaturesBd:
        self.begun.set()
        assert self.gate.wait(60)
        self.batches.append(len(pixels_BCHW))
        self.seen.extend(float(image) for image in pixels_BCHW[:, 0, 0, 0])
        return np.repeat(pixels_BCHW[:, 0, 0, 0, None], DIM, axis=1)


def image(value: float) -> Callable[[int], PixelsBCHW]:
    """Every image of a request has `value`."""
    return lambda index: np.full((1, 3, 1, 1), value, np.float32)


def run(scenario: Callable[[Trunk, WorkQueue], Coroutine[Any, Any, None]], **options: Any) -> Trunk:
    trunk = Trunk()
    queue = WorkQueue(**{"workers": 1, "capacity_images": 100, **options})
    try:
        asyncio.run(asyncio.wait_for(scenario(trunk, queue), 120))
    finally:
        trunk.gate.set()
        queue.close()
    return trunk


async def hold(trunk: Trunk, queue: WorkQueue) -> asyncio.Task[Work]:
    """Occupies the only worker until the gate opens."""
    trunk.gate.clear()
    task = asyncio.create_task(queue.predict(trunk, image(0), 1, DIM, None))
    await asyncio.to_thread(trunk.begun.wait, 60)
    return task


def test_predictions_go_first_and_learning_gets_every_fifth_turn() -> None:
    async def scenario(trunk: Trunk, queue: WorkQueue) -> None:
        held = await hold(trunk, queue)
        learning = asyncio.create_task(queue.learn(trunk, image(1), 3, DIM))
        predicting = asyncio.create_task(queue.predict(trunk, image(2), 12, DIM, None))
        await asyncio.sleep(0)
        trunk.gate.set()
        await asyncio.gather(held, learning, predicting)

    assert run(scenario).seen == [0, 2, 2, 2, 1, 2, 2, 2, 2, 1, 2, 2, 2, 2, 1, 2]


def test_a_full_lane_refuses_predictions_and_says_when_to_come_back() -> None:
    async def scenario(trunk: Trunk, queue: WorkQueue) -> None:
        held = await hold(trunk, queue)
        waiting = asyncio.create_task(queue.predict(trunk, image(1), 3, DIM, None))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError) as refusal:
            await queue.predict(trunk, image(2), 2, DIM, None)
        assert refusal.value.retry_after_s is not None
        assert refusal.value.retry_after_s >= 0.05
        assert queue.depth == (3, 0)
        trunk.gate.set()
        await asyncio.gather(held, waiting)

    assert 2 not in run(scenario, capacity_images=4).seen


def test_a_full_learning_lane_makes_the_stream_wait_instead() -> None:
    async def scenario(trunk: Trunk, queue: WorkQueue) -> None:
        held = await hold(trunk, queue)
        first = asyncio.create_task(queue.learn(trunk, image(1), 5, DIM))
        await asyncio.sleep(0)
        second = asyncio.create_task(queue.learn(trunk, image(2), 1, DIM))
        await asyncio.sleep(0.05)
        assert queue.depth == (0, 5)
        trunk.gate.set()
        await asyncio.gather(held, first, second)

    assert run(scenario, capacity_images=4).seen == [0, 1, 1, 1, 1, 1, 2]


def test_a_request_whose_deadline_has_passed_is_dropped_without_a_trunk_pass() -> None:
    async def scenario(trunk: Trunk, queue: WorkQueue) -> None:
        held = await hold(trunk, queue)
        late = asyncio.create_task(queue.predict(trunk, image(1), 2, DIM, 0.01))
        await asyncio.sleep(0.05)
        trunk.gate.set()
        with pytest.raises(ExpiredError):
            await late
        await held

    assert run(scenario).seen == [0]


def test_a_caller_that_is_gone_costs_no_trunk_pass() -> None:
    async def scenario(trunk: Trunk, queue: WorkQueue) -> None:
        held = await hold(trunk, queue)
        gone = asyncio.create_task(queue.learn(trunk, image(1), 2, DIM))
        stays = asyncio.create_task(queue.learn(trunk, image(2), 1, DIM))
        await asyncio.sleep(0)
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone
        trunk.gate.set()
        await asyncio.gather(held, stays)

    assert run(scenario).seen == [0, 2]


def test_an_image_that_cannot_be_read_fails_its_own_request_only() -> None:
    def broken(index: int) -> PixelsBCHW:
        if index == 1:
            raise InputError("not an image", field="images[1]")
        return image(7)(index)

    async def scenario(trunk: Trunk, queue: WorkQueue) -> None:
        bad = asyncio.create_task(queue.predict(trunk, broken, 3, DIM, None))
        good = asyncio.create_task(queue.predict(trunk, image(2), 2, DIM, None))
        with pytest.raises(InputError) as error:
            await bad
        assert error.value.field == "images[1]"
        assert (await good).features_Bd.tolist() == [[2, 2], [2, 2]]

    run(scenario)
    run(scenario, max_batch=8)


@pytest.mark.parametrize("shape", [(1, DIM + 1), (0, DIM)])
def test_a_trunk_that_answers_nonsense_fails_the_request_and_the_worker_lives(shape: tuple[int, int]) -> None:
    class Nonsense(Trunk):
        def run(self, pixels_BCHW: PixelsBCHW) -> FeaturesBd:
            return np.zeros(shape, np.float32)

    async def scenario(trunk: Trunk, queue: WorkQueue) -> None:
        with pytest.raises((ValueError, IndexError)):
            await queue.predict(Nonsense(), image(1), 1, DIM, None)
        assert (await queue.predict(trunk, image(3), 1, DIM, None)).features_Bd.tolist() == [[3, 3]]

    run(scenario)


def test_batches_hold_images_of_one_session_up_to_the_limit() -> None:
    other = Trunk()

    async def scenario(trunk: Trunk, queue: WorkQueue) -> None:
        held = await hold(trunk, queue)
        tasks = [asyncio.create_task(queue.predict(trunk, image(1), 5, DIM, None))]
        tasks.append(asyncio.create_task(queue.predict(other, image(2), 2, DIM, None)))
        await asyncio.sleep(0)
        trunk.gate.set()
        await asyncio.gather(held, *tasks)

    assert run(scenario, max_batch=4).batches == [1, 4, 1]
    assert other.batches == [2]


def test_a_request_of_no_images_needs_no_worker() -> None:
    async def scenario(trunk: Trunk, queue: WorkQueue) -> None:
        assert (await queue.learn(trunk, image(1), 0, DIM)).features_Bd.shape == (0, DIM)

    assert run(scenario).seen == []


def test_closing_answers_those_who_wait_and_those_who_come_later() -> None:
    async def scenario(trunk: Trunk, queue: WorkQueue) -> None:
        held = await hold(trunk, queue)
        waiting = [asyncio.create_task(queue.predict(trunk, image(1), 2, DIM, None))]
        waiting.append(asyncio.create_task(queue.learn(trunk, image(1), 2, DIM)))
        await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(queue.close))
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(error) for error in errors] == [UnavailableError, UnavailableError]
        trunk.gate.set()
        await asyncio.gather(closing, held)
        with pytest.raises(EverlearnError, match="stopping"):
            await queue.predict(trunk, image(1), 1, DIM, None)

    assert run(scenario).seen == [0]
