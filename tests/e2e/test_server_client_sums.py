"""Models that keep each client's own sums: whoever is taken out needs to bring nothing, and was never there."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from tests.e2e.test_cli_erasure import run_cli
from tests.erasure_scene import DIM, KINDS, Scene, batches
from tests.faults.parts.backups import ask_for_backup
from tests.real_server import RealServer

from everlearn_client import Tensors
from everlearn_client._ed25519 import is_signed
from everlearn_client.errors import FailedPrecondition, InvalidArgument
from everlearn_client.samples import Batch
from everlearn_server.check.folder import check
from everlearn_server.store.database import NAME
from everlearn_server.store.restore import restore
from everlearn_server.store.schema import client_key, client_sums

OWN = {"own": "sums", "own-split": "split", "own-tags": "tags"}
WIDE = 368
"""Features whose sums are beyond what a row holds."""


@pytest.fixture(scope="module")
def scene(server: RealServer, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(server, tmp_path_factory.mktemp("receipts"))


def kept(folder: Path, table: str = client_sums.name) -> list[tuple[str, str]]:
    """(model, client) of the rows of a server that has ended."""
    with closing(sqlite3.connect(folder / NAME)) as database:
        return sorted(database.execute(f"SELECT model, client FROM {table}").fetchall())  # a constant


def wide(seed: int, count: int) -> list[Batch]:
    random = np.random.default_rng(seed)
    return [Batch(Tensors(random.normal(0, 1, (4, WIDE)).astype(np.float32)), list("abca")) for _ in range(count)]


@pytest.mark.parametrize("kind", OWN)
def test_a_client_is_taken_out_without_its_receipts_as_if_it_had_never_been_there(scene: Scene, kind: str) -> None:
    for name in (kind, f"{kind}-never"):
        scene.declare(name, kind)
        scene.learn(name, "bob", batches(1, 8, kind), receipts=False)
        scene.learn(name, "cat", batches(3, 8, kind), receipts=False)
    scene.learn(kind, "ann", batches(2, 9, kind), receipts=False)
    before = scene.digest(kind)
    plan = scene.erase(kind, "ann", None, dry_run=True)
    assert (plan.how, plan.exact, plan.samples, plan.samples_learned) == ("own sums subtracted", True, 45, 45)
    assert scene.digest(kind) == before
    report = scene.erase(kind, "ann", None)
    told = json.loads(report.erasure.receipt)
    assert (told["client"], told["samples"], told["sequences"], told["exact"]) == ("ann", 45, [[1, 9]], True)
    assert told["withdrawn_versions"]
    assert is_signed(report.erasure.receipt.encode(), report.erasure.signature, report.erasure.public_key)
    assert told["state_before"] == before
    assert told["state_after"] == scene.digest(kind) == scene.digest(f"{kind}-never")
    assert scene.predictions(kind) == scene.predictions(f"{kind}-never")
    again = scene.erase(kind, "ann", None)  # whoever lost the answer asks again
    assert (again.samples, again.erasure.receipt) == (0, report.erasure.receipt)
    # It may learn again, under a new key, and be taken out again.
    scene.learn(kind, "ann", batches(4, 3, kind), receipts=False)
    assert scene.erase(kind, "ann", None).samples == 15
    assert scene.digest(kind) == scene.digest(f"{kind}-never")


def test_a_client_that_is_learning_is_taken_out_with_what_is_not_durable_yet(scene: Scene) -> None:
    for name in ("busy-own", "busy-own-never"):
        scene.declare(name, "own")
    with scene.server.client(client_id="ann") as ann:
        heard: list[int] = []

        def listen(event: object) -> None:
            if not heard and getattr(event, "sequence", 0) == 20:
                heard.append(scene.erase("busy-own", "ann", None).samples)

        ann.learn("busy-own", batches(2, 40), on_event=listen, window=4)
        assert heard[0] % 5 == 0
        assert heard[0] >= 100
        left = 200 - heard[0]
        ann.learn("busy-own-never", batches(2, 40)[-left // 5 :])
    assert scene.digest("busy-own") == scene.digest("busy-own-never")
    assert scene.erase("busy-own", "ann", None).samples == left


def test_receipts_are_not_asked_for_and_not_taken(scene: Scene) -> None:
    scene.declare("both", "own")
    path = scene.learn("both", "ann", batches(2, 2))
    with pytest.raises(FailedPrecondition, match="takes no receipts"):
        scene.erase("both", "ann", path)
    assert scene.erase("both", "ann", None).samples == 10


def test_a_class_that_is_taken_out_is_out_of_everybodys_own_sums(scene: Scene) -> None:
    names = ("own-classes", "own-classes-never")
    for name in names:
        scene.declare(name, "own-split")
    made = batches(2, 8)
    for client in ("ann", "bob"):
        scene.learn(names[0], client, made if client == "ann" else batches(3, 5), receipts=False)
    with scene.server.client() as client:
        gone = client.erase(names[0], label="c2").samples
        learned = {each.client: each.samples for each in client.models.clients(names[0])}
    assert sum(learned.values()) == 65 - gone
    assert scene.erase(names[0], "ann", None).samples == learned["ann"] < 40
    for batch in batches(3, 5):
        rows = [row for row, label in enumerate(batch.labels) if label != "c2"]
        kept_of = Batch(Tensors(batch.samples.values_N[rows]), [batch.labels[row] for row in rows])
        scene.learn(names[1], "bob", [kept_of], receipts=False)
    assert scene.digest(names[0]) == scene.digest(names[1])


def test_quarantine_with_remove_takes_a_client_out_in_one_command(scene: Scene, tmp_path: Path) -> None:
    for name in ("bad", "bad-never"):
        scene.declare(name, "own")
        scene.learn(name, "bob", batches(1, 4), receipts=False)
    scene.learn("bad", "eve", batches(9, 4), receipts=False)
    done: subprocess.CompletedProcess[str] = run_cli(
        scene, "quarantine", "bad", "eve", "--remove", "--yes", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "20 of 20 samples learned of client eve" in done.stdout
    assert scene.digest("bad") == scene.digest("bad-never")


def test_rows_and_blobs_come_and_go_with_what_is_declared_and_a_check_finds_them_whole(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with RealServer(folder) as server:
        scene = Scene(server, tmp_path)
        read = {"modality": "tensor", "shape": [WIDE], "range": [-4.0, 4.0]}
        text = json.dumps(
            {
                "metadata": {"name": "wide"},
                "spec": {"backbone": {"source": "identity"}, "input": read, "privacy": {"client_sums": True}},
            }
        )
        server.declare(text)
        for turn in range(2):
            for number, client in enumerate(("ann", "bob")):
                scene.learn("wide", client, wide(10 * turn + number, 2), receipts=False)
        scene.erase("wide", "ann", None)
        for name in ("changed", "replaced"):
            scene.declare(name, "own")
            scene.learn(name, "ann", batches(2, 4), receipts=False)
        with server.client() as client:
            plain = text.replace('"name": "wide"', '"name": "changed"').replace(f"[{WIDE}]", f"[{DIM}]")
            off = client.models.apply(plain.replace(', "privacy": {"client_sums": true}', ""))
            assert [change.note for change in off.plan.changes] == ["they are deleted at once, with their keys"]
            with pytest.raises(FailedPrecondition, match="allow_replace"):
                client.models.apply(plain)
            with pytest.raises(FailedPrecondition, match="allow_loosen_retention"):
                client.models.apply(plain, allow_replace=True)
            with pytest.raises(FailedPrecondition, match="receipt"):
                scene.erase("changed", "ann", None)
            other = plain.replace("changed", "replaced").replace("-4.0, 4.0", "-5.0, 5.0")
            client.models.apply(other, allow_replace=True)
        server.restart()
        scene.learn("changed", "ann", batches(3, 1), receipts=False)
        scene.learn("replaced", "bob", batches(3, 1), receipts=False)
        server.terminate()
    there = [("replaced", "bob"), ("wide", "bob")]
    assert kept(folder) == kept(folder, client_key.name) == there
    sizes = [path.stat().st_size for path in (folder / "blobs").rglob("*") if path.is_file()]
    assert len([size for size in sizes if size > 4 * WIDE**2 // 2]) == 1  # bob's, and no older ones
    report = check(folder)
    assert report.findings == []


def test_a_restored_server_takes_a_client_out_of_what_was_backed_up(tmp_path: Path) -> None:
    with RealServer(tmp_path / "data") as server:
        scene = Scene(server, tmp_path)
        for name in ("whole", "never"):
            scene.declare(name, "own")
            scene.learn(name, "bob", batches(1, 8), receipts=False)
        scene.learn("whole", "ann", batches(2, 9), receipts=False)
        ask_for_backup(server, tmp_path / "backup")
        scene.learn("whole", "ann", batches(3, 9), receipts=False)  # after the backup: gone with the disk
        never = scene.digest("never")
    restore(tmp_path / "backup", tmp_path / "restored")
    with RealServer(tmp_path / "restored") as server:
        again = Scene(server, tmp_path)
        with server.client() as client:
            assert client.models.get("whole").status.bytes_at_rest["clients"] > 2 * DIM**2
        report = again.erase("whole", "ann", None)
        assert (report.how, report.exact, report.samples) == ("own sums subtracted", True, 45)
        assert again.digest("whole") == never
        server.terminate()
    assert kept(tmp_path / "restored") == [("never", "bob"), ("whole", "bob")]


def test_a_model_that_keeps_its_clients_own_sums_cannot_be_moved_to_another_backbone(scene: Scene) -> None:
    scene.declare("moving", "own")
    scene.learn("moving", "ann", batches(2, 4), receipts=False)
    spec = {"backbone": {"source": "identity"}, "input": {"modality": "tensor", "shape": [DIM], "range": [-2.0, 2.0]}}
    other = json.dumps({"metadata": {"name": "moving"}, "spec": {**spec, **KINDS["own"]}})
    with scene.server.client() as client, pytest.raises(InvalidArgument, match="are estimates") as raised:
        client.models.upgrade_backbone("moving", other, [batches(1, 1)[0].samples])
    assert raised.value.field.endswith("spec.privacy.client_sums")


def test_who_moves_the_head_is_worked_out_exactly_where_own_sums_are_kept(scene: Scene, tmp_path: Path) -> None:
    scene.declare("moved", "own")
    for seed, client in enumerate(("ann", "bob", "eve")):
        made = batches(seed, 30)
        wrong = [Batch(batch.samples, [f"c{(int(label[1]) + 2) % 4}" for label in batch.labels]) for batch in made]
        scene.learn("moved", client, wrong if client == "eve" else made, receipts=False)
    with scene.server.client() as client:
        plain = {each.client: each for each in client.models.clients("moved")}
        assert not any(each.HasField("head_change") for each in plain.values())
        found = {each.client: each for each in client.models.clients("moved", head_change=True)}
        assert sum(each.mistake_share for each in found.values()) == pytest.approx(1.0)
        assert found["eve"].mistake_share > found["bob"].mistake_share > 0
        changes = {name: each.head_change for name, each in found.items()}
        assert changes["eve"] > 1.2 * max(changes["ann"], changes["bob"]) > 0
        scene.erase("moved", "eve", None)
        gone = {each.client: each.head_change for each in client.models.clients("moved", head_change=True)}
        assert gone["eve"] == 0.0  # nothing of it is there any more
        scene.declare("not-kept", "sums")
        scene.learn("not-kept", "ann", batches(1, 4), receipts=False)
        with pytest.raises(FailedPrecondition, match=r"privacy\.client_sums") as raised:
            list(client.models.clients("not-kept", head_change=True))
        assert raised.value.reason == "NO_CLIENT_SUMS"
    table = run_cli(scene, "clients", "moved", "--head-change", cwd=tmp_path)
    assert table.returncode == 0, table.stderr
    assert "MOVES HEAD" in table.stdout
    assert "MISTAKES" in table.stdout
