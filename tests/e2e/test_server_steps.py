"""Steps of a stream through the real server: what is forgotten is told, and naming a step changes nothing else."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import numpy as np
import pytest
from tests import tiny
from tests.e2e.server_calls import Stubs, samples_of
from tests.e2e.test_server_tasks import DIGITS, PATIENTS
from tests.real_server import RealServer
from typer.testing import CliRunner

from everlearn_client import AsyncClient, Batch, Client, InvalidArgument, Tensors
from everlearn_client.cli.app import app
from everlearn_protos.v1 import learn_pb2, models_pb2

KITCHEN, GARAGE = (0, 1), (2, 3)
"""Labels of two rooms."""


def batches(labels: tuple[int, ...], count: int, *, step: str = "", first: int = 0) -> list[Batch]:
    """Of all labels alike, 8 samples each batch."""
    made = []
    for number in range(first, first + count):
        images = np.concatenate([tiny.images(4, label, seed=number) for label in labels])
        made.append(Batch(images, [f"c{label}" for label in labels for _ in range(4)], step))
    return made


def steps(client: Client, model: str) -> models_pb2.StepsReport:
    return client.models.get(model).status.report.steps


def live_in(client: Client, model: str) -> None:
    """The kitchen, the garage, and the kitchen again. After each call a head knows all of it: what is tested by which
    version is no matter of luck."""
    for first in (0, 30):  # the second part fills what counts as the end
        client.learn(model, batches(KITCHEN, 30, first=first), step="kitchen")
    client.learn(model, batches(GARAGE, 30), step="garage")
    again = batches(KITCHEN, 8, first=100)
    images, labels = (
        np.concatenate([each.samples for each in again]),
        [label for each in again for label in each.labels],
    )
    client.learn(
        model, [Batch(images, labels)], step="kitchen"
    )  # one batch: tested by one version, whatever is in time


@pytest.fixture(scope="module", autouse=True)
def declared(server: RealServer, backbone: Path) -> None:
    """Models of these tests."""
    for name in ("keeps", "named", "unnamed", "full", "shell"):
        server.declare(tiny.declaration(backbone, name=name))
    forgetful = {"head": {"kind": "linear"}, "memory": {"kind": "none"}}
    server.declare(tiny.declaration(backbone, name="forgets", **forgetful))


@pytest.fixture(scope="module")
def lived_in(client: Client, declared: None) -> None:
    """By both, whichever test comes first: another process may have taken the one before."""
    for model in ("forgets", "keeps"):
        live_in(client, model)


@pytest.mark.usefixtures("lived_in")
def test_gradient_steps_without_a_memory_forget_the_kitchen_and_the_report_says_how_much(client: Client) -> None:
    found = steps(client, "forgets")
    kitchen, garage = found.steps
    assert (kitchen.name, kitchen.samples, kitchen.after) == ("kitchen", 68 * 8, "garage")
    assert (garage.name, garage.samples, garage.HasField("forgetting")) == ("garage", 30 * 8, False)
    assert (found.count, found.tested_again) == (2, 1)
    assert kitchen.accuracy > 0.9
    assert found.forgetting > 0.1
    assert found.backward_transfer == pytest.approx(-found.forgetting)
    assert found.forgetting == pytest.approx(kitchen.accuracy - kitchen.accuracy_again)
    assert [(cell.after, cell.on) for cell in found.cells] == [(0, 0), (1, 0), (1, 1)]
    assert found.cells[1].tested == 64


@pytest.mark.usefixtures("lived_in")
def test_sums_forget_nothing(client: Client) -> None:
    found = steps(client, "keeps")
    assert abs(found.forgetting) < 0.05
    assert found.average_accuracy > 0.9


@pytest.mark.usefixtures("lived_in")
def test_versions_and_the_model_card_say_what_was_forgotten(client: Client, tmp_path: Path) -> None:
    now, end_s = steps(client, "forgets"), time.monotonic() + 120
    newest = next(iter(client.models.versions("forgets")))
    while newest.report.steps.forgetting != now.forgetting and time.monotonic() < end_s:
        time.sleep(0.2)  # a version is stored a moment after it serves
        newest = next(iter(client.models.versions("forgets")))
    assert (newest.report.steps.tested_again, newest.report.steps.forgetting) == (1, now.forgetting)
    assert not newest.report.steps.steps
    assert not newest.report.steps.cells
    client.download(client.export("keeps"), tmp_path)
    assert "1 of 1 earlier step of the stream" in (tmp_path / "MODEL_CARD.md").read_text()


@pytest.mark.usefixtures("lived_in")
def test_describe_shows_it_to_people_and_json_all_of_it(server: RealServer, client: Client) -> None:
    runner = CliRunner()
    shown = runner.invoke(app, ["describe", "forgets", "--server", server.address])
    assert shown.exit_code == 0, shown.output
    assert "points, mean over the 1 of 1 earlier steps that came again" in shown.stdout
    assert "FORGOTTEN" in shown.stdout
    data = json.loads(runner.invoke(app, ["describe", "forgets", "--server", server.address, "-o", "json"]).stdout)
    told = data["status"]["report"]["steps"]
    assert told["forgetting"] == steps(client, "forgets").forgetting
    assert [row["name"] for row in told["steps"]] == ["kitchen", "garage"]
    plain = runner.invoke(app, ["describe", "unnamed", "--server", server.address])
    assert "steps (" not in plain.stdout


def test_a_step_changes_nothing_of_what_is_learned(client: Client) -> None:
    for name, step in (("named", "kitchen"), ("unnamed", "")):
        client.learn(name, batches(KITCHEN, 4), step=step)
    named, unnamed = (client.models.get(name).status for name in ("named", "unnamed"))
    assert named.memory_digest == unnamed.memory_digest
    assert list(named.samples_per_class) == list(unnamed.samples_per_class)
    assert named.report.HasField("steps")
    assert not unnamed.report.HasField("steps")


def test_a_batchs_own_step_wins_in_both_clients_and_large_batches_keep_it(server: RealServer, client: Client) -> None:
    before = steps(client, "named").steps[0].samples
    large = Batch(np.concatenate([tiny.images(1, 0, side=200, seed=seed) for seed in range(24)]), ["c0"] * 24, "attic")

    async def learn() -> int:
        async with AsyncClient(server.address) as other:
            report = await other.learn("named", [*batches(KITCHEN, 1), large], step="kitchen", client_id="other")
        return report.sent_batches

    assert asyncio.run(learn()) > 2, "the large one was meant to be cut"
    assert {row.name: row.samples for row in steps(client, "named").steps} == {"kitchen": before + 8, "attic": 24}


def test_the_command_line_names_steps(server: RealServer, client: Client, tmp_path: Path) -> None:
    images = np.concatenate([tiny.images(6, label) for label in KITCHEN])
    np.savez(tmp_path / "kitchen.npz", images=images, labels=np.array(["c0"] * 6 + ["c1"] * 6))
    line = ["learn", "shell", str(tmp_path / "kitchen.npz"), "--server", server.address]
    assert CliRunner().invoke(app, [*line, "--step", "kitchen"]).exit_code == 0
    assert [(row.name, row.samples) for row in steps(client, "shell").steps] == [("kitchen", 12)]
    refused = CliRunner().invoke(app, [*line, "--step", "The Kitchen"])
    assert refused.exit_code != 0
    assert "is not a step's name" in refused.stderr


def message(sequence: int, step: str) -> learn_pb2.LearnRequest:
    content = learn_pb2.Batch(sequence=sequence, labels=["c0"], samples=samples_of(tiny.images(1, 0)), step=step)
    return learn_pb2.LearnRequest(batch=content)


def test_a_wrong_step_and_one_too_many_are_rejected_by_name_and_the_stream_goes_on(
    client: Client, stubs: Stubs
) -> None:
    with stubs.learn("full", "namer") as stream:
        wrong = ["The Kitchen", "a b", "x" * 64, "é", "-a", "a\n"]
        for sequence, step in enumerate(wrong, start=1):
            stream.send(message(sequence, step))
            rejected = stream.hear("rejected")
            assert (rejected.code, rejected.field) == ("INVALID_ARGUMENT", "batch.step"), step
        for number in range(64):
            stream.send(message(len(wrong) + 1 + number, f"step-{number}"))
            assert stream.hear("received").samples == 1
        last = len(wrong) + 65
        stream.send(message(last, "step-64"))
        rejected = stream.hear("rejected")
        assert (rejected.code, rejected.field) == ("INVALID_ARGUMENT", "batch.step")
        assert "64 are kept" in rejected.message
        stream.send(message(last + 1, "step-0"))
        stream.send(message(last + 1, "step-1"))  # sent again: whatever it says, it has counted
        assert [stream.hear("received").duplicate for _ in range(2)] == [False, True]
        assert stream.finish()[-1].durable.sequence == last + 1
    found = client.models.get("full").status
    assert found.sample_count == 65
    assert [row.samples for row in found.report.steps.steps] == [2] + [1] * 63


def test_what_values_forget_is_not_counted_and_a_step_of_them_is_refused(server: RealServer, client: Client) -> None:
    server.declare(PATIENTS.declaration("values"))
    report = client.learn("values", [(Tensors(PATIENTS.values[:8]), PATIENTS.truth[:8])], step="winter")
    assert [(each.code, each.field) for each in report.rejected] == [("INVALID_ARGUMENT", "batch.step")]
    assert client.models.get("values").status.sample_count == 0


def test_sets_of_labels_have_steps_too(server: RealServer, client: Client) -> None:
    server.declare(DIGITS.declaration("sets"))
    for step, first in (("odd", 0), ("even", 40), ("odd", 80)):
        rows = slice(first, first + 40)
        assert not client.learn("sets", [Batch(Tensors(DIGITS.values[rows]), DIGITS.sets(rows), step)]).rejected
    found = steps(client, "sets")
    assert [(row.name, row.samples) for row in found.steps] == [("odd", 80), ("even", 40)]
    assert found.tested_again == 1


def test_clients_refuse_a_wrong_name_before_anything_is_sent(client: Client) -> None:
    with pytest.raises(InvalidArgument, match="is not a step's name") as caught:
        client.learn("unnamed", batches(KITCHEN, 1), step="Küche")
    assert caught.value.field == "step"
    with pytest.raises(InvalidArgument, match="is not a step's name"):
        client.learn("unnamed", batches(KITCHEN, 1, step="x" * 64))
