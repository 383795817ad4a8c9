"""Several labels, and values, through the real server: from the SDK and the command line to OIP, restart and export."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import tritonclient.grpc as triton
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import f1_score, r2_score
from sklearn.multiclass import OneVsRestClassifier
from tests.real_server import RealServer
from typer.testing import CliRunner

from everlearn_client import Client, FailedPrecondition, InvalidArgument, LearnReport, Tensors
from everlearn_client.cli.app import app
from everlearn_protos.v1 import models_pb2

ASKED = ("even", "large", "prime", "round", "one")
"""What is asked of each real digit; several may be true of it, or none."""
OUTPUTS = [{"name": "progression", "min": 0, "max": 400}, {"name": "pressure", "min": 50, "max": 150}]


class Digits:
    """scikit-learn's handwritten digits as tensors, and what is true of each."""

    def __init__(self) -> None:
        found = load_digits()
        order = np.random.default_rng(0).permutation(len(found.target))
        digit = found.target[order]
        self.values = found.images[order].astype(np.float32)
        truths = [digit % 2 == 0, digit >= 5, np.isin(digit, [2, 3, 5, 7]), np.isin(digit, [0, 6, 8, 9]), digit == 1]
        self.has = np.stack(truths, axis=1)

    def sets(self, rows: slice) -> list[list[str]]:
        return [[ASKED[column] for column in np.flatnonzero(row)] for row in self.has[rows]]

    @staticmethod
    def declaration(name: str, **spec: Any) -> str:
        read = {"modality": "tensor", "shape": [8, 8], "range": [0, 16]}
        body = {"backbone": {"source": "identity"}, "input": read, "task": "multilabel", **spec}
        return json.dumps({"metadata": {"name": name}, "spec": body})


class Patients:
    """scikit-learn's diabetes data: nine measurements, and two values to foresee."""

    def __init__(self) -> None:
        found = load_diabetes(scaled=False)
        order = np.random.default_rng(0).permutation(len(found.target))
        pressure = found.feature_names.index("bp")
        self.columns = [name for name in found.feature_names if name != "bp"]
        self.values = np.delete(found.data, pressure, axis=1)[order].astype(np.float32)
        self.truth = np.stack([found.target, found.data[:, pressure]], axis=1)[order].astype(np.float32)

    def declaration(self, name: str, **spec: Any) -> str:
        ends = np.stack([self.values.min(axis=0), self.values.max(axis=0)], axis=1)
        read = {"modality": "tensor", "shape": [9], "range": [[float(low), float(high)] for low, high in ends]}
        body = {"backbone": {"source": "identity"}, "input": read, "task": "regression", "outputs": OUTPUTS, **spec}
        return json.dumps({"metadata": {"name": name}, "spec": body})


DIGITS, PATIENTS = Digits(), Patients()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    with RealServer(tmp_path_factory.mktemp("tasks") / "data") as running:
        yield running


@pytest.fixture
def client(server: RealServer) -> Iterator[Client]:
    with server.client() as connected:
        yield connected


def learn_digits(client: Client, name: str, rows: slice, client_id: str = "a") -> LearnReport:
    starts = range(rows.start, rows.stop, 64)
    parts = [slice(start, min(start + 64, rows.stop)) for start in starts]
    return client.learn(
        name, [(Tensors(DIGITS.values[part]), DIGITS.sets(part)) for part in parts], client_id=client_id
    )


def learn_patients(client: Client, name: str, rows: slice, client_id: str = "a") -> LearnReport:
    starts = range(rows.start, rows.stop, 32)
    parts = [slice(start, min(start + 32, rows.stop)) for start in starts]
    return client.learn(
        name, [(Tensors(PATIENTS.values[part]), PATIENTS.truth[part]) for part in parts], client_id=client_id
    )


def probabilities(client: Client, name: str, rows: slice) -> npt.NDArray[np.float32]:
    """Columns in the order of ASKED."""
    answer = client.predict(name, Tensors(DIGITS.values[rows]), scores=True)
    assert answer.scores_NC is not None
    return answer.scores_NC[:, [answer.labels.index(label) for label in ASKED]]


def values(client: Client, name: str, rows: slice) -> npt.NDArray[np.float32]:
    answer = client.predict(name, Tensors(PATIENTS.values[rows]))
    assert answer.values_NK is not None
    assert answer.labels == ("progression", "pressure")
    return answer.values_NK


def exported(client: Client, name: str, folder: Path) -> onnxruntime.InferenceSession:
    client.download(client.export(name), folder)
    return onnxruntime.InferenceSession(folder / "model.onnx")


def status_of(client: Client, name: str) -> models_pb2.ModelStatus:
    return client.models.get(name).status


def test_sets_of_labels_are_learned_as_well_as_by_logistic_regression_at_once(
    server: RealServer, client: Client, tmp_path: Path
) -> None:
    server.declare(DIGITS.declaration("facts"))
    report = learn_digits(client, "facts", slice(0, 1200))
    assert report.durable_samples == 1200
    found = probabilities(client, "facts", slice(1200, 1797))
    flat = DIGITS.values.reshape(-1, 64) / 16
    peer = OneVsRestClassifier(LogisticRegression(max_iter=2000)).fit(flat[:1200], DIGITS.has[:1200])
    truth = DIGITS.has[1200:]
    ours = f1_score(truth, found >= 0.5, average="micro")
    assert ours >= f1_score(truth, peer.predict(flat[1200:]), average="micro") - 0.02
    answer = client.predict("facts", Tensors(DIGITS.values[1200:1210]))
    for top, row in zip(answer.top, found, strict=False):
        assert {scored.label for scored in top} == {ASKED[column] for column in np.flatnonzero(row >= 0.5)}
    best = client.predict("facts", Tensors(DIGITS.values[1200:1201]), top_k=3).top[0]
    assert len(best) == 3
    session = exported(client, "facts", tmp_path)
    scores, present, labels = session.run(["scores", "present", "labels"], {"tensor": DIGITS.values[1200:]})
    columns = [labels.tolist().index(label) for label in ASKED]
    np.testing.assert_allclose(scores[:, columns], found, atol=1e-4)
    assert (present[:, columns] == (found >= 0.5)).mean() > 0.999


def test_what_was_learned_of_sets_is_reported(server: RealServer, client: Client) -> None:
    server.declare(DIGITS.declaration("told"))
    learn_digits(client, "told", slice(0, 400))  # after which there is a head, whatever the clock says
    report = learn_digits(client, "told", slice(400, 800))
    status = status_of(client, "told")
    assert status.input.task == "multilabel"
    assert status.sample_count == 800
    assert dict(zip(status.labels, status.samples_per_class, strict=True)) == dict(
        zip(ASKED, DIGITS.has[:800].sum(axis=0).tolist(), strict=True)
    )
    total = status.report.total
    assert total.samples == 800
    assert 0.1 < total.accuracy < total.micro_f1 < 1
    assert total.accuracy == pytest.approx(status.prequential.correct / 800)
    assert {each.label for each in status.report.classes} == set(ASKED)
    assert report.last is not None
    assert report.last.prequential.correct == status.prequential.correct
    versions = list(client.models.versions("told"))
    assert versions[0].report.total.micro_f1 > 0


def test_values_are_those_of_ridge_on_all_samples_and_leave_as_they_are_served(
    server: RealServer, client: Client, tmp_path: Path
) -> None:
    server.declare(PATIENTS.declaration("patients"))
    assert learn_patients(client, "patients", slice(0, 300)).durable_samples == 300
    found = values(client, "patients", slice(300, 442))
    spread = PATIENTS.values[:300].std(axis=0)
    peer = RidgeCV(np.logspace(-3, 3, 25)).fit(PATIENTS.values[:300] / spread, PATIENTS.truth[:300])
    theirs = r2_score(PATIENTS.truth[300:], peer.predict(PATIENTS.values[300:] / spread))
    assert r2_score(PATIENTS.truth[300:], found) >= theirs - 0.02
    session = exported(client, "patients", tmp_path)
    (told,) = session.run(["values"], {"tensor": PATIENTS.values[300:]})
    np.testing.assert_allclose(told, found, rtol=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["everlearn.outputs"]) == ["progression", "pressure"]


def test_what_was_learned_of_values_is_reported_and_gated(server: RealServer, client: Client) -> None:
    server.declare(PATIENTS.declaration("gated", gate={"min_accuracy": 0.99}))
    for start in range(0, 300, 100):  # each call ends with a head that knows it all
        learn_patients(client, "gated", slice(start, start + 100))
    status = status_of(client, "gated")
    total = status.report.total
    assert [each.name for each in total.outputs] == ["progression", "pressure"]
    assert 0.05 < total.r2 < 0.9
    assert total.samples >= 200
    assert status.prequential.accuracy == pytest.approx(total.r2)
    assert 10 < total.outputs[0].mae < total.outputs[0].rmse < 120
    assert "stable" not in status.aliases
    newest = next(iter(client.models.versions("gated")))
    assert "below 0.990" in newest.gate_reason
    server.declare(PATIENTS.declaration("gated", gate={"min_accuracy": 0.02}))
    learn_patients(client, "gated", slice(300, 442))
    assert "stable" in status_of(client, "gated").aliases


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_order_and_sharding_leave_no_trace_and_a_restart_forgets_nothing(
    server: RealServer, client: Client, task: str
) -> None:
    learn, data = (learn_digits, DIGITS) if task == "multilabel" else (learn_patients, PATIENTS)
    for name in (f"straight-{task}", f"sharded-{task}"):
        server.declare(data.declaration(name))
    learn(client, f"straight-{task}", slice(0, 300))
    for part, shard in ((slice(150, 300), "b"), (slice(0, 150), "c")):
        learn(client, f"sharded-{task}", part, shard)
    digests = {status_of(client, f"{name}-{task}").memory_digest for name in ("straight", "sharded")}
    assert len(digests) == 1
    ask = probabilities if task == "multilabel" else values
    before = ask(client, f"straight-{task}", slice(300, 400))
    assert np.array_equal(ask(client, f"sharded-{task}", slice(300, 400)), before)
    server.restart()
    with server.client() as again:
        status = status_of(again, f"straight-{task}")
        assert {status.memory_digest} == digests
        assert status.prequential.tested == 300
        assert np.array_equal(ask(again, f"straight-{task}", slice(300, 400)), before)
        learn(again, f"straight-{task}", slice(300, 332))
        assert status_of(again, f"straight-{task}").sample_count == 332


def test_a_label_may_arrive_late_and_a_sample_may_have_none(server: RealServer, client: Client) -> None:
    server.declare(DIGITS.declaration("late", labels=["even"]))
    rows = slice(0, 400)
    few = [[label for label in labels if label == "even"] for labels in DIGITS.sets(rows)]
    client.learn("late", [(Tensors(DIGITS.values[rows]), few)])
    learn_digits(client, "late", slice(400, 1400))
    status = status_of(client, "late")
    assert status.labels[0] == "even"
    assert set(status.labels) == set(ASKED)
    found = probabilities(client, "late", slice(1400, 1797)) >= 0.5
    assert f1_score(DIGITS.has[1400:, 0], found[:, 0]) > 0.85
    answer = client.predict("late", Tensors(np.zeros((1, 8, 8), np.float32)))
    assert len(answer.top) == 1


@pytest.mark.parametrize(
    ("name", "labels", "field", "words"),
    [
        ("sets", ["even"], "batch.labels", "task is multilabel"),
        ("sets", np.ones((1, 2), np.float32), "batch.values", "task is multilabel"),
        ("sets", [["even", "even"]], "batch.label_sets[0]", "twice"),
        ("sets", [["even", ""]], "batch.label_sets[0].labels[1]", "empty"),
        ("reading", ["even"], "batch.labels", "task is regression"),
        ("reading", np.ones((1, 3), np.float32), "batch.values", r"\[B, 2\]"),
        ("reading", np.array([[401.0, 100.0]], np.float32), "batch.values[0][0]", "0 to 400"),
        ("reading", np.array([[1.0, np.nan]], np.float32), "batch.values[0][1]", "50 to 150"),
        ("plain", [["even"]], "batch.label_sets", "task is classification"),
    ],
)
def test_truth_of_another_kind_or_beyond_its_range_is_rejected_by_field(
    server: RealServer, client: Client, name: str, labels: Any, field: str, words: str
) -> None:
    if name == "reading":
        server.declare(PATIENTS.declaration(name))
        sample = Tensors(PATIENTS.values[:1])
    else:
        task = "multilabel" if name == "sets" else "classification"
        server.declare(DIGITS.declaration(name, task=task))
        sample = Tensors(DIGITS.values[:1])
    report = client.learn(name, [(sample, labels)])
    assert report.rejected_batches == 1
    assert report.rejected[0].field == field
    assert words.replace("\\", "") in report.rejected[0].message
    assert status_of(client, name).sample_count == 0


def test_a_regression_ranks_nothing(server: RealServer, client: Client) -> None:
    server.declare(PATIENTS.declaration("unranked"))
    learn_patients(client, "unranked", slice(0, 64))
    with pytest.raises(InvalidArgument) as caught:
        client.predict("unranked", Tensors(PATIENTS.values[:1]), top_k=2)
    assert caught.value.field == "top_k"


def test_open_inference_clients_get_probabilities_and_values(server: RealServer, client: Client) -> None:
    server.declare(DIGITS.declaration("open-sets"))
    server.declare(PATIENTS.declaration("open-values"))
    learn_digits(client, "open-sets", slice(0, 300))
    learn_patients(client, "open-values", slice(0, 128))
    asked = triton.InferenceServerClient(server.address)
    try:
        for name, sample, outputs in (
            ("open-sets", DIGITS.values[:4], {"scores": "FP32", "present": "BOOL"}),
            ("open-values", PATIENTS.values[:4], {"values": "FP32"}),
        ):
            metadata = asked.get_model_metadata(name)
            assert {output.name: output.datatype for output in metadata.outputs} == outputs
            tensor = triton.InferInput("tensor", list(sample.shape), "FP32")
            tensor.set_data_from_numpy(sample)
            answer = asked.infer(name, [tensor])
            config = asked.get_model_config(name).config
            if name == "open-sets":
                scores, present = answer.as_numpy("scores"), answer.as_numpy("present")
                assert present.tolist() == (scores >= 0.5).tolist()
                assert set(json.loads(config.parameters["labels"].string_value)) == set(ASKED)
            else:
                np.testing.assert_allclose(answer.as_numpy("values"), values(client, name, slice(0, 4)), rtol=1e-6)
                assert json.loads(config.parameters["outputs"].string_value) == ["progression", "pressure"]
    finally:
        asked.close()


def test_files_of_several_labels_and_of_values_are_learned_from_the_command_line(
    server: RealServer, client: Client, tmp_path: Path
) -> None:
    server.declare(DIGITS.declaration("sets-by-hand"))
    server.declare(PATIENTS.declaration("values-by-hand"))
    lines = [
        json.dumps({"x": sample.tolist(), "labels": labels})
        for sample, labels in zip(DIGITS.values[:100], DIGITS.sets(slice(0, 100)), strict=True)
    ]
    (tmp_path / "sets.jsonl").write_text("\n".join(lines))
    rows = [",".join([*[f"p{n}" for n in range(64)], "label_1", "label_2", "label_3", "label_4"])]
    for sample, labels in zip(DIGITS.values[100:200], DIGITS.sets(slice(100, 200)), strict=True):
        rows.append(",".join([*map(str, sample.ravel()), *labels, *[""] * (4 - len(labels))]))
    (tmp_path / "sets.csv").write_text("\n".join(rows))
    np.savez(tmp_path / "sets.npz", x=DIGITS.values[200:300], y=DIGITS.has[200:300].astype(int), names=np.array(ASKED))
    header = [*PATIENTS.columns, "pressure", "progression"]
    table = [",".join(header)] + [
        ",".join(map(str, [*sample, truth[1], truth[0]]))
        for sample, truth in zip(PATIENTS.values[:100], PATIENTS.truth[:100], strict=True)
    ]
    (tmp_path / "values.csv").write_text("\n".join(table))
    (tmp_path / "values.jsonl").write_text(
        "\n".join(
            json.dumps({"x": sample.tolist(), "values": {"progression": float(a), "pressure": float(b)}})
            for sample, (a, b) in zip(PATIENTS.values[100:200], PATIENTS.truth[100:200], strict=True)
        )
    )
    np.savez(tmp_path / "values.npz", x=PATIENTS.values[200:300], y=PATIENTS.truth[200:300])
    new = [",".join(PATIENTS.columns), *[",".join(map(str, sample)) for sample in PATIENTS.values[300:303]]]
    (tmp_path / "new.csv").write_text("\n".join(new))

    def run(line: str) -> str:
        result = CliRunner().invoke(app, f"{line} --server {server.address}")
        assert result.exit_code == 0, result.output
        return result.stdout

    for name in ("sets", "values"):
        for form in ("jsonl", "csv", "npz"):
            told = json.loads(run(f"learn {name}-by-hand {tmp_path / name}.{form} -o json"))
            assert told["durable_samples"] == 100
    server.declare(DIGITS.declaration("sets-by-code"))
    server.declare(PATIENTS.declaration("values-by-code"))
    learn_digits(client, "sets-by-code", slice(0, 300))
    learn_patients(client, "values-by-code", slice(0, 300))
    for name in ("sets", "values"):
        digests = {status_of(client, f"{name}-by-{how}").memory_digest for how in ("hand", "code")}
        assert len(digests) == 1, name
    answers = json.loads(run(f"predict values-by-hand {tmp_path / 'new.csv'} -o json"))
    expected = values(client, "values-by-hand", slice(300, 303))
    np.testing.assert_allclose([list(answer["values"].values()) for answer in answers], expected, rtol=1e-6)
    assert "PROGRESSION" in run(f"predict values-by-hand {tmp_path / 'new.csv'}")
    assert "RMSE" in run("describe values-by-hand")
    assert "micro F1" in run("describe sets-by-hand")


def test_a_broken_line_is_named(server: RealServer, tmp_path: Path) -> None:
    server.declare(PATIENTS.declaration("broken"))
    (tmp_path / "a.csv").write_text(",".join([*PATIENTS.columns, "pressure"]) + "\n" + ",".join(["1"] * 10))
    (tmp_path / "b.jsonl").write_text('{"x": [1], "values": {"pressure": 1}}')
    (tmp_path / "c.txt").write_text("")
    for file, words in (("a.csv", "named progression"), ("b.jsonl", "line 1"), ("c.txt", "task is regression")):
        result = CliRunner().invoke(app, f"learn broken {tmp_path / file} --server {server.address}")
        assert result.exit_code != 0
        assert words in result.output.replace("\n", " ")


def test_what_compares_single_labels_refuses_other_tasks(server: RealServer, client: Client, tmp_path: Path) -> None:
    server.declare(DIGITS.declaration("compared"))
    learn_digits(client, "compared", slice(0, 64))
    with pytest.raises(FailedPrecondition) as caught:
        client.models.probe("compared")
    assert caught.value.reason == "NO_SUMS"
    rows = [",".join([*map(str, sample.ravel()), "ab"[row % 2]]) for row, sample in enumerate(DIGITS.values[:40])]
    (tmp_path / "one.csv").write_text("\n".join(rows))
    result = CliRunner().invoke(app, f"doctor compared {tmp_path / 'one.csv'} --server {server.address}")
    assert result.exit_code != 0
    assert "task is multilabel" in result.output.replace("\n", " ")
    assert not [model.name for model in client.models.list() if "doctor" in model.name]


def test_changing_the_range_of_an_output_needs_consent(server: RealServer, client: Client) -> None:
    server.declare(PATIENTS.declaration("ranged"))
    learn_patients(client, "ranged", slice(0, 32))
    wider = [{**OUTPUTS[0], "max": 500}, OUTPUTS[1]]
    plan = client.models.plan(PATIENTS.declaration("ranged", outputs=wider))
    changed = {change.field: models_pb2.Change.Class.Name(getattr(change, "class")) for change in plan.changes}
    assert changed == {"spec.outputs": "REPLACE"}
