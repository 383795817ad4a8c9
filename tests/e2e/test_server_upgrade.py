"""`upgrade-backbone` on a real server: what was learned moves, a bad backbone is refused, no stream suffers."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import tiny
from tests.moving import CLASSES, Images, accuracy, asked, calibration, declared, noise_backbone, taught
from tests.real_server import RealServer

from everlearn_client import (
    AsyncClient,
    Client,
    Conflict,
    FailedPrecondition,
    Features,
    InvalidArgument,
)
from everlearn_protos.v1 import models_pb2


@pytest.fixture(scope="module")
def successor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another convolution, and more features."""
    return tiny.write_backbone(tmp_path_factory.mktemp("successor"), 24, seed=1)


def state_of(client: Client, name: str) -> tuple[str, str, int, int, str]:
    found = client.models.get(name)
    status = found.status
    return found.declaration, status.trunk_digest, status.sample_count, found.generation, status.memory_digest


def test_a_model_moves_to_another_backbone_with_all_it_has_learned(
    server: RealServer, client: Client, backbone: Path, successor: Path, tmp_path: Path
) -> None:
    declared(server, backbone, "moved")
    before = client.models.get("moved")
    old_stable = client.models.version("moved", "stable").number
    assert accuracy(client, "moved") >= 0.95
    clients = list(client.models.clients("moved"))
    fed: list[int] = []
    stages: list[str] = []
    report = client.models.upgrade_backbone(
        "moved",
        tiny.declaration(successor, "moved"),
        calibration(),
        progress=lambda step: stages.append(step.stage),
        on_fed=fed.append,
    )
    assert (report.live, report.gate_passed, report.gate_reason) == (True, True, "passed")
    assert (report.samples, report.held_out, report.classes, report.unseen_classes) == (474, 118, CLASSES, 0)
    assert fed[0] == 0
    assert fed[-1] == 592
    assert "download" in stages
    assert report.agreement > 0.95
    assert 0 <= report.expected_drop <= report.drop_bound <= 0.1
    after = client.models.get("moved")
    assert after.status.feature_dim == 24
    assert after.status.trunk_digest == tiny.trunk_of(successor).digest
    assert after.status.sample_count == before.status.sample_count == 320
    assert list(after.status.samples_per_class) == list(before.status.samples_per_class)
    assert list(after.status.labels) == list(before.status.labels)
    assert after.generation == before.generation + 1
    assert before.status.inexact_because == ""
    assert "474 unlabelled samples" in after.status.inexact_because
    assert after.status.prequential == before.status.prequential
    assert list(client.models.clients("moved")) == clients
    assert clients[0].recent_tested > 0
    stable = client.models.version("moved", "stable")
    assert stable.number > old_stable
    assert stable.trunk_digest == after.status.trunk_digest
    # Of the old backbone the last may be stored late, beside the upgrade.
    assert [each.number for each in client.models.versions("moved") if each.trunk_digest == stable.trunk_digest] == [
        stable.number
    ]
    assert accuracy(client, "moved") >= 0.95
    # What it exports says so, and predicts what the server predicts.
    card = next(path for path in client.download(client.export("moved"), tmp_path) if path.suffix == ".md").read_text()
    assert "Those sums are an estimate: 320 samples were learned on" in card
    assert "Equal sums give equal heads" not in card
    # The version before still answers, on its own backbone.
    images, labels = asked()
    found = client.predict("moved", images, version=old_stable).top
    assert np.mean([top[0].label == label for top, label in zip(found, labels, strict=True)]) >= 0.95


def test_learning_goes_on_after_it_and_over_a_restart(tmp_path: Path, backbone: Path, successor: Path) -> None:
    with RealServer(tmp_path / "data") as server, server.client(client_id="teacher") as client:
        declared(server, backbone, "goes-on")
        client.models.upgrade_backbone("goes-on", tiny.declaration(successor, "goes-on"), calibration())
        report = client.learn("goes-on", [taught(turn) for turn in range(40)], first_sequence=1)
        assert report.durable_sequence == 40
        assert client.models.get("goes-on").status.sample_count == 320, "a watermark was lost"
        client.learn("goes-on", [taught(turn) for turn in range(50)], first_sequence=1)
        digest = client.models.get("goes-on").status.memory_digest
        server.restart()
        status = client.models.get("goes-on").status
        assert (status.sample_count, status.memory_digest) == (400, digest)
        assert "unlabelled samples" in status.inexact_because
        assert accuracy(client, "goes-on") >= 0.95
        # Features of the old trunk are told apart by their digest, as ever.
        old = tiny.trunk_of(backbone).feature_digest
        with pytest.raises((InvalidArgument, FailedPrecondition)):
            client.learn("goes-on", [(Features(np.zeros((1, 16), np.float32)), ["c0"])], feature_digest=old)


def test_control_a_backbone_of_noise_is_refused_with_the_figures_and_nothing_changes(
    server: RealServer, client: Client, backbone: Path, tmp_path: Path
) -> None:
    declared(server, backbone, "guarded")
    noise = tiny.declaration(noise_backbone(tmp_path), "guarded")
    before = state_of(client, "guarded")
    with pytest.raises(FailedPrecondition, match="decide alike on") as refused:
        client.models.upgrade_backbone("guarded", noise, calibration())
    assert refused.value.reason == "GATE_FAILED"
    # It is refused by what it would cost alone, too.
    report = client.models.upgrade_backbone("guarded", noise, calibration(), min_agreement=0, check=False)
    assert not report.gate_passed
    assert not report.live
    assert report.gate_reason.startswith("accuracy may fall by up to")
    assert report.drop_bound > 0.3
    assert report.agreement < 0.6
    assert report.unexplained > 0.7
    assert state_of(client, "guarded") == before
    assert accuracy(client, "guarded") >= 0.95


def test_the_declared_gate_holds_with_the_accuracy_that_may_be_left(
    server: RealServer, client: Client, backbone: Path, successor: Path
) -> None:
    declared(server, backbone, "strict", gate={"min_accuracy": 0.97})
    windowed = client.models.get("strict").status.prequential.windowed_accuracy
    declaration = tiny.declaration(successor, "strict", gate={"min_accuracy": 0.97})
    before = state_of(client, "strict")
    report = client.models.upgrade_backbone("strict", declaration, calibration(), check=False)
    assert not report.gate_passed
    assert report.gate_reason.startswith("spec.gate, with the accuracy that may be left: prequential accuracy")
    assert report.accuracy_bound == pytest.approx(max(0, windowed - report.drop_bound))
    assert state_of(client, "strict") == before


def test_classes_that_the_stream_does_not_show_are_named_unless_that_is_allowed(
    server: RealServer, client: Client, backbone: Path, successor: Path
) -> None:
    declared(server, backbone, "partly")
    declaration = tiny.declaration(successor, "partly")
    with pytest.raises(FailedPrecondition, match=r"none of 1 of 4 classes \(c3\)"):
        client.models.upgrade_backbone("partly", declaration, calibration(classes=CLASSES - 1))
    report = client.models.upgrade_backbone(
        "partly", declaration, calibration(classes=CLASSES - 1), max_unseen_classes=1, dry_run=True
    )
    assert list(report.unseen) == ["c3"]
    assert (report.gate_passed, report.live) == (True, False)


def test_a_dry_run_gives_the_figures_and_changes_nothing(
    server: RealServer, client: Client, backbone: Path, successor: Path
) -> None:
    declared(server, backbone, "dry")
    before = state_of(client, "dry")
    report = client.models.upgrade_backbone("dry", tiny.declaration(successor, "dry"), calibration(), dry_run=True)
    assert (report.gate_passed, report.live) == (True, False)
    assert state_of(client, "dry") == before


def test_with_manual_promotion_the_version_before_answers_until_another_is_promoted(
    server: RealServer, client: Client, backbone: Path, successor: Path
) -> None:
    manual = {"promotion": "manual"}
    declared(server, backbone, "by-decree", serving=manual)
    stable = client.models.promote("by-decree").status.aliases["stable"]
    declaration = tiny.declaration(successor, "by-decree", serving=manual)
    assert client.models.upgrade_backbone("by-decree", declaration, calibration()).live
    assert client.models.get("by-decree").status.aliases["stable"] == stable
    assert accuracy(client, "by-decree") >= 0.95
    assert client.models.promote("by-decree").status.aliases["stable"] > stable
    assert accuracy(client, "by-decree") >= 0.95
    # And from there to the next.
    back = tiny.declaration(backbone, "by-decree", serving=manual)
    assert client.models.upgrade_backbone("by-decree", back, calibration()).live
    told = client.models.get("by-decree").status
    assert (told.feature_dim, told.inexact_because.count("unlabelled samples")) == (16, 2)


def test_what_cannot_be_moved_is_refused_with_the_reason(
    server: RealServer, client: Client, backbone: Path, successor: Path
) -> None:
    declared(server, backbone, "base", batches=8)
    server.declare(tiny.declaration(backbone, "by-class", memory={"kind": "per_class_statistics"}))
    server.declare(tiny.declaration(backbone, "empty"))
    new = tiny.declaration
    for name, declaration, field, words in (
        ("base", new(backbone, "base"), "spec.backbone", "nothing to move"),
        ("base", new(successor, "other"), "metadata.name", "not 'base'"),
        ("base", new(successor, "base", head={"kind": "lda"}), "spec.head.kind", "apply that by itself"),
        ("base", new(successor, "base", labels=["new"]), "spec.labels", "apply that by itself"),
        ("by-class", new(successor, "by-class", memory={"kind": "per_class_statistics"}), "spec.memory.kind", "cannot"),
    ):
        with pytest.raises(InvalidArgument, match=words) as refused:
            client.models.upgrade_backbone(name, declaration, calibration())
        assert refused.value.field == field
    with pytest.raises(FailedPrecondition, match="no sample has been learned"):
        client.models.upgrade_backbone("empty", new(successor, "empty"), calibration())
    with pytest.raises(FailedPrecondition, match="too few to judge by"):
        client.models.upgrade_backbone("base", new(successor, "base"), calibration(64))
    with pytest.raises(InvalidArgument, match="both backbones must see the same"):
        client.models.upgrade_backbone("base", new(successor, "base"), [Features(np.zeros((2, 16), np.float32))])
    with pytest.raises(InvalidArgument) as broken:
        client.models.upgrade_backbone("base", new(successor, "base"), [[b"no image"]])
    assert broken.value.field == "samples.encoded_images.images[0]"
    with pytest.raises(InvalidArgument, match="no share"):
        client.models.upgrade_backbone("base", new(successor, "base"), calibration(), max_drop=2)


def test_a_caller_that_goes_away_or_fails_leaves_no_trace_and_the_next_may_begin(
    server: RealServer, client: Client, backbone: Path, successor: Path
) -> None:
    declared(server, backbone, "left", batches=8)
    before = state_of(client, "left")
    declaration = tiny.declaration(successor, "left")
    begun, done = threading.Event(), threading.Event()

    def slow() -> Iterator[Images]:
        yield next(calibration())
        done.wait(120)
        raise OSError("the disk with the calibration images is gone")

    failures: list[Exception] = []

    def run() -> None:
        try:
            client.models.upgrade_backbone("left", declaration, slow(), on_fed=lambda fed: begun.set() if fed else None)
        except OSError as error:
            failures.append(error)

    first = threading.Thread(target=run)
    first.start()
    assert begun.wait(120)
    with pytest.raises(Conflict, match="being upgraded already"):
        client.models.upgrade_backbone("left", declaration, calibration())
    done.set()
    first.join()
    assert len(failures) == 1
    assert state_of(client, "left") == before
    deadline_s = time.monotonic() + 120
    while True:  # the server hears of it a moment later
        try:
            assert client.models.upgrade_backbone("left", declaration, calibration(), dry_run=True).gate_passed
            break
        except Conflict:
            assert time.monotonic() < deadline_s


def test_a_model_that_is_changed_while_it_is_calibrated_is_not_overwritten(
    server: RealServer, client: Client, backbone: Path, successor: Path
) -> None:
    declared(server, backbone, "changed", batches=8)

    def meanwhile() -> Iterator[Images]:
        yield from calibration()
        server.declare(tiny.declaration(backbone, "changed", gate={"min_samples": 7}))

    with pytest.raises(Conflict, match="begin again"):
        client.models.upgrade_backbone("changed", tiny.declaration(successor, "changed"), meanwhile())
    assert "min_samples: 7" in client.models.get("changed").declaration


def test_a_learner_goes_on_through_an_upgrade_and_each_batch_counts_once(
    server: RealServer, client: Client, backbone: Path, successor: Path
) -> None:
    declared(server, backbone, "busy", batches=8)
    moved = threading.Event()

    def batches() -> Iterator[tuple[Any, list[str]]]:
        turn = 0
        while turn < 60 or (not moved.is_set() and turn < 30_000):
            time.sleep(0.01)
            yield taught(turn, 4)
            turn += 1
        for more in range(20):
            yield taught(turn + more, 4)

    reports: list[models_pb2.UpgradeReport] = []

    def upgrade() -> None:
        time.sleep(0.1)
        try:
            reports.append(client.models.upgrade_backbone("busy", tiny.declaration(successor, "busy"), calibration()))
        finally:
            moved.set()

    upgrader = threading.Thread(target=upgrade)
    upgrader.start()
    with server.client(client_id="persistent") as learner:
        report = learner.learn("busy", batches(), retry_for_s=120)
    upgrader.join()
    assert reports[0].live
    assert report.reconnects >= 1
    status = client.models.get("busy").status
    assert status.feature_dim == 24
    assert status.sample_count == 64 + 4 * report.durable_sequence
    assert status.prequential.tested == status.sample_count
    assert accuracy(client, "busy") >= 0.95


def test_the_asynchronous_client_moves_a_model_too(
    server: RealServer, client: Client, backbone: Path, successor: Path
) -> None:
    declared(server, backbone, "async")

    async def moved() -> models_pb2.UpgradeReport:
        async with AsyncClient(server.address) as connected:
            return await connected.models.upgrade_backbone("async", tiny.declaration(successor, "async"), calibration())

    assert asyncio.run(moved()).live
    assert client.models.get("async").status.feature_dim == 24


def test_the_raw_samples_are_nowhere_on_disk(tmp_path: Path, backbone: Path, successor: Path) -> None:
    marker = hashlib.sha256(b"calibration").digest() * 24  # 768 bytes: one image's pixels
    image = np.frombuffer(marker, np.uint8).reshape(1, tiny.SIZE, tiny.SIZE, 3)
    with RealServer(tmp_path / "data") as server, server.client() as client:
        declared(server, backbone, "clean")
        batches = [*calibration(), image]
        client.models.upgrade_backbone("clean", tiny.declaration(successor, "clean"), batches)
    kept = b"".join(path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file())
    assert marker[:64] not in kept
    assert marker[:64] not in server.log.encode(errors="replace")
