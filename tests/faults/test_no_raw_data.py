"""No raw data anywhere: marked payloads through the real server, and a search for what is left of them."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from tests.faults.marked import CALIBRATED, KINDS, QUICK
from tests.faults.markers_run import CORES, HEAP, WRITES, run
from tests.faults.not_here import NotHereError

PLACES = {"data folder", "log", "metrics", CORES, HEAP, WRITES}
FATES = {"valid", "rejected", "malformed", "predicted", "interrupted"}


def check(searched: dict[str, Any], kinds: tuple[str, ...]) -> None:
    """Every kind met every fate, one looked everywhere or says why not, and found nothing."""
    assert set(searched["sent"]) == set(kinds)
    for kind, counts in searched["sent"].items():
        assert set(counts) == FATES - ({"predicted"} if kind == "features" else set())
        assert min(counts.values()) >= 8, (kind, counts)
    assert searched["hits"] == 0, searched["places"]
    assert_fleeting(searched)
    missing = PLACES - set(searched["places"])
    assert missing == set(searched["not_here"])
    if WRITES not in missing:
        assert not any("NOT TRACED" in name for name in searched["traced"]), searched["traced"]
        assert searched["traced"]["decoding_child"] >= 2, "the one that they are forked from, and one that decodes"
    if HEAP not in missing:
        assert searched["processes"]["decoding_child"] >= 2


def assert_fleeting(searched: dict[str, Any]) -> None:
    """What lay in a buffer until more came is told, and is not the rule: of all kinds it happened to one at most."""
    for hits in searched["fleeting"]:
        print(f"lay in memory until more came over the connection: {hits}")
    assert len(searched["fleeting"]) <= 1, searched["fleeting"]


def not_here(searched: dict[str, Any]) -> None:
    """Called last: what could be looked at was. Raises NotHereError where that was not all."""
    if searched["not_here"]:
        raise NotHereError("; ".join(f"{place}: {why}" for place, why in searched["not_here"].items()))


def test_no_marker_of_a_thousand_payloads_is_found_anywhere_but_labels_and_names_of_clients_are() -> None:
    """They are the strings that stay."""
    searched = run(260, seed=20261121, kinds=QUICK)
    assert searched["payloads"] >= 1000
    check(searched, QUICK)
    assert searched["allowed_strings_at_rest"] > 0
    not_here(searched)


def test_nor_is_any_of_the_images_that_a_trunk_in_8_bits_is_made_from_and_learns() -> None:
    found = run(120, seed=11, kinds=(CALIBRATED,), looks={HEAP, CORES}, deaths=(signal.SIGSEGV,))
    assert found["hits"] == 0, found["places"]
    assert {"data folder", "log", "metrics"} <= set(found["places"])
    not_here(found)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nor_is_any_with_torch_and_texts_in_the_path() -> None:
    """Of these models, servers killed in mid-batch are the long run's; one that dies with a core file is here, too."""
    kinds = tuple(kind for kind in KINDS if kind not in QUICK)
    found = run(32, seed=7, kinds=kinds, deaths=(signal.SIGSEGV,))
    check(found, kinds)
    if HEAP not in found["not_here"]:
        assert {"imitation_child", "child"} <= set(found["processes"]), found["processes"]
    not_here(found)


@pytest.mark.parametrize(
    ("fault", "kind", "place"),
    [
        ("logs", "images", "log"),
        ("keeps", "images", HEAP),
        ("keeps", CALIBRATED, HEAP),
        ("measures", "images", "metrics"),
        ("spills", "images", "temporary files"),
        ("decoder-keeps", "images", HEAP),
        ("decoder-writes", "images", WRITES),
        ("int8-keeps", "int8", HEAP),
        pytest.param("student-keeps", "student", HEAP, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_a_server_that_lets_payloads_lie_is_found_out(fault: str, kind: str, place: str) -> None:
    found = run(120 if kind == CALIBRATED else 40, 1, fault=fault, kinds=(kind,), looks={place})
    if place in found["not_here"]:
        not_here(found)
    assert found["places"][place] or (place == HEAP and found["fleeting"])


def test_a_server_that_always_keeps_what_came_last_is_found_out_though_it_lets_go_when_more_comes() -> None:
    found = run(40, 2, fault="keeps", kinds=("images", "tensors"), looks={HEAP})
    not_here(found)
    assert found["hits"] or len(found["fleeting"]) > 1, "a race happens to one kind, this to each"


def test_a_server_that_is_not_hardened_leaves_payloads_in_its_heap_and_a_core_file() -> None:
    found = run(40, 3, arguments=["--unhardened"], kinds=("images",), looks={HEAP, CORES})
    assert all(found["places"][place] for place in {HEAP, CORES} - set(found["not_here"]))
    not_here(found)
