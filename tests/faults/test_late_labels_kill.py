"""A server that is killed while late labels come: each is learned once, or refused in words.

What waits is in RAM alone, so a label whose batch was not committed before the kill finds nothing afterwards.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from tests import tiny
from tests.faults.scene import Scene
from tests.real_server import RealServer

from everlearn_client import Batch, Client, LabelReport

COUNT = 150
"""Labels; three batches."""
LATE = {"ttl_s": 3600, "capacity": 1000}


def prepared(folder: Path) -> tuple[Scene, int]:
    """A server that has ended, with a model that predicts; and the samples it has learned."""
    scene = Scene(folder, clients=0, late_labels=LATE)
    with scene.server as server, server.client() as client:
        client.learn("tiny", [Batch(tiny.images(4, kind), [f"c{kind}"] * 4) for kind in (0, 1)])
        client.predict("tiny", tiny.images(1, 0))
    return scene, 8


def judged(report: LabelReport, before: int, after: int) -> list[str]:
    """Promises that were broken."""
    broken = []
    if report.learned + len(report.refused) != COUNT:
        broken.append(f"{report.learned} learned and {len(report.refused)} refused are not {COUNT}")
    if after - before != report.learned:
        broken.append(f"{after - before} more samples are in the memory, and {report.learned} were said to be learned")
    return broken


@pytest.mark.parametrize("fault", ["arrived:1", "committed:1"])
def test_a_kill_while_labels_come_late_loses_or_doubles_none_unsaid(tmp_path: Path, fault: str) -> None:
    scene, before = prepared(tmp_path)
    server, reports = scene.server, list[LabelReport]()
    server.fault = f"kill:{fault}"
    server.start()
    with server.client() as asking:
        ids = [each for turn in range(3) for each in asking.predict("tiny", tiny.images(50, 0, seed=turn)).sample_ids]

    def user() -> None:
        with Client(server.address, client_id="clerk") as client:
            reports.append(client.label("tiny", [(each, "c0") for each in ids]))

    thread = threading.Thread(target=user, daemon=True)
    thread.start()
    assert server.wait() == -9
    server.fault = ""
    server.start()
    thread.join(240)
    with server.client() as client:
        after = client.models.get("tiny").status.sample_count
    assert server.terminate() == 0
    assert judged(reports[0], before, after) == []
    assert {each.reason for each in reports[0].refused} <= {"SAMPLE_UNKNOWN"}
    if fault == "committed:1":
        assert reports[0].learned > 0  # committed before the kill, and told after it
    else:
        assert reports[0].learned == 0  # what waited for them was in RAM


def test_control_a_sample_that_waits_on_after_its_label_is_learned_twice(tmp_path: Path) -> None:
    scene, before = prepared(tmp_path)
    broken = [str(Path(__file__).with_name("waits_on.py"))]
    with RealServer(scene.server.folder, program=broken) as server, server.client() as client:
        ids = [each for turn in range(3) for each in client.predict("tiny", tiny.images(50, 0, seed=turn)).sample_ids]
        client.label("tiny", [(each, "c0") for each in ids[:10]])
        report = client.label("tiny", [(each, "c0") for each in ids])
        assert judged(report, before, client.models.get("tiny").status.sample_count) != []
