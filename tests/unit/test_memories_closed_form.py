from __future__ import annotations

import numpy as np
import pytest

from everlearn.errors import InputError, PreconditionError
from everlearn.heads import head_for
from everlearn.learners import ClosedForm
from everlearn.memories import memory_for
from everlearn.values import FeatureScale


def learner(kind: str = "balanced_ridge") -> ClosedForm:
    scale = FeatureScale(step_d=np.full(4, 0.01, np.float32))
    return ClosedForm(memory_for("statistics").create(4, []), head_for(kind), scale)


def features(rows: int = 40) -> np.ndarray:
    made = np.random.default_rng(0).normal(0, 0.2, (rows, 4)).astype(np.float32)
    made[::2, 0] += 2
    return made


def test_it_learns_a_class_that_appears_later() -> None:
    made = learner()
    made.learn(features()[::2], ["even"] * 20)
    assert made.predict(features()[:2]) == ["even", "even"]
    made.learn(features()[1::2], ["odd"] * 20)
    assert made.predict(features()[:4]) == ["even", "odd", "even", "odd"]


def test_a_hint_gives_a_head_of_that_regularization() -> None:
    made = learner()
    made.learn(features(), ["even", "odd"] * 20)
    assert made.head(hint=0.3).regularization == 0.3


def test_an_empty_batch_is_no_news() -> None:
    made = learner()
    made.learn(np.zeros((0, 4), np.float32), [])
    with pytest.raises(PreconditionError):
        made.head()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_feature_that_is_not_finite_is_refused_by_row_and_nothing_is_learned(bad: float) -> None:
    made, batch = learner(), features(3)
    batch[2, 1] = bad
    with pytest.raises(InputError) as caught:
        made.learn(batch, ["a", "b", "a"])
    assert caught.value.field == "features[2]"
    assert made.memory.sums.samples == 0


@pytest.mark.parametrize("shape", [(2, 5), (4,), (1, 2, 4)])
def test_features_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError):
        learner().learn(np.zeros(shape, np.float32), ["a", "b"])
