"""Clients and classes are taken out of real servers' models: bit for bit, once, signed, through kills at any point."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.erasure_scene import DIM, Scene, at_rest, batches
from tests.real_server import RealServer

from everlearn_client import Tensors
from everlearn_client._ed25519 import is_signed
from everlearn_client.errors import FailedPrecondition, InvalidArgument, NotFound
from everlearn_client.receipts import BatchReceipt, ReceiptFile, read_receipts
from everlearn_client.samples import Batch
from everlearn_protos.v1 import erasure_pb2


@pytest.fixture(scope="module")
def scene(server: RealServer, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(server, tmp_path_factory.mktemp("receipts"))


@pytest.mark.parametrize("kind", ["sums", "split", "tags"])
def test_an_erased_client_leaves_the_model_of_those_who_never_met_it(scene: Scene, kind: str) -> None:
    name = f"exact-{kind}"
    for each in (name, f"{name}-never"):
        scene.declare(each, kind)
        scene.learn(each, "bob", batches(1, 12, kind), receipts=False)
    path = scene.learn(name, "ann", batches(2, 9, kind))
    before = scene.digest(name)
    report = scene.erase(name, "ann", path)
    assert (report.how, report.exact, report.samples, report.receipts) == ("subtracted", True, 45, 9)
    told = json.loads(report.erasure.receipt)
    assert told["state_before"] == before
    assert told["state_after"] == scene.digest(name) == scene.digest(f"{name}-never")
    assert scene.predictions(name) == scene.predictions(f"{name}-never")


def test_the_receipt_is_signed_and_says_what_went(scene: Scene) -> None:
    scene.declare("signed")
    scene.learn("signed", "bob", batches(1, 6), receipts=False)
    path = scene.learn("signed", "ann", batches(2, 6))
    with scene.server.client() as client:
        export = client.export("signed")
        there = list(client.models.versions("signed"))
        withdrawn = [version.number for version in there if version.sample_count > 30]
        report = scene.erase("signed", "ann", path)
        told = json.loads(report.erasure.receipt)
        assert set(told["withdrawn_versions"]) & {version.number for version in there} == set(withdrawn)
        assert told["withdrawn_exports"] == [int(export.name.rpartition("/")[2])]
        assert (told["client"], told["samples"], told["sequences"]) == ("ann", 30, [[1, 6]])
        assert told["clients_last_seen_with_them"] == []  # nobody has downloaded one
        info = client.info()
        assert report.erasure.public_key.hex() == info.public_key
        assert is_signed(report.erasure.receipt.encode(), report.erasure.signature, report.erasure.public_key)
        assert list(client.exports("signed")) == []
        now = client.models.get("signed").status.aliases
        assert report.stable == now["stable"] == now["latest"]
        for number in withdrawn:
            for attempt in (
                lambda number=number: client.predict("signed", batches(0, 1)[0].samples, version=number),
                lambda number=number: client.models.promote("signed", number),
                lambda number=number: client.models.rollback("signed", number),
                lambda number=number: client.export("signed", version=number),
            ):
                with pytest.raises(NotFound):
                    attempt()
        assert [each.receipt for each in client.erasures("signed")] == [report.erasure.receipt]


def test_receipts_that_are_presented_again_have_no_second_effect(scene: Scene) -> None:
    scene.declare("twice")
    scene.learn("twice", "bob", batches(1, 6), receipts=False)
    path = scene.learn("twice", "ann", batches(2, 6))
    first = scene.erase("twice", "ann", path)
    digest = scene.digest("twice")
    second = scene.erase("twice", "ann", path)
    assert (second.samples, second.erased_before, second.erasure.id) == (0, 6, first.erasure.id)
    assert second.erasure.signature == first.erasure.signature
    assert scene.digest("twice") == digest
    # It may learn again, under new sequences, and be taken out again by the same file.
    scene.learn("twice", "ann", batches(3, 4))
    third = scene.erase("twice", "ann", path)
    assert (third.samples, third.erased_before, third.how) == (20, 6, "subtracted")
    assert scene.digest("twice") == digest


def test_receipts_that_are_not_all_are_refused_unless_a_part_is_asked_for(scene: Scene) -> None:
    scene.declare("part")
    scene.learn("part", "bob", batches(1, 6), receipts=False)
    path = scene.learn("part", "ann", batches(2, 6))
    digest = scene.digest("part")
    some = scene.folder / "some"
    with ReceiptFile(some) as kept:
        kept.append([each for each in read_receipts(path) if each.sequence not in (2, 3)])
    plan = scene.erase("part", "ann", some, dry_run=True)
    assert [(each.first, each.last) for each in plan.missing] == [(2, 3)]
    assert "20 of 30 samples" in plan.incomplete_because
    with pytest.raises(FailedPrecondition, match="no receipt for 2 of 6 batches") as raised:
        scene.erase("part", "ann", some)
    assert raised.value.reason == "RECEIPTS_INCOMPLETE"
    assert scene.digest("part") == digest
    report = scene.erase("part", "ann", some, partial=True)
    assert (report.how, report.exact, report.samples) == ("subtracted in part", False, 20)
    # The rest, later, completes it.
    last = scene.erase("part", "ann", path)
    assert (last.how, last.samples, last.erased_before) == ("subtracted", 10, 4)
    scene.declare("part-never")
    scene.learn("part-never", "bob", batches(1, 6), receipts=False)
    assert scene.digest("part") == scene.digest("part-never")


def test_receipts_of_other_clients_models_or_changed_ones_do_not_count(scene: Scene) -> None:
    for name in ("mine", "other"):
        scene.declare(name)
    path = scene.learn("mine", "ann", batches(2, 3))
    foreign = scene.learn("other", "ann", batches(2, 3))
    friend = scene.learn("mine", "bob", batches(2, 3))
    forged = scene.folder / "forged"
    with ReceiptFile(forged) as kept:
        for source in (foreign, friend):
            kept.append([BatchReceipt("mine", "ann", r.sequence, r.samples, r.sealed) for r in read_receipts(source)])
        for receipt in list(read_receipts(path)):
            changed = bytes([*receipt.sealed[:-1], receipt.sealed[-1] ^ 1])
            kept.append([BatchReceipt("mine", "ann", receipt.sequence, receipt.samples, changed)])
            kept.append([BatchReceipt("mine", "ann", receipt.sequence % 3 + 1, receipt.samples, receipt.sealed)])
    plan = scene.erase("mine", "ann", forged, dry_run=True)
    assert (plan.receipts, plan.foreign) == (0, 12)
    assert "belongs to another model" in plan.why_foreign
    for partial in (False, True):
        with pytest.raises(FailedPrecondition, match="receipt"):
            scene.erase("mine", "ann", forged, partial=partial)


def test_a_batch_sent_again_differently_cannot_take_out_what_was_never_learned(scene: Scene) -> None:
    scene.declare("liar")
    scene.learn("liar", "bob", batches(1, 6), receipts=False)
    scene.learn("liar", "eve", batches(2, 4), receipts=False)
    digest = scene.digest("liar")
    path = scene.learn("liar", "eve", batches(3, 4), first_sequence=1)  # other data under the same sequences
    assert [receipt.again for receipt in read_receipts(path)] == [True] * 4
    with pytest.raises(FailedPrecondition, match="do not add up"):
        scene.erase("liar", "eve", path)
    with pytest.raises(FailedPrecondition, match="no receipt of client"):
        scene.erase("liar", "eve", path, partial=True)
    assert scene.digest("liar") == digest


def test_a_client_that_kept_no_receipts_gets_them_by_sending_the_same_again(scene: Scene) -> None:
    scene.declare("late")
    made = batches(2, 40)
    scene.learn("late", "ann", made, receipts=False, first_sequence=1)
    path = scene.learn("late", "ann", made, first_sequence=1)
    assert len(list(read_receipts(path))) == 40
    scene.learn("late", "ann", made, first_sequence=1)  # all are held: nothing is sent
    assert len(list(read_receipts(path))) == 40
    report = scene.erase("late", "ann", path)
    assert (report.exact, report.samples, report.unwitnessed) == (True, 200, 40)
    with scene.server.client() as client, pytest.raises(FailedPrecondition, match="learned nothing"):
        client.predict("late", made[0].samples)


def test_a_rejected_batch_is_not_missed(scene: Scene) -> None:
    scene.declare("picky")
    made = batches(2, 5)
    made[2] = Batch(Tensors(np.full((5, DIM), np.nan, np.float32)), made[2].labels)
    path = scene.learn("picky", "ann", made)
    assert [receipt.sequence for receipt in read_receipts(path)] == [1, 2, 4, 5]
    assert scene.erase("picky", "ann", path).exact


def test_a_class_is_taken_out_where_classes_are_kept_apart(scene: Scene) -> None:
    for name in ("classes", "classes-never"):
        scene.declare(name, "split")
    made = batches(2, 8)
    path = scene.learn("classes", "ann", made)
    for batch in made:
        rows = [row for row, label in enumerate(batch.labels) if label != "c2"]
        kept = Batch(Tensors(batch.samples.values_N[rows]), [batch.labels[row] for row in rows])
        scene.learn("classes-never", "ann", [kept], receipts=False)
    with scene.server.client() as client:
        plan = client.erase("classes", label="c2", dry_run=True)
        report = client.erase("classes", label="c2")
        assert plan.samples == report.samples > 0
        assert (report.how, report.exact) == ("class subtracted", True)
        assert json.loads(report.erasure.receipt)["class"] == "c2"
        with pytest.raises(NotFound, match="no class"):
            client.erase("classes", label="c9")
        scene.declare("together")
        scene.learn("together", "ann", made[:1], receipts=False)
        with pytest.raises(FailedPrecondition, match="per_class_statistics keeps them apart"):
            client.erase("together", label="c2")
    assert scene.digest("classes") == scene.digest("classes-never")
    # The client can still be taken out: its receipts hold samples of the class, which are gone already.
    scene.learn("classes", "bob", batches(5, 2), receipts=False)
    rest = scene.erase("classes", "ann", path)
    assert (rest.exact, rest.samples) == (True, 40 - report.samples)
    scene.declare("classes-bob", "split")
    scene.learn("classes-bob", "bob", batches(5, 2), receipts=False)
    assert scene.digest("classes") == scene.digest("classes-bob")


def test_rows_that_are_kept_are_dropped_and_it_is_said_that_this_is_not_exact(scene: Scene) -> None:
    scene.declare("rows", "rows")
    scene.learn("rows", "bob", batches(1, 6), receipts=False)
    with pytest.raises(FailedPrecondition, match="receipts would be of no use"):
        scene.learn("rows", "ann", batches(2, 6))
    scene.learn("rows", "ann", batches(2, 6), receipts=False)
    report = scene.erase("rows", "ann", None)
    assert (report.how, report.exact) == ("dropped", False)
    assert report.samples > 0
    assert "may still be owed" in report.statement
    scene.learn("rows", "ann", batches(3, 6), receipts=False)  # under a new key
    again = scene.erase("rows", "ann", None)
    assert again.samples > 0
    assert scene.predictions("rows")


def test_weights_learned_by_steps_learn_again_from_what_is_kept_of_others(scene: Scene) -> None:
    scene.declare("steps", "steps")
    scene.learn("steps", "bob", batches(1, 20), receipts=False)
    scene.learn("steps", "ann", batches(2, 20), receipts=False)
    with scene.server.client() as client:
        there = {version.number for version in client.models.versions("steps") if version.sample_count > 100}
    report = scene.erase("steps", "ann", None)
    assert (report.how, report.exact, report.samples) == ("rewound", False, 100)
    told = json.loads(report.erasure.receipt)
    assert there <= set(told["withdrawn_versions"])
    with scene.server.client() as client:
        status = client.models.get("steps").status
        assert status.sample_count == 100
        top = client.predict("steps", Tensors(np.concatenate([batch.samples.values_N for batch in batches(1, 20)]))).top
    wanted = [label for batch in batches(1, 20) for label in batch.labels]
    assert np.mean([each[0].label == label for each, label in zip(top, wanted, strict=True)]) > 0.35  # of 4 classes
    scene.learn("steps", "bob", batches(4, 2), receipts=False)


def test_steps_whose_memory_names_no_client_are_refused(scene: Scene) -> None:
    scene.declare("drawn", "drawn")
    scene.learn("drawn", "ann", batches(2, 2), receipts=False)
    with pytest.raises(FailedPrecondition, match="names no client"):
        scene.erase("drawn", "ann", None)


def test_what_cannot_be_taken_apart_is_refused_with_the_reason(scene: Scene) -> None:
    scene.declare("fading", "fading")
    scene.learn("fading", "ann", batches(2, 3), receipts=False)
    with pytest.raises(FailedPrecondition, match="decay"):
        scene.erase("fading", "ann", None)
    with pytest.raises(NotFound, match="never met"):
        scene.erase("fading", "nobody", None)
    with scene.server.client() as client, pytest.raises(InvalidArgument, match="one of the two"):
        client.erase("fading")
    with pytest.raises(NotFound):
        scene.erase("no-such-model", "ann", None)


def test_other_clients_go_on_learning_and_asking_through_an_erasure(scene: Scene) -> None:
    for name in ("busy", "busy-never"):
        scene.declare(name)
    path = scene.learn("busy", "ann", batches(2, 30))
    with scene.server.client(client_id="bob") as client:
        done: list[erasure_pb2.EraseReport] = []

        def listen(event: object) -> None:
            if not done and getattr(event, "sequence", 0) == 20:
                done.append(scene.erase("busy", "ann", path))
                assert scene.predictions("busy")

        client.learn("busy", batches(1, 60), on_event=listen, window=4)
        client.learn("busy-never", batches(1, 60))
    assert done[0].exact
    assert scene.digest("busy") == scene.digest("busy-never")


def test_a_class_that_only_an_erased_client_had_is_out_of_the_memory(tmp_path: Path) -> None:
    with RealServer(tmp_path / "data") as server:
        scene = Scene(server, tmp_path)
        scene.declare("m", "split")
        scene.learn("m", "bob", batches(1, 6), receipts=False)
        made = [Batch(batch.samples, ["only-anns-label"] * 5) for batch in batches(2, 3)]
        path = scene.learn("m", "ann", made)
        scene.erase("m", "ann", path)
        with server.client() as client:
            assert "only-anns-label" in client.models.get("m").status.labels  # labels stay
            assert "ann" not in {each.client for each in client.models.get("m").status.report.clients}
        server.kill()
        data = at_rest(tmp_path / "data", "m")
        assert b"class only-anns-label" not in data["memory"]
