"""Labels that come days after their predictions, on a real server whose clock the test moves."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests import tiny
from tests.ports import free_port
from tests.real_server import RealServer
from typer.testing import CliRunner

from everlearn_client import (
    AsyncClient,
    Batch,
    Client,
    EverlearnClientError,
    FailedPrecondition,
    InvalidArgument,
    LearnEvent,
    Predicted,
    Rejected,
)
from everlearn_client.cli.app import app
from everlearn_client.receipts import ReceiptFile

DAY_S = 86_400
LATE = {"ttl_s": 7 * DAY_S, "capacity": 100}


class Scene:
    """A server with one model that has met two classes, and the hand of its clock."""

    def __init__(self, folder: Path) -> None:
        self.hand, self.metrics = folder / "clock", f"127.0.0.1:{free_port()}"
        self.hand.write_text("0")
        self.backbone = tiny.write_backbone(folder)
        self.server = RealServer(
            folder / "data",
            program=[str(Path(__file__).with_name("late_server.py"))],
            arguments=["--metrics-listen", self.metrics],
            environment={"CLOCK": str(self.hand)},
        )

    def forward(self, seconds: float) -> None:
        moved = self.hand.with_suffix(".new")
        moved.write_text(str(float(self.hand.read_text()) + seconds))
        moved.replace(self.hand)

    def declare(self, client: Client, name: str, **spec: object) -> None:
        client.models.apply(tiny.declaration(self.backbone, name, **{"late_labels": LATE, **spec}))
        client.learn(name, [Batch(tiny.images(8, kind, seed=kind), [f"c{kind}"] * 8) for kind in (0, 1)])


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("late"))
    with made.server:
        yield made


@pytest.fixture(scope="module")
def client(scene: Scene) -> Iterator[Client]:
    with scene.server.client(client_id="tester") as connected:
        yield connected


def test_a_label_after_a_day_is_learned_as_if_its_picture_had_come_with_it(scene: Scene, client: Client) -> None:
    scene.declare(client, "late")
    scene.declare(client, "prompt")
    pictures = tiny.images(4, 2, seed=7)
    ids = client.predict("late", pictures).sample_ids
    assert len(set(ids)) == 4
    scene.forward(DAY_S)
    report = client.label("late", [(each, "c2") for each in ids])
    assert (report.learned, report.refused) == (4, ())
    client.learn("prompt", [Batch(pictures, ["c2"] * 4)])
    late, prompt = client.models.get("late").status, client.models.get("prompt").status
    assert late.memory_digest == prompt.memory_digest
    assert late.sample_count == 20
    assert client.predict("late", tiny.images(1, 2, seed=9)).top[0][0].label == "c2"
    told = late.late_labels
    assert (told.given, told.joined, told.waiting, told.correct, told.coverage) == (4, 4, 0, 0, 1.0)
    assert DAY_S <= told.delay_median_s <= told.delay_p90_s < DAY_S + 600
    again = client.label("late", [(ids[0], "c2")])
    assert (again.learned, again.refused[0].reason) == (0, "SAMPLE_LEARNED")
    assert "once" in again.refused[0].message


def test_of_many_labels_those_that_are_too_late_are_refused_by_themselves(scene: Scene, client: Client) -> None:
    scene.declare(client, "partly")
    before = client.models.get("partly").status.sample_count
    old = client.predict("partly", tiny.images(2, 0, seed=1)).sample_ids
    scene.forward(6 * DAY_S)
    young = client.predict("partly", tiny.images(2, 0, seed=2)).sample_ids
    scene.forward(2 * DAY_S)
    report = client.label("partly", [(each, "c0") for each in (old[0], *young, old[1], "f" * 32)])
    assert report.learned == 2
    assert [(r.sample_id, r.reason) for r in report.refused] == [
        (old[0], "SAMPLE_EXPIRED"),
        (old[1], "SAMPLE_EXPIRED"),
        ("f" * 32, "SAMPLE_UNKNOWN"),
    ]
    status = client.models.get("partly").status
    assert status.sample_count == before + 2
    assert (status.late_labels.expired, status.late_labels.correct) == (2, 2)


def test_a_batch_with_one_that_does_not_wait_is_refused_whole_in_its_turn_and_names_it(
    scene: Scene, client: Client
) -> None:
    scene.declare(client, "whole")
    ids = list(client.predict("whole", tiny.images(3, 1)).sample_ids)
    heard: list[LearnEvent] = []
    report = client.learn(
        "whole",
        [
            Batch(Predicted([*ids, "0" * 32]), ["c1"] * 4),
            Batch(Predicted([ids[0], ids[1], ids[0]]), ["c1"] * 3),
            Batch(Predicted(ids), ["c1"] * 3),
        ],
        on_event=heard.append,
    )
    assert (report.durable_batches, report.rejected_batches) == (1, 2)
    rejected = [(event.field, event.reason) for event in heard if isinstance(event, Rejected)]
    assert rejected == [("batch.samples.ids[3]", "SAMPLE_UNKNOWN"), ("batch.samples.ids[2]", "INVALID_INPUT")]


def test_beyond_the_capacity_the_oldest_leave(scene: Scene, client: Client) -> None:
    scene.declare(client, "small", late_labels={"ttl_s": DAY_S, "capacity": 3})
    ids = [client.predict("small", tiny.images(1, 0, seed=turn)).sample_ids[0] for turn in range(5)]
    report = client.label("small", [(each, "c0") for each in ids])
    assert report.learned == 3
    assert [each.sample_id for each in report.refused] == ids[:2]
    assert {each.reason for each in report.refused} == {"SAMPLE_GONE"}
    assert client.models.get("small").status.late_labels.left_early == 2


def test_ids_come_only_where_they_are_declared_and_are_no_samples_to_predict(scene: Scene, client: Client) -> None:
    scene.declare(client, "without", late_labels=None)
    assert client.predict("without", tiny.images(1, 0)).sample_ids == ()
    report = client.label("without", [("0" * 32, "c0")])
    assert report.refused[0].reason == "NO_LATE_LABELS"
    assert not client.models.get("without").status.HasField("late_labels")
    with pytest.raises(InvalidArgument, match="for learning alone"):
        client.predict("without", Predicted(["0" * 32]))


def test_to_let_more_wait_needs_consent_and_less_holds_at_once(scene: Scene, client: Client) -> None:
    scene.declare(client, "agreed", late_labels=None)
    declared = tiny.declaration(scene.backbone, "agreed", late_labels=LATE)
    with pytest.raises(FailedPrecondition, match="late_labels"):
        client.models.apply(declared)
    plan = client.models.apply(declared, allow_loosen_retention=True).plan
    assert "personal data" in plan.changes[0].note
    assert any("wait in RAM" in line for line in plan.warnings)
    assert plan.cost["late_labels_bytes"] == 100 * (2 * 16 + 400)
    assert any("wait for their labels" in line for line in client.models.get("agreed").status.privacy)
    ids = client.predict("agreed", tiny.images(3, 0)).sample_ids
    client.models.apply(tiny.declaration(scene.backbone, "agreed", late_labels={**LATE, "capacity": 1}))
    assert client.models.get("agreed").status.late_labels.waiting == 1
    client.models.apply(tiny.declaration(scene.backbone, "agreed"))
    assert client.label("agreed", [(ids[2], "c0")]).refused[0].reason == "NO_LATE_LABELS"


def test_late_samples_have_receipts_and_an_erasure_takes_them_out(scene: Scene, client: Client, tmp_path: Path) -> None:
    scene.declare(client, "erased")
    before = client.models.get("erased").status.memory_digest
    with scene.server.client(client_id="ann") as ann:
        ids = ann.predict("erased", tiny.images(4, 0, seed=3)).sample_ids
        with ReceiptFile(tmp_path / "ann.receipts") as kept:
            ann.learn("erased", [Batch(Predicted(ids[:2]), ["c0"] * 2)], receipts=kept)
        assert client.models.get("erased").status.memory_digest != before
        ann.erase("erased", client_id="ann", receipts=tmp_path / "ann.receipts")
    assert client.models.get("erased").status.memory_digest == before
    assert client.models.get("erased").status.late_labels.waiting == 0
    assert client.label("erased", [(ids[3], "c0")]).refused[0].reason == "SAMPLE_GONE"


def test_the_asynchronous_client_the_command_and_the_metrics_tell_the_same(
    scene: Scene, client: Client, tmp_path: Path
) -> None:
    scene.declare(client, "told")
    picture = tmp_path / "picture.png"
    from PIL import Image

    Image.fromarray(tiny.images(1, 0)[0]).save(picture)
    run, server = CliRunner(), ["--server", scene.server.address]
    answers = [run.invoke(app, ["predict", "told", str(picture), *server, "-o", "json"]) for _ in range(3)]
    ids = [json.loads(answer.stdout)[0]["sample_id"] for answer in answers]
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(f"{ids[0]},c0\n{'0' * 32},c0\n")
    done = run.invoke(app, ["label", "told", str(pairs), *server])
    assert done.exit_code == 9, done.output
    assert "SAMPLE_UNKNOWN" in done.output
    lines = tmp_path / "pairs.jsonl"
    lines.write_text(json.dumps({"sample_id": ids[1], "label": "c0"}))
    assert run.invoke(app, ["label", "told", str(lines), *server]).exit_code == 0

    async def label() -> int:
        async with AsyncClient(scene.server.address) as connected:
            return (await connected.label("told", [(ids[2], "c1")])).learned

    assert asyncio.run(label()) == 1
    described = run.invoke(app, ["describe", "told", *server]).stdout
    assert "late labels: 3 of 3 predictions (100.0%)" in described
    assert "66.7% of them predicted right" in described
    with urllib.request.urlopen(f"http://{scene.metrics}/metrics") as answer:
        text = answer.read().decode()
    assert 'everlearn_model_late_labels_total{model="told"} 3.0' in text
    assert 'everlearn_model_late_predictions_total{model="told"} 3.0' in text
    assert ids[0] not in text + scene.server.log


def test_after_a_kill_nobody_knows_what_waited_and_what_was_learned_stays(tmp_path: Path) -> None:
    made = Scene(tmp_path)
    with made.server as server, server.client() as client:
        made.declare(client, "killed")
        ids = client.predict("killed", tiny.images(2, 0)).sample_ids
        assert client.label("killed", [(ids[0], "c0")]).learned == 1
        samples = client.models.get("killed").status.sample_count
        server.kill()
        server.start()
        report = client.label("killed", [(each, "c0") for each in ids])
        assert report.learned == 0
        assert [each.reason for each in report.refused] == ["SAMPLE_UNKNOWN"] * 2
        assert "since this server started" in report.refused[1].message
        assert client.models.get("killed").status.sample_count == samples


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"privacy": {"tier": "aggregate"}}, "nothing is told of one"),
        ({"privacy": {"tier": "dp"}, "labels": ["a"]}, "nothing is told of one"),
    ],
)
def test_tiers_that_tell_nothing_of_one_sample_take_no_late_labels(
    scene: Scene, client: Client, spec: dict[str, object], says: str
) -> None:
    with pytest.raises(EverlearnClientError, match=says):
        client.models.apply(tiny.declaration(scene.backbone, "refused", late_labels=LATE, **spec))


def test_values_and_sets_of_labels_may_come_late_too(scene: Scene, client: Client) -> None:
    for name, spec, label in (
        ("sets", {"task": "multilabel"}, ["warm", "bright"]),
        ("values", {"task": "regression", "outputs": [{"name": "t", "min": 0, "max": 9}]}, [3.5]),
    ):
        client.models.apply(tiny.declaration(scene.backbone, name, late_labels=LATE, **spec))
        client.learn(name, [Batch(tiny.images(4, 0), [label] * 4)])
        ids = client.predict(name, tiny.images(5, 0, seed=5)).sample_ids
        assert client.label(name, [(each, label) for each in ids]).learned == 5
        assert client.models.get(name).status.sample_count == 9
        assert np.isclose(client.models.get(name).status.late_labels.coverage, 1)
