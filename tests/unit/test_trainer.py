"""A gradient learner in another process: nothing is lost when that process is."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everlearn.errors import EverlearnError, InputError, PreconditionError, UnavailableError
from everlearn.learners.trainer import Trainer, TrainerSettings
from everlearn.memories.base import Origin
from everlearn.spec.model import ModelSpec
from everlearn.values import FeatureScale, QuantisedBd

DIM = 6
SCALE = FeatureScale(step_d=np.full(DIM, 2.0**-6, np.float32))
SOURCE = {"source": "hf://timm/x", "revision": "0" * 40}


def spec_of(recipe: str = "latent_replay", **axes: Any) -> ModelSpec:
    return ModelSpec.model_validate({"backbone": SOURCE, "recipe": recipe, **axes})


def batch(number: int) -> tuple[QuantisedBd, list[str]]:
    random = np.random.default_rng(number)
    label_B = random.integers(0, 2 + number // 3, 8)
    centre_Bd = np.eye(DIM)[label_B % DIM] * 8
    return SCALE.quantise((centre_Bd + random.normal(0, 1, (8, DIM))).astype(np.float32)), [f"c{n}" for n in label_B]


def teach(learner: Trainer, first: int, last: int) -> None:
    for number in range(first, last):
        quantised_Bd, labels = batch(number)
        learner.integrate(quantised_Bd, labels, origin=Origin(client="a", time_s=float(number)))


def pid_of(learner: Trainer) -> int:
    assert learner._child is not None
    return learner._child.pid


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[str, bytes]:
    """Digest and state after nine batches of one life."""
    learner = Trainer(spec_of(), SCALE)
    teach(learner, 0, 9)
    found = learner.learned().digest(), learner.to_bytes()
    learner.close()
    return found


@pytest.fixture
def learner() -> Iterator[Trainer]:
    made = Trainer(spec_of(), SCALE)
    yield made
    made.close()


def test_a_killed_process_is_replaced_by_one_that_knows_the_same_to_the_bit(
    learner: Trainer, uninterrupted: tuple[str, bytes]
) -> None:
    teach(learner, 0, 3)
    learner.to_bytes()
    teach(learner, 3, 6)
    os.kill(pid_of(learner), signal.SIGKILL)
    teach(learner, 6, 9)
    assert (learner.learned().digest(), learner.to_bytes()) == uninterrupted


def test_without_its_replay_the_next_process_would_know_less(
    learner: Trainer, uninterrupted: tuple[str, bytes]
) -> None:
    teach(learner, 0, 6)
    learner._since.clear()  # the control: what a trainer that keeps no batches would do
    os.kill(pid_of(learner), signal.SIGKILL)
    teach(learner, 6, 9)
    assert learner.learned().digest() != uninterrupted[0]


def test_a_stored_state_goes_on_as_if_nothing_had_happened(learner: Trainer, uninterrupted: tuple[str, bytes]) -> None:
    teach(learner, 0, 5)
    again = Trainer(spec_of(), SCALE, data=learner.to_bytes())
    try:
        assert (list(again.labels), again.count_C.tolist()) == (list(learner.labels), learner.count_C.tolist())
        teach(again, 5, 9)
        assert again.to_bytes() == uninterrupted[1]
    finally:
        again.close()


def test_features_that_came_to_their_end_are_dropped_by_the_next_process_too() -> None:
    spec = spec_of(memory={"kind": "latents", "ttl_s": 5})
    killed, spared = Trainer(spec, SCALE), Trainer(spec, SCALE)
    try:
        for each in (killed, spared):
            teach(each, 0, 4)
            assert each.ttl_s == 5
            assert each.expire(6.0) == 16  # of times 0 and 1
            assert each.expire(6.0) == 0
        os.kill(pid_of(killed), signal.SIGKILL)
        for each in (killed, spared):
            teach(each, 4, 6)
        assert killed.to_bytes() == spared.to_bytes()
    finally:
        killed.close()
        spared.close()


def test_what_the_learner_refuses_is_refused_here_and_nothing_is_learned(learner: Trainer) -> None:
    teach(learner, 0, 2)
    before = learner.learned().digest()
    with pytest.raises(InputError, match="each needs one"):
        learner.integrate(batch(2)[0], ["a"])
    assert learner.learned().digest() == before


def test_labels_may_be_declared_before_their_samples_and_keep_their_place(learner: Trainer) -> None:
    teach(learner, 0, 1)
    known = list(learner.labels)
    learner.declare([*known, "later", "last"])
    teach(learner, 1, 3)
    assert list(learner.labels)[: len(known) + 2] == [*known, "later", "last"]
    head = learner.learned().solve().head
    assert not np.isin(head.scores(np.ones((4, DIM), np.float32)).argmax(axis=1), [len(known), len(known) + 1]).any()


def test_options_change_in_place_and_weights_stay(learner: Trainer) -> None:
    teach(learner, 0, 3)
    before = learner.learned().digest()
    learner.configure(spec_of(train={"steps": 1, "optimizer": {"learning_rate": 0.01}}))
    assert learner.learned().digest() == before
    teach(learner, 3, 4)
    assert learner.learned().figures["steps"] == 1
    # By default it is five times that.
    assert learner.learned().figures["learning_rate"] < 0.03


def test_nothing_learned_has_no_classifier(learner: Trainer) -> None:
    with pytest.raises(PreconditionError) as raised:
        learner.learned().solve()
    assert raised.value.reason == "EMPTY_MEMORY"


def test_a_process_that_gives_no_answer_in_time_is_given_up() -> None:
    with pytest.raises(UnavailableError, match="no answer within"):
        Trainer(spec_of(), SCALE, settings=TrainerSettings(timeout_s=0.01))


def test_a_process_has_a_temporary_folder_of_its_own_and_takes_it_along(learner: Trainer) -> None:
    assert learner._child is not None
    folder = Path(learner._child._temporary)
    assert folder.stat().st_mode & 0o777 == 0o700
    told = Path(f"/proc/{pid_of(learner)}/environ").read_bytes().split(b"\0")
    assert f"TMPDIR={folder}".encode() in told
    learner.close()
    assert not folder.exists()


def test_a_closed_trainer_says_so(learner: Trainer) -> None:
    learner.close()
    with pytest.raises(EverlearnError, match="closed"):
        learner.to_bytes()
