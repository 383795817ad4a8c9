from __future__ import annotations

import json
from typing import Any

import pytest

from everlearn.errors import DataLossError, InputError, InvalidError
from everlearn.metrics import ClientRecord, Prequential
from everlearn.metrics.prequential import MAX_CLIENTS, MAX_PAIRS, OTHER_CLIENTS, OTHER_LABELS


def record() -> Prequential:
    made = Prequential(window=4)
    made.update(["a", "b"], None, client="north")
    made.update(["a", "b", "a"], ["a", "a", "a"], client="south")
    made.update(["new"], ["a"], client="north")
    return made


def test_a_sample_before_any_head_or_of_an_unknown_class_counts_as_wrong() -> None:
    made = record()
    assert (made.tested, made.correct) == (6, 2)
    assert made.accuracy == pytest.approx(1 / 3)
    assert made.recall() == {"a": pytest.approx(2 / 3), "b": 0.0, "new": 0.0}


def test_the_window_holds_the_last_samples_only() -> None:
    made = record()
    assert (made.window_tested, made.window_accuracy) == (4, 0.5)  # of: a right, b wrong, a right, new wrong
    made.update(["a"] * 9, ["a"] * 9)  # longer than the window
    assert (made.window_tested, made.window_accuracy) == (4, 1.0)
    made.update(["a"] * 3, ["b"] * 3)
    assert made.window_accuracy == 0.25


def test_the_window_agrees_with_counting_anew_after_every_batch() -> None:
    made, hits = Prequential(window=7), []
    for size in (1, 3, 7, 9, 2, 0, 5, 20, 1, 1):
        guesses = ["a" if (index * size) % 3 else "b" for index in range(size)]
        made.update(["a"] * size, guesses)
        hits += [guess == "a" for guess in guesses]
        assert made.window_accuracy == pytest.approx(sum(hits[-7:]) / len(hits[-7:]))


def test_confusion_and_clients_are_counted() -> None:
    made = record()
    assert made.confusion == {("a", ""): 1, ("b", ""): 1, ("a", "a"): 2, ("b", "a"): 1, ("new", "a"): 1}
    assert made.clients == {"north": ClientRecord(tested=3, correct=0), "south": ClientRecord(tested=3, correct=2)}
    assert made.clients["south"].accuracy == pytest.approx(2 / 3)


def test_an_empty_batch_and_an_empty_record_count_nothing() -> None:
    made = Prequential()
    made.update([], None, client="quiet")
    assert (made.tested, made.accuracy, made.window_accuracy, made.clients) == (0, 0.0, 0.0, {})


def test_merging_adds_counts_and_takes_the_other_as_newer() -> None:
    left, right = record(), Prequential(window=4)
    right.update(["b", "b", "c"], ["b", "b", "c"], client="south")
    left.merge(right)
    assert (left.tested, left.correct) == (9, 5)
    assert left.clients["south"] == ClientRecord(tested=6, correct=5)
    assert left.window_accuracy == 0.75
    with pytest.raises(InvalidError):
        left.merge(Prequential(window=5))


def test_it_survives_json_and_goes_on_counting() -> None:
    made = record()
    loaded = Prequential.from_dict(json.loads(json.dumps(made.to_dict())))
    assert loaded.to_dict() == made.to_dict()
    for each in (made, loaded):
        each.update(["a", "b"], ["a", "a"])
    assert loaded.to_dict() == made.to_dict()
    assert loaded.window_accuracy == made.window_accuracy


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"window": 0},
        {"recent": "01x1"},
        {"recent": "1"},
        {"clients": {"north": [6, 6]}},
        {"confusion": [["a", "a"]]},
        {"confusion": None},
    ],
)
def test_a_record_whose_counts_do_not_add_up_is_data_loss(change: dict[str, Any]) -> None:
    with pytest.raises(DataLossError):
        Prequential.from_dict({**record().to_dict(), **change})


def test_lengths_that_disagree_are_refused_and_nothing_is_counted() -> None:
    made = Prequential()
    with pytest.raises(InputError):
        made.update(["a", "b"], ["a"])
    assert made.tested == 0


def test_a_window_of_no_samples_is_refused() -> None:
    with pytest.raises(InvalidError):
        Prequential(window=0)


def test_the_rarest_confusions_are_counted_together_and_recall_stays_exact() -> None:
    made, half = Prequential(), MAX_PAIRS // 2
    for _ in range(2):
        made.update(["a"] * half, [f"wrong {index}" for index in range(half)])
    made.update(["b"] * (half + 1), [f"wrong {index}" for index in range(half + 1)])
    made.update(["a", "b"], ["a", "b"])
    confusion = made.confusion
    assert len(confusion) < MAX_PAIRS
    assert all(confusion["a", f"wrong {index}"] == 2 for index in range(half))  # the frequent ones
    assert confusion["b", OTHER_LABELS] > 0
    assert sum(confusion.values()) == made.tested == 3 * half + 3
    assert made.recall() == {"a": 1 / (2 * half + 1), "b": 1 / (half + 2)}
    assert Prequential.from_dict(json.loads(json.dumps(made.to_dict()))).to_dict() == made.to_dict()


def test_clients_not_heard_of_for_longest_are_counted_together() -> None:
    made = Prequential()
    for number in range(MAX_CLIENTS + 50):
        made.update(["a"], ["a"], client=f"site-{number}")
        made.update(["a", "a"], ["a", "b"], client="steady")
    assert len(made.clients) == MAX_CLIENTS + 1
    assert made.clients[OTHER_CLIENTS] == ClientRecord(tested=51, correct=51)
    assert made.clients["steady"].tested == 2 * (MAX_CLIENTS + 50)
    assert sum(client.tested for client in made.clients.values()) == made.tested
    loaded = Prequential.from_dict(json.loads(json.dumps(made.to_dict())))
    for each in (made, loaded):
        each.update(["a"], ["b"], client="one more")
    assert loaded.to_dict() == made.to_dict()
