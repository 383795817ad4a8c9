"""kill -9 while weights are set back and learn again: the old state or the new one, and the next start finishes it."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.erasure_scene import DIM, KINDS, Scene, at_rest, batches
from tests.real_server import RealServer

from everlearn_client.errors import Unavailable

FAULTY = str(Path(__file__).with_name("rewinding_faulty.py"))
SPEC: Mapping[str, Any] = {
    **KINDS["steps"],
    "backbone": {"source": "identity"},
    "input": {"modality": "tensor", "shape": [DIM], "range": [-4.0, 4.0]},
    "memory": {"kind": "latents", "capacity": 2000},
}


def learned(server: RealServer, folder: Path, *clients: str) -> tuple[Scene, str]:
    """Fifteen samples of each, one after the other; and what was learned of the first."""
    scene = Scene(server, folder)
    server.declare(json.dumps({"metadata": {"name": "m"}, "spec": SPEC}))
    digests = []
    for seed, client in enumerate(clients):
        scene.learn("m", client, batches(seed, 3), receipts=False)
        digests.append(scene.digest("m"))
    return scene, digests[0]


def is_resumed(scene: Scene, *, within_s: float) -> bool:
    """Whether the server goes on by itself with what it was asked before."""
    until_s = time.monotonic() + within_s
    while not scene.erasures("m"):
        if time.monotonic() > until_s:
            return False
        time.sleep(0.05)
    return True


def test_a_kill_at_any_step_of_going_back_leaves_the_old_or_the_new_state_and_the_next_start_finishes(
    tmp_path: Path,
) -> None:
    with RealServer(tmp_path / "data", program=[FAULTY, "blobs+stop:relearn:1"]) as server:
        scene, _ = learned(server, tmp_path, "bob", "ann", "bob")
        with pytest.raises(Unavailable):
            scene.erase("m", "ann", None)
        assert server.wait() == -signal.SIGKILL
        before = at_rest(tmp_path / "data", "m")
        assert (before["samples"], before["erasures"]) == (15, ())
        shutil.copytree(tmp_path / "data", tmp_path / "calm", ignore=shutil.ignore_patterns("*.sock"))
        for point in ("before_commit", "committed"):
            server.program = [FAULTY, f"blobs+kill:{point}:1"]
            server.launch()  # nobody asks again
            assert server.wait() == -signal.SIGKILL
            found = at_rest(tmp_path / "data", "m")
            assert (found == before) is (point == "before_commit")
        assert (found["samples"], found["durable"], len(found["erasures"])) == (0, 3, 1)
        gone = json.loads(found["erasures"][0].receipt_json)["withdrawn_versions"]
        assert gone
        assert not set(gone) & set(found["versions"])
        server.program = [FAULTY, "blobs"]
        server.start()
        report = scene.erase("m", "ann", None)  # whoever lost the answer asks again
        assert (report.how, report.samples, report.erasure.id, report.rewound.learned_again) == ("rewound", 0, 1, 15)
        killed = scene.digest("m"), scene.predictions("m")
    with RealServer(tmp_path / "calm") as server:
        calm = Scene(server, tmp_path)
        assert is_resumed(calm, within_s=240)
        assert (calm.digest("m"), calm.predictions("m")) == killed


def test_control_a_server_that_stores_no_operation_and_goes_back_to_what_knew_the_client_is_caught(
    tmp_path: Path,
) -> None:
    with RealServer(tmp_path / "data", program=[FAULTY, "stop:forget_client:1+unasked"]) as server:
        scene, before = learned(server, tmp_path, "bob", "ann")
        with pytest.raises(Unavailable):
            scene.erase("m", "ann", None)
        assert server.wait() == -signal.SIGKILL
        server.program = [FAULTY, "unasked+late"]
        server.start()
        assert not is_resumed(scene, within_s=2.0)
        assert scene.erase("m", "ann", None).how == "rewound"
        assert scene.digest("m") != before
