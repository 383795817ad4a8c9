"""Two devices and a real server: a version is a canary first, and what devices report decides what becomes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import tiny
from tests.real_server import RealServer

from everlearn_client import Client, DataLoss, FailedPrecondition, InvalidArgument
from everlearn_client.edge import EdgeModel, EdgeSettings
from everlearn_protos.v1 import fleet_pb2

LABELS = ("ash", "birch", "cedar")
WAIT_S = 240.0
CANARY: dict[str, Any] = {"selector": {"site": "lab"}, "min_predictions": 20}


def until(condition: Callable[[], object]) -> None:
    give_up_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up_s, "it did not come to pass"
        time.sleep(0.05)


def settings(site: str) -> EdgeSettings:
    return EdgeSettings(labels={"site": site}, confirm_after_s=0.0)


@pytest.fixture
def teacher(server: RealServer) -> Iterator[Client]:
    with server.client() as connected:
        yield connected


def declare(server: RealServer, backbone: Path, name: str, **rollout: object) -> str:
    text = tiny.declaration(backbone, name=name, rollout={"canary": CANARY, **rollout})
    server.declare(text)
    return text


def teach(client: Client, name: str, *, seed: int) -> None:
    client.learn(name, [(tiny.images(20, index, seed=seed), [label] * 20) for index, label in enumerate(LABELS)])


def aliases(client: Client, name: str) -> Mapping[str, int]:
    return client.models.get(name).status.aliases


def rests(client: Client, name: str) -> bool:
    """Whether the newest version is the exact head of all that was learned: no other comes until more is."""
    newest = client.models.version(name, "latest")
    return bool(newest.memory_digest) and newest.memory_digest == client.models.get(name).status.memory_digest


def number(edge: EdgeModel) -> int:
    return int(edge.version.rpartition("/")[2] or 0)


class Scene:
    """A model with a stable version, and a device in the lab and one in the field, both on it; then a canary."""

    def __init__(self, server: RealServer, teacher: Client, name: str, folder: Path) -> None:
        self.server, self.teacher, self.name, self.folder = server, teacher, name, folder
        self.clients = {site: server.client(client_id=f"{name}-{site}") for site in ("lab", "field")}
        teach(teacher, name, seed=0)
        until(lambda: "stable" in aliases(teacher, name))
        # The version after the first may be a canary by now; by hand it is stable, and the scene begins at rest.
        until(self._is_at_rest)
        self.first = aliases(teacher, name)["stable"]
        self.edges = {site: self.device(site) for site in ("lab", "field")}
        for edge in self.edges.values():
            edge.pull()
            assert number(edge) == self.first
            edge.predict(tiny.images(40, 0))

    def _is_at_rest(self) -> bool:
        latest = aliases(self.teacher, self.name)
        if not rests(self.teacher, self.name):
            return False
        if latest["latest"] != latest["stable"]:
            self.teacher.models.promote(self.name)
        latest = aliases(self.teacher, self.name)
        return latest["latest"] == latest["stable"] and "canary" not in latest

    def device(self, site: str) -> EdgeModel:
        return EdgeModel(self.name, folder=self.folder / site, client=self.clients[site], settings=settings(site))

    def open(self, *, seed: int) -> int:
        """Teaches, and waits for the canary that comes of it."""
        teach(self.teacher, self.name, seed=seed)
        until(lambda: rests(self.teacher, self.name))
        until(lambda: aliases(self.teacher, self.name).get("canary", 0) > self.first)
        return int(aliases(self.teacher, self.name)["canary"])

    def until_it_runs(self, site: str, version: int) -> None:
        def runs() -> bool:
            self.edges[site].pull()
            return number(self.edges[site]) == version

        until(runs)

    def works(self, site: str, *, images: int) -> None:
        """A device answers, and says so."""
        self.edges[site].predict(tiny.images(images, 1))
        self.edges[site].pull()

    def fails(self, site: str) -> None:
        """A device that gets what its version does not take."""
        for _ in range(50):
            with pytest.raises(InvalidArgument):
                self.edges[site].predict(np.zeros((1, 5, 5, 1), np.uint8))

    def close(self) -> None:
        for edge in self.edges.values():
            edge.close()
        for client in self.clients.values():
            client.close()


@pytest.fixture
def scene_of(server: RealServer, teacher: Client, tmp_path: Path) -> Iterator[Callable[[str], Scene]]:
    made: list[Scene] = []

    def make(name: str) -> Scene:
        made.append(Scene(server, teacher, name, tmp_path))
        return made[-1]

    yield make
    for scene in made:
        scene.close()


def test_a_healthy_canary_reaches_the_lab_first_and_then_everyone(
    server: RealServer, teacher: Client, backbone: Path, scene_of: Callable[[str], Scene]
) -> None:
    declare(server, backbone, "well")
    scene = scene_of("well")
    canary = scene.open(seed=1)
    assert teacher.models.version("well", "canary").number == canary
    scene.until_it_runs("lab", canary)
    assert not scene.edges["field"].pull()
    assert number(scene.edges["field"]) == scene.first == aliases(teacher, "well")["stable"]
    scene.works("lab", images=30)
    scene.until_it_runs("field", canary)
    found = teacher.models.get("well").status
    assert (found.aliases["stable"], found.rollout.before) == (canary, scene.first)
    shown = {each.client: each.device for each in teacher.models.clients("well") if each.HasField("device")}
    assert (shown["well-lab"].labels["site"], shown["well-lab"].is_canary) == ("lab", True)
    assert (shown["well-field"].labels["site"], shown["well-field"].is_canary) == ("field", False)


def test_a_canary_that_fails_its_self_test_is_withdrawn_and_never_reaches_the_others(
    server: RealServer,
    teacher: Client,
    backbone: Path,
    scene_of: Callable[[str], Scene],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    declare(server, backbone, "bad")
    scene = scene_of("bad")
    canary = scene.open(seed=1)
    with monkeypatch.context() as broken:
        broken.setattr("everlearn_client.edge.session.EdgeSession.self_test", _fails)
        with pytest.raises(DataLoss):
            scene.edges["lab"].pull()
    scene.edges["lab"].pull()  # says so
    until(lambda: "canary" not in aliases(teacher, "bad"))
    (withdrawn,) = teacher.models.get("bad").status.rollout.withdrawn
    assert (withdrawn.version, withdrawn.reason) == (canary, "1 of 1 devices gave it up; 0 may")
    for edge in scene.edges.values():
        edge.pull()
        assert number(edge) == scene.first
    assert aliases(teacher, "bad")["stable"] == scene.first
    # What is learned from here on is tried anew.
    assert scene.open(seed=2) > canary


def test_a_canary_that_crashes_the_program_again_and_again_is_withdrawn(
    server: RealServer, teacher: Client, backbone: Path, scene_of: Callable[[str], Scene]
) -> None:
    declare(server, backbone, "crashes")
    scene = scene_of("crashes")
    canary = scene.open(seed=1)
    scene.until_it_runs("lab", canary)
    for _ in range(4):  # the program dies, and is started again
        scene.edges["lab"]._spool.close()
        scene.edges["lab"] = scene.device("lab")
    assert number(scene.edges["lab"]) == scene.first
    scene.edges["lab"].pull()
    until(lambda: "canary" not in aliases(teacher, "crashes"))
    shown = {each.client: each.device for each in teacher.models.clients("crashes") if each.HasField("device")}
    assert dict(shown["crashes-lab"].given_up) == {canary: "CRASH_LOOP"}
    assert not scene.edges["field"].pull()


def test_an_erasure_takes_the_canary_that_knew_it_along(
    server: RealServer, teacher: Client, backbone: Path, scene_of: Callable[[str], Scene]
) -> None:
    text = tiny.declaration(
        backbone, name="erased", rollout={"canary": CANARY}, memory={"kind": "per_class_statistics"}
    )
    server.declare(text)
    scene = scene_of("erased")
    canary = scene.open(seed=1)
    scene.until_it_runs("lab", canary)
    teacher.erase("erased", label="cedar")
    found = teacher.models.get("erased").status
    assert found.rollout.canary != canary
    assert found.aliases["stable"] > canary
    server.kill()
    server.start()
    assert teacher.models.get("erased").status.rollout.canary != canary
    for site in ("lab", "field"):  # in the lab it was on trial, and is given up all the same
        scene.until_it_runs(site, found.aliases["stable"])


def test_a_canary_that_fails_to_answer_gives_way_on_the_device_that_tried_it(
    server: RealServer, teacher: Client, backbone: Path, scene_of: Callable[[str], Scene]
) -> None:
    declare(server, backbone, "errs")
    scene = scene_of("errs")
    canary = scene.open(seed=1)
    scene.until_it_runs("lab", canary)
    scene.fails("lab")
    scene.until_it_runs("lab", scene.first)
    (withdrawn,) = teacher.models.get("errs").status.rollout.withdrawn
    assert withdrawn.version == canary
    assert withdrawn.reason.startswith("100.0% of its predictions failed, and 0.0% before")
    assert not scene.edges["field"].pull()


def test_a_killed_server_keeps_the_canary_and_what_it_has_withdrawn_and_forgets_the_evidence(
    server: RealServer, teacher: Client, backbone: Path, scene_of: Callable[[str], Scene]
) -> None:
    declare(server, backbone, "killed-canary")
    scene = scene_of("killed-canary")
    canary = scene.open(seed=1)
    scene.until_it_runs("lab", canary)
    scene.works("lab", images=15)
    until(lambda: teacher.models.get("killed-canary").status.rollout.tried.predictions == 15)
    server.kill()
    server.start()
    found = teacher.models.get("killed-canary").status
    assert found.aliases["canary"] == found.rollout.canary == canary
    assert found.rollout.tried.predictions == 0
    # A device that did not see the canary cannot speak for it.
    scene.edges["field"].pull()
    assert aliases(teacher, "killed-canary")["canary"] == canary
    teacher.models.rollback("killed-canary", canary=True)
    server.kill()
    server.start()
    found = teacher.models.get("killed-canary").status
    assert "canary" not in found.aliases
    assert [(each.version, each.reason) for each in found.rollout.withdrawn] == [(canary, "withdrawn by hand")]
    scene.until_it_runs("lab", scene.first)
    with pytest.raises(FailedPrecondition, match="no canary"):
        teacher.models.rollback("killed-canary", canary=True)


def test_the_same_report_counts_once_and_one_device_counts_for_its_part(
    server: RealServer, teacher: Client, backbone: Path, scene_of: Callable[[str], Scene]
) -> None:
    declare(server, backbone, "liar", canary={**CANARY, "min_devices": 2})
    scene = scene_of("liar")
    canary = scene.open(seed=1)
    use = fleet_pb2.VersionUse(version=canary, predictions=10**9)
    for boot in ("0" * 8, "1" * 8, "0" * 8):
        told = fleet_pb2.CheckInRequest(
            name="models/liar", labels={"site": "lab"}, boot=boot, running=canary, uses=[use]
        )
        with server.client(client_id="liar-1") as liar:
            assert liar.models.check_in(told).version == canary
    tried = teacher.models.get("liar").status.rollout.tried
    assert (tried.devices, tried.predictions) == (1, 10)  # of 20 that two devices must have made
    with server.client() as nameless:
        assert not nameless.models.check_in(told).canary
    assert aliases(teacher, "liar")["canary"] == canary


def test_a_stable_version_that_turns_out_bad_gives_way_to_the_one_before_it_once(
    server: RealServer, teacher: Client, backbone: Path, scene_of: Callable[[str], Scene]
) -> None:
    declare(server, backbone, "late")
    scene = scene_of("late")
    canary = scene.open(seed=1)
    scene.until_it_runs("lab", canary)
    scene.works("lab", images=30)
    scene.until_it_runs("field", canary)
    assert teacher.models.get("late").status.rollout.before == scene.first
    scene.fails("field")
    scene.until_it_runs("field", scene.first)
    scene.until_it_runs("lab", scene.first)
    status = teacher.models.get("late").status
    assert status.aliases["stable"] == scene.first
    first, *others = status.rollout.withdrawn
    assert "of its predictions failed, and 0.0% before" in first.reason
    assert all(each.reason == f"with version {first.version}" for each in others)  # one that was tried by then
    assert not status.rollout.before


def test_what_is_done_by_hand_holds(
    server: RealServer, teacher: Client, backbone: Path, scene_of: Callable[[str], Scene]
) -> None:
    declare(server, backbone, "hand")
    scene = scene_of("hand")
    canary = scene.open(seed=1)
    found = teacher.models.promote("hand", "canary").status
    assert (found.aliases["stable"], found.rollout.before) == (canary, scene.first)
    found = teacher.models.rollback("hand", scene.first).status
    assert (found.aliases["stable"], found.promotion_paused, found.rollout.before) == (scene.first, True, 0)
    assert "canary" not in found.aliases
    teach(teacher, "hand", seed=2)
    until(lambda: rests(teacher, "hand"))
    server.kill()
    server.start()
    assert "canary" not in aliases(teacher, "hand")  # promotion is paused: nothing is tried
    scene.edges["lab"].pull()
    assert number(scene.edges["lab"]) == scene.first
    found = teacher.models.promote("hand").status
    assert found.aliases["stable"] == found.aliases["latest"] > canary
    assert scene.open(seed=3) > found.aliases["stable"]
    found = teacher.models.rollback("hand").status
    assert "canary" not in found.aliases


def test_what_no_device_would_say_is_refused(server: RealServer, teacher: Client, backbone: Path) -> None:
    server.declare(tiny.declaration(backbone, name="said"))
    use = {"version": 1, "predictions": 5}
    for field, wrong in (
        ("labels", {"labels": {"a b": "x"}}),
        ("labels[a]", {"labels": {"a": "x y"}}),
        ("boot", {"boot": "no"}),
        ("follows", {"follows": "newest"}),
        ("running", {"running": -1}),
        ("up_s", {"up_s": float("nan")}),
        ("uses[0].version", {"uses": [{"version": 0}]}),
        ("uses[1].version", {"uses": [use, use]}),
        ("uses[0].failed", {"uses": [{**use, "failed": 6}]}),
        ("uses[0].abstained", {"uses": [{**use, "abstained": 1}]}),
        ("uses[0].novelty_sum", {"uses": [{**use, "watched": 1, "novelty_sum": float("nan")}]}),
        ("uses[0].latency_ms", {"uses": [{**use, "latency_ms": -1}]}),
        ("uses[0].labels", {"uses": [{**use, "labels": {"x": 6}}]}),
        ("uses[0].labels", {"uses": [{**use, "other_labels": -1}]}),
        ("uses", {"uses": [{"version": n} for n in range(1, 6)]}),
        ("given_up", {"given_up": [{"version": n} for n in range(1, 18)]}),
        ("given_up[0].version", {"given_up": [{"version": -1}]}),
    ):
        right: dict[str, Any] = {"name": "models/said", "boot": "0" * 8}
        with pytest.raises(InvalidArgument) as refused:
            teacher.models.check_in(fleet_pb2.CheckInRequest(**{**right, **wrong}))
        assert refused.value.field == field
    assert teacher.models.check_in(fleet_pb2.CheckInRequest(name="models/said", boot="0" * 8)).version == 0


def test_without_a_rollout_a_version_is_for_all_at_once(
    server: RealServer, teacher: Client, backbone: Path, tmp_path: Path
) -> None:
    server.declare(tiny.declaration(backbone, name="plain"))
    teach(teacher, "plain", seed=0)
    until(lambda: "stable" in aliases(teacher, "plain"))
    with server.client(client_id="plain-field") as client:
        edge = EdgeModel("plain", folder=tmp_path, client=client, settings=settings("field"))
        teach(teacher, "plain", seed=1)

        def follows() -> bool:
            edge.pull()
            found = aliases(teacher, "plain")
            return number(edge) == found["stable"] == found["latest"]

        until(follows)
        assert "canary" not in aliases(teacher, "plain")
        edge.close()


def test_a_rollout_that_is_not_declared_any_more_lets_the_newest_version_through(
    server: RealServer, teacher: Client, backbone: Path, scene_of: Callable[[str], Scene]
) -> None:
    declare(server, backbone, "ended")
    scene = scene_of("ended")
    scene.open(seed=1)
    server.declare(tiny.declaration(backbone, name="ended"))
    until(lambda: aliases(teacher, "ended")["stable"] == aliases(teacher, "ended")["latest"] > scene.first)
    assert "canary" not in aliases(teacher, "ended")


def _fails(self: object, path: Path, **options: object) -> float:
    raise DataLoss("scores of a probe differ by all")
