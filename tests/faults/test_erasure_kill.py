"""Erasures on servers that are killed in the middle, and on one that takes out what it never learned."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from tests.erasure_scene import Scene, at_rest, batches
from tests.real_server import RealServer

from everlearn_client.errors import Unavailable

FAULTY = str(Path(__file__).with_name("faulty_server.py"))
WRONG = str(Path(__file__).with_name("erasing_wrongly.py"))


def test_a_kill_inside_an_erasure_leaves_all_of_it_or_nothing(tmp_path: Path) -> None:
    with RealServer(tmp_path / "data") as server:
        scene = Scene(server, tmp_path)
        scene.declare("m")
        scene.declare("never")
        for name in ("m", "never"):
            scene.learn(name, "bob", batches(1, 6), receipts=False)
        path = scene.learn("m", "ann", batches(2, 6))
        never = scene.digest("never")
        server.terminate()
        before = at_rest(tmp_path / "data", "m")
        plain = server.program
        for point in ("before_commit", "committed"):
            server.program = [FAULTY, f"kill:{point}:1"]
            server.start()
            with pytest.raises(Unavailable):
                scene.erase("m", "ann", path)
            assert server.wait() == -signal.SIGKILL
            found = at_rest(tmp_path / "data", "m")
            if point == "before_commit":
                assert found == before
        assert (found["samples"], found["durable"], len(found["erasures"])) == (0, 6, 1)
        gone = json.loads(found["erasures"][0].receipt_json)["withdrawn_versions"]
        assert gone
        assert not set(gone) & set(found["versions"])
        server.program = plain
        server.start()
        report = scene.erase("m", "ann", path)  # whoever lost the answer asks again
        assert (report.exact, report.samples, report.erasure.id) == (True, 0, 1)
        assert scene.digest("m") == never
        assert scene.predictions("m")  # by a head of what is left, made at the start


def test_control_a_server_that_takes_out_what_is_not_to_the_bit_what_it_learned_is_caught(tmp_path: Path) -> None:
    with RealServer(tmp_path / "data", program=[WRONG]) as server:
        scene = Scene(server, tmp_path)
        for name in ("m", "never"):
            scene.declare(name)
            scene.learn(name, "bob", batches(1, 12), receipts=False)
        scene.erase("m", "ann", scene.learn("m", "ann", batches(2, 6)))
        assert scene.digest("m") != scene.digest("never")
