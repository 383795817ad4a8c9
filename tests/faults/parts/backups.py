"""Backups while clients stream: each is whole, and of one moment: its sums are those of its watermarks' batches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Semaphore

import grpc
from tests import tiny
from tests.data_folders import sql
from tests.faults.learners import AtRest, Crowd, Learner, at_rest, expected_sums, make_batches, violations
from tests.real_server import RealServer

from everlearn.values import Trunk
from everlearn_protos.v1 import admin_pb2, admin_pb2_grpc
from everlearn_server.check.folder import check
from everlearn_server.rpc.admin import AdminSocket
from everlearn_server.store.restore import restore

SHORT: Mapping[str, int] = {"backups": 1}
LONG: Mapping[str, int] = {"backups": 20}
DIM = 64


def run(folder: Path, *, backups: int, fault: str = "") -> Mapping[str, object]:
    """Three clients; each backup is checked, restored and judged by the oracle. `fault`: of a control."""
    backbone = tiny.write_backbone(folder, DIM)
    trunk, allowance, total = tiny.trunk_of(backbone), Semaphore(0), 100 * (backups + 1)
    learners = learners_of(trunk, batches=total, allowance=allowance)
    durable, took_s = [], list[float]()
    with RealServer(folder / "data") as server:
        server.declare(tiny.declaration(backbone))
        crowd = Crowd(learners, server.address)
        crowd.start()
        with load(allowance, 3 * total) as go_on:
            for index in range(backups):
                go_on(300 * index + 200)
                wait_until(crowd, crowd.received + 60)
                durable.append([learner.acknowledged for learner in learners])
                received, began_s = crowd.received, time.monotonic()
                ask_for_backup(server, folder / f"backup-{index}")
                took_s.append(time.monotonic() - began_s)
                go_on(300 * (index + 1))
                wait_until(crowd, received + 1)
        crowd.join(timeout_s=240)
    wrong = broken(learners, folder / "data", trunk)
    assert wrong == [], wrong
    kept = [judged(learners, folder, index, before, trunk, fault) for index, before in enumerate(durable)]
    return {"backups": backups, "batches": 3 * total, "in the backups": kept, "s, most": round(max(took_s), 2)}


def judged(
    learners: Sequence[Learner], folder: Path, index: int, before: Sequence[int], trunk: Trunk, fault: str
) -> int:
    """Batches that a backup holds: all that were durable before it was asked for, none in part, each once."""
    backup, restored = folder / f"backup-{index}", folder / f"restored-{index}"
    report = check(backup)
    assert report.findings == [], f"backup {index}: {report.findings}"
    restore(backup, restored)
    if fault:
        sql(restored, "UPDATE stream SET durable_sequence = durable_sequence - 1 WHERE client = 'learner-0'")
    else:
        assert check(restored).findings == []
    wrong = broken(learners, restored, trunk)
    assert wrong == [], f"backup {index}: {wrong}"
    streams = at_rest(restored).streams
    kept = [streams[learner.client_id].durable_sequence for learner in learners]
    assert all(acknowledged <= held for acknowledged, held in zip(before, kept, strict=True)), (before, kept)
    return sum(kept)


def ask_for_backup(server: RealServer, to: Path) -> None:
    """What the command does; without the seconds that a Python process takes to begin."""
    socket = AdminSocket(server.folder)
    with grpc.insecure_channel(socket.address) as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        *_, last = stub.Backup(admin_pb2.BackupRequest(to=str(to)), timeout=60)
    socket.close()
    assert last.stage == "done"


def start(server: RealServer) -> None:
    """Without asking it anything: while clients wait for it, their back-off holds for who asks beside them, too."""
    process = server.launch()
    while not server._ready.exists():
        assert process.poll() is None, server.log
        time.sleep(0.01)


def learners_of(
    trunk: Trunk, *, count: int = 3, batches: int = 300, allowance: Semaphore | None = None
) -> list[Learner]:
    learners = []
    for index in range(count):
        made, features = make_batches(index, batches, trunk)
        learner = Learner(f"learner-{index}", made, features, feature_digest=trunk.feature_digest, allowance=allowance)
        learners.append(learner)
    return learners


@contextmanager
def load(allowance: Semaphore, batches: int) -> Iterator[Callable[[int], None]]:
    """Lets learners send some batches, steadily, until the block ends; then all the rest. Before that no more than what
    is given is told: however long a backup takes, somebody is still streaming after it."""
    ended, most = threading.Event(), [0]

    def feed() -> None:
        fed = 0
        while not ended.wait(0.01):
            if fed < min(most[0], batches):
                allowance.release()
                fed += 1
        allowance.release(batches - fed or 1)

    def go_on(told: int) -> None:
        most[0] = told

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        yield go_on
    finally:
        ended.set()
        feeder.join()


def wait_until(crowd: Crowd, received: int) -> None:
    """Until so many answers have come, and each learner has a stream."""
    while (crowd.received < received or not all(each.timeline for each in crowd.learners)) and crowd.is_streaming:
        time.sleep(0.002)
    assert crowd.is_streaming


def prefix(learners: Sequence[Learner], found: AtRest) -> list[Learner]:
    """What each learner had durable in what was found: the batches that must be in it, and no other."""
    cut = []
    for learner in learners:
        row = found.streams.get(learner.client_id)
        kept = row.durable_sequence if row else 0
        cut.append(replace(learner, batches=learner.batches[:kept], features=learner.features[:kept]))
    return [learner for learner in cut if learner.client_id in found.streams]


def broken(learners: Sequence[Learner], folder: Path, trunk: Trunk) -> list[str]:
    """The oracle on a data folder of some moment of the stream."""
    found = at_rest(folder)
    cut = prefix(learners, found)
    return violations(cut, found, expected_sums(cut, trunk))
