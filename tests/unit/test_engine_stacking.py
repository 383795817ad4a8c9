"""What is worked out of several batches at once is, of each of them, what would have been worked out of it alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.attacks import SCALE, snapshot
from tests.unit.test_engine_limits import CENTRES, points

from everlearn.errors import EverlearnError, InputError
from everlearn.heads import head_for
from everlearn.heads._novelty import solve_novelty
from everlearn.learners.closed_form import ClosedForm
from everlearn.memories.statistics import Statistics
from everlearn.metrics.prequential import Prequential
from everlearn.spec.input import Input
from everlearn.values import TensorFront
from everlearn_server.engine.batches import Derived, Outcome, Tail
from everlearn_server.engine.integration import Integration
from everlearn_server.engine.serving import Snapshot
from everlearn_server.engine.stacking import Stack, stacks


def derived(sequence: int, rows: int, *, refused: bool = False) -> Derived:
    label = sequence % len(CENTRES)
    return Derived(
        client="a",
        epoch=1,
        sequence=sequence,
        features_Bd=points(label, rows, seed=sequence),
        labels=(str(label),) * rows,
        refusal=InputError("not an image", field="batch.samples") if refused else None,
    )


def integration(live: Snapshot | None) -> Integration:
    work = Integration(
        learner=ClosedForm(Statistics.create(64, ()), head_for("balanced_ridge"), SCALE),
        scale=SCALE,
        prequential=Prequential(),
        streams={},
        live=lambda: live,
    )
    work.tails["a"] = Tail(epoch=1, integrated=0, durable=0)
    return work


def taught() -> Snapshot:
    work = integration(None)
    for sequence in range(1, 9):
        work.take(derived(sequence, 8))
    return snapshot(work.learner, 1)  # type: ignore[arg-type]  # a ClosedForm, see above


LIVE = taught()


class _Nothing:
    """Of a trunk, nothing is asked."""

    digest, feature_dim, provider = "0" * 64, 64, ""


def told(result: Outcome | EverlearnError) -> Any:
    """What a stream hears, without the times."""
    return replace(result, test_ms=0.0, integrate_ms=0.0) if isinstance(result, Outcome) else str(result)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=20), st.booleans())
def test_batches_that_were_stacked_leave_what_each_would_alone(made: list[tuple[int, bool]], has_head: bool) -> None:
    batches = [derived(place + 1, rows, refused=refused) for place, (rows, refused) in enumerate(made)]
    together, apart = integration(LIVE if has_head else None), integration(LIVE if has_head else None)
    heard = [
        together.take(batch, stack)
        for some in stacks(batches, SCALE)
        for stack in [Stack(some, SCALE, LIVE if has_head else None)]
        for batch in some
    ]
    assert [told(result) for result in heard] == [told(apart.take(batch)) for batch in batches]
    assert together.learner.to_bytes() == apart.learner.to_bytes()
    assert together.prequential.correct == apart.prequential.correct


def test_stacks_keep_the_order_and_leave_large_batches_alone() -> None:
    batches = [derived(sequence, rows) for sequence, rows in enumerate((16, 16, 1000, 16, 700, 16), start=1)]
    made = [[batch.sequence for batch in some] for some in stacks(batches, SCALE)]
    assert made == [[1, 2], [3], [4], [5], [6]]
    assert list(stacks([], SCALE)) == []


def test_a_number_that_is_none_is_the_fault_of_its_batch_alone() -> None:
    batches = [derived(1, 4), derived(2, 4), derived(3, 4)]
    batches[1].features_Bd[2, 5] = np.nan
    stack, work = Stack(batches, SCALE, LIVE), integration(LIVE)
    heard = [work.take(batch, stack) for batch in batches]
    assert isinstance(heard[0], Outcome)
    assert isinstance(heard[1], InputError)
    assert not isinstance(heard[2], Outcome), "the one before it was not learned, so it leaves a gap"
    assert work.learner.samples == 4


def test_nothing_that_is_kept_of_a_batch_holds_on_to_another() -> None:
    batches = [derived(1, 4), derived(2, 4)]
    stack = Stack(batches, SCALE, LIVE)
    for kept in stack.quantised(batches[0], batches[0].features_Bd):
        assert kept.base is None
        assert len(kept) == 4


def test_the_novelty_of_a_stacked_batch_is_that_of_the_batch_alone_and_counts_for_its_client() -> None:
    work = integration(None)
    for sequence in range(1, 9):
        work.take(derived(sequence, 8))
    novelty = solve_novelty(work.learner.sums, SCALE, false_alarms=0.05)
    live = Snapshot(
        model="digits",
        version=1,
        trunk=_Nothing(),
        front=TensorFront(shape=(64,), low=(-1.0,), high=(1.0,)),
        head=replace(LIVE.head, novelty=novelty),
        input=Input(),
        feature_digest="f" * 64,
        create_time_s=0.0,
    )
    batches = [derived(sequence, 6) for sequence in range(1, 4)]
    stack = Stack(batches, SCALE, live)
    for batch in batches:
        told, alone = stack.novelty(batch), live.novelty(batch.features_Bd)
        assert told is not None
        assert alone is not None
        np.testing.assert_allclose(told, alone, rtol=1e-5, atol=1e-6)
    assert Stack(batches, SCALE, LIVE).novelty(batches[0]) is None
    watching, plain = integration(live), integration(LIVE)
    for batch in batches:
        watching.take(batch, stack)
        plain.take(batch)
    assert watching.fleet["a"].watched == 18
    assert plain.fleet["a"].watched == 0
