"""Versions: the gate and its reasons, where aliases point, numbers, and what is forgotten."""

from __future__ import annotations

import json
from typing import cast

import numpy as np
import pytest
from tests import tiny

from everlearn.errors import GateError, NotFoundError, PreconditionError
from everlearn.spec.load import parse
from everlearn.spec.model import Gate, Model
from everlearn.values import FeatureScale, LinearHead
from everlearn_server.engine.publisher import NO_NUMBERS, Solved
from everlearn_server.engine.serving import Snapshot
from everlearn_server.engine.trunks import LiveTrunk
from everlearn_server.engine.versions import GateResult, VersionBook, Versioned, check_gate

DIM = 2
TRUNK = LiveTrunk(
    digest="t" * 64,
    feature_dim=DIM,
    feature_digest="f" * 64,
    session=cast("object", None),  # type: ignore[arg-type]  # a book runs no trunk
    front=tiny.FRONT,
    scale=FeatureScale(step_d=np.ones(DIM, np.float32)),
    provenance={},
    parity_max_rel_diff=0.0,
)


def spec(**sections: object) -> Model:
    """A declaration with these sections."""
    backbone = {"source": "folder:/nowhere.onnx", "sha256": "a" * 64, "format": "onnx", "loader": "onnx"}
    declared = {"apiVersion": "everlearn/v1", "kind": "Model", "metadata": {"name": "m"}}
    return parse(json.dumps({**declared, "spec": {"backbone": backbone, **sections}}))


def head() -> LinearHead:
    return LinearHead(
        weight_dC=np.zeros((DIM, 1), np.float32),
        bias_C=np.zeros(1, np.float32),
        normalise=False,
        labels=("x",),
        regularization=0.5,
    )


def solved(*, samples: int = 10, parity: float = 0.0) -> Solved:
    return Solved(
        head=head(),
        tails={"a": samples},
        sample_count=samples,
        samples_C=(samples,),
        memory_digest="m" * 64,
        exact=True,
        solve_ms=1.0,
        parity=parity,
        data=b"head",
    )


def book(*, first: int = 1, numbers: int = 1000) -> VersionBook:
    made = VersionBook(model="m", lineage=1, first_number=0)
    made.add_numbers(first, numbers)
    return made


def publish(versions: VersionBook, model: Model | None = None, *, accuracy: float = 0.9, **options: float) -> Versioned:
    def snapshot(number: int, made: Solved) -> Snapshot:
        return Snapshot(
            model="m",
            version=number,
            trunk=TRUNK,
            front=TRUNK.front,
            head=made.head,
            input=(model or spec()).spec.input,
            feature_digest=TRUNK.feature_digest,
            create_time_s=0.0,
        )

    return versions.publish(
        solved(**options),  # type: ignore[arg-type]  # samples and parity
        spec=model or spec(),
        trunk=TRUNK,
        prequential={"tested": 10, "correct": 9, "accuracy": accuracy, "windowed_accuracy": accuracy, "window": 1000},
        make=snapshot,
    )


def stored(versions: VersionBook, count: int, **options: float) -> list[Versioned]:
    made = [publish(versions, **options) for _ in range(count)]
    for versioned in made:
        versions.keep(versioned)
    return made


GATE = Gate(min_samples=5, min_accuracy=0.5, max_drop=0.1, parity=0.01)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"sample_count": 4}, "4 samples of 5"),
        ({"windowed_accuracy": 0.4}, "prequential accuracy 0.400 is below 0.500"),
        ({"windowed_accuracy": 0.7}, "prequential accuracy fell from 0.900 to 0.700, more than 0.100"),
        ({"parity": 0.02}, "exported head differs by 0.02, more than 0.01"),
        ({"sample_count": 4, "parity": 0.02}, "4 samples of 5"),
        ({"windowed_accuracy": 0.81}, "passed"),
        ({"stable_accuracy": None, "windowed_accuracy": 0.5}, "passed"),
    ],
)
def test_the_gate_says_which_condition_failed_first(values: dict[str, float], reason: str) -> None:
    given = {"sample_count": 5, "windowed_accuracy": 0.9, "stable_accuracy": 0.9, "parity": 0.0, **values}
    assert check_gate(GATE, **given) == GateResult(passed=reason == "passed", reason=reason)  # type: ignore[arg-type]


def test_a_version_that_passes_becomes_stable_and_one_that_does_not_becomes_latest_only() -> None:
    versions = book()
    first = publish(versions, accuracy=0.9)
    second = publish(versions, spec(gate={"max_drop": 0.1}), accuracy=0.7)
    assert (versions.stable, versions.latest) == (first, second)
    assert not second.record.gate_passed
    assert versions.aliases_of(1) == ["stable"]
    assert versions.aliases_of(2) == ["latest"]
    with pytest.raises(GateError, match=r"fell from 0\.900 to 0\.700"):
        versions.promote("2")
    assert versions.stable is not None
    assert versions.stable.snapshot is first.snapshot


def test_with_manual_promotion_only_promoting_moves_stable() -> None:
    versions, manual = book(), spec(serving={"promotion": "manual"})
    publish(versions, manual)
    with pytest.raises(PreconditionError, match="passed its gate"):
        versions.find("stable")
    assert versions.promote("latest").record.number == 1
    publish(versions, manual)
    assert versions.find("").record.number == 1
    assert versions.find("latest").record.number == 2


def test_rolling_back_pauses_promotion_until_somebody_promotes() -> None:
    versions = book()
    first, second = stored(versions, 2)
    assert versions.roll_back(0).snapshot is first.snapshot
    assert versions.promotion_paused
    publish(versions)
    assert versions.stable is not None
    assert versions.stable.snapshot is first.snapshot
    assert versions.promote("2").snapshot is second.snapshot
    assert not versions.promotion_paused
    assert publish(versions) is versions.stable


def test_rolling_back_needs_an_earlier_stored_version_that_passed() -> None:
    versions = book()
    failed = publish(versions, spec(gate={"min_accuracy": 1.0}))
    versions.keep(failed)
    publish(versions)
    with pytest.raises(PreconditionError) as error:
        versions.roll_back(0)
    assert error.value.reason == "NO_EARLIER_VERSION"
    with pytest.raises(NotFoundError):
        versions.roll_back(77)


def test_rolling_back_goes_by_the_gate_and_only_back() -> None:
    versions = book()
    failed = publish(versions, spec(gate={"min_accuracy": 1.0}))
    passed, stable, later = (publish(versions) for _ in range(3))
    assert versions.roll_back(3) is stable
    with pytest.raises(GateError, match="version 1 did not pass its gate"):
        versions.roll_back(failed.record.number)
    for number in (stable.record.number, later.record.number):
        with pytest.raises(PreconditionError) as error:
            versions.roll_back(number)
        assert (error.value.reason, error.value.field) == ("NOT_EARLIER", "version")
    assert versions.stable is stable
    assert versions.roll_back(2) is passed


def test_heads_superseded_before_they_were_stored_are_forgotten_after_eight_more() -> None:
    versions = book()
    [kept] = stored(versions, 1)
    for _ in range(20):
        publish(versions)
    assert versions.numbers() == [1, *range(13, 22)]
    assert versions.find("1").snapshot is kept.snapshot
    with pytest.raises(NotFoundError, match="no version '12'"):
        versions.find("12")


def test_stable_and_latest_are_never_forgotten() -> None:
    versions, manual = book(), spec(serving={"promotion": "manual"})
    publish(versions, manual)
    versions.promote("1")
    for _ in range(30):
        publish(versions, manual)
    assert versions.find("stable").record.number == 1
    versions.forget([1])
    assert versions.find("stable").record.number == 1


@pytest.mark.parametrize("version", ["0", "-1", "1.0", "٣", "9" * 30, "9" * 5000, "newest", " 1"])
def test_a_version_that_is_no_number_of_ours_is_not_found(version: str) -> None:
    versions = book()
    publish(versions)
    with pytest.raises(NotFoundError):
        versions.find(version)


def test_before_anything_is_learned_no_version_is_ready() -> None:
    for version in ("", "stable", "latest"):
        with pytest.raises(PreconditionError, match="has learned nothing yet"):
            book().find(version)


def test_numbers_come_from_reserved_blocks_and_are_asked_for_before_they_run_out() -> None:
    versions = book(first=1, numbers=3)
    assert versions.needs_numbers
    assert [publish(versions).record.number for _ in range(3)] == [1, 2, 3]
    with pytest.raises(PreconditionError) as error:
        publish(versions)
    assert error.value.reason == NO_NUMBERS
    versions.add_numbers(1001, 1000)
    assert not versions.needs_numbers
    assert publish(versions).record.number == 1001


def test_limits_that_change_while_a_version_is_stored_hold_for_its_aliases_too() -> None:
    versions = book()
    made = publish(versions)
    narrower = made.snapshot.input.model_copy(update={"max_image_pixels": 400})
    versions.take_input(narrower)
    versions.keep(made.of_commit(7))
    for name in ("1", "stable", "latest"):
        found = versions.find(name)
        assert (found.snapshot.input, found.record.commit_id) == (narrower, 7), name
    versions.take_input(made.snapshot.input)
    assert versions.find("stable").snapshot.input == made.snapshot.input
