"""What a rollout may declare, which devices it chooses, and what a device may say of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from tests.unit.test_engine_versions import spec

from everlearn.errors import SpecError
from everlearn.spec.changes import ChangeClass, classify
from everlearn.spec.device_labels import matches, problem_of
from everlearn.spec.rollout import Canary
from everlearn.spec.telling import told
from everlearn_client.edge.health import check_labels
from everlearn_client.errors import InvalidArgument

LAB = {"selector": {"site": "lab"}}


def test_without_a_rollout_none_is_declared() -> None:
    assert spec().spec.rollout is None


def test_a_rollout_is_told_in_words() -> None:
    model = spec(rollout={"canary": {"selector": {"site": "lab", "hardware": ["pi4", "pi5"]}, "min_hours": 2}})
    (line,) = (line for line in told(model.spec) if line.startswith("rollout"))
    assert "devices with site lab, hardware pi4 or pi5 run a new version first" in line
    assert "100 predictions with it over 2 h" in line


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"rollout": {}}, "canary"),
        ({"rollout": {"canary": {}}}, "selector"),
        ({"rollout": {"canary": {"selector": {}}}}, "at least 1"),
        ({"rollout": {"canary": {"selector": {"-site": "lab"}}}}, "begin and end"),
        ({"rollout": {"canary": {"selector": {"site": "a b"}}}}, "begin and end"),
        ({"rollout": {"canary": {"selector": {"site": []}}}}, "at least 1"),
        ({"rollout": {"canary": {"selector": {f"k{n}": "v" for n in range(17)}}}}, "at most 16"),
        ({"rollout": {"canary": {**LAB, "min_devices": 0}}}, "min_devices"),
        ({"rollout": {"canary": LAB, "health": {"max_error_rise": 2}}}, "max_error_rise"),
        ({"rollout": {"canary": LAB, "halth": {}}}, "halth"),
        ({"rollout": {"canary": LAB}, "serving": {"promotion": "manual"}}, "serving.promotion manual"),
        (
            {
                "rollout": {"canary": LAB, "health": {"max_label_shift": 0.5}},
                "task": "regression",
                "outputs": [{"name": "c", "min": 0, "max": 1}],
                "head": {"kind": "ridge"},
            },
            "compares labels",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(sections: Mapping[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec(**sections)


def test_a_rollout_comes_and_goes_in_place() -> None:
    (change,) = classify(spec(), spec(rollout={"canary": LAB}))
    assert (change.field, change.klass) == ("spec.rollout", ChangeClass.LIVE)


def test_a_selector_asks_for_every_key() -> None:
    chosen = Canary(selector={"site": "lab", "hardware": ("pi4", "pi5")}).chosen
    assert matches(chosen, {"site": "lab", "hardware": "pi5", "more": "x"})
    assert not matches(chosen, {"site": "lab"})
    assert not matches(chosen, {"site": "lab", "hardware": "pi3"})


def test_no_device_counts_for_more_than_its_part() -> None:
    assert Canary(selector={"a": "b"}, min_predictions=100, min_devices=3).most_of_one == 34


@pytest.mark.parametrize(
    ("labels", "is_right"),
    [
        ({"site": "north"}, True),
        ({"example.org/site": "n"}, True),
        ({"site": ""}, True),
        ({"": "x"}, False),
        ({"site": "-north"}, False),
        ({"site": "n" * 64}, False),
        ({"Example.org/site": "n"}, False),
        ({"site": "nörd"}, False),
        ({"site\n": "n"}, False),
        ({f"k{n}": "v" for n in range(17)}, False),
    ],
)
def test_a_device_and_the_server_agree_on_what_a_label_is(labels: dict[str, str], is_right: bool) -> None:
    assert (problem_of(labels) is None) == is_right
    if is_right:
        check_labels(labels)
    else:
        with pytest.raises(InvalidArgument):
            check_labels(labels)
