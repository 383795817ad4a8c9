"""Plain tensors through the real server: tables and time series, from the command line and the SDK to the export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import tritonclient.grpc as triton
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tests.real_server import RealServer
from typer.testing import CliRunner

from everlearn_client import Client, InvalidArgument, Tensors
from everlearn_client.cli.app import app

DATA = {"wine": load_wine, "breast-cancer": load_breast_cancer, "iris": load_iris}
HEADS = {"wine": "balanced_ridge", "breast-cancer": "balanced_ridge", "iris": "lda"}
PEERS = {
    "balanced_ridge": RidgeClassifierCV(np.logspace(-4, 4, 17), class_weight="balanced"),
    "lda": LinearDiscriminantAnalysis(),
}
"""The same mathematics over all of the data at once, on standardised float64 values."""


class Table:
    """Real measurements in the units they were taken in, split in the same way every time."""

    def __init__(self, name: str) -> None:
        data = DATA[name]()
        order = np.random.default_rng(0).permutation(len(data.target))
        cut = 2 * len(order) // 3
        values = data.data.astype(np.float32)
        labels = [f"{data.target_names[index]}" for index in data.target]
        self.columns = list(data.feature_names)
        self.train, self.test = values[order[:cut]], values[order[cut:]]
        self.train_labels, self.test_labels = ([labels[i] for i in part] for part in (order[:cut], order[cut:]))

    def declaration(self, name: str, **spec: object) -> str:
        ends = np.stack([self.train.min(0), self.train.max(0)], axis=1)
        read = {"modality": "tensor", "shape": [self.train.shape[1]], "range": [[float(e) for e in p] for p in ends]}
        body = {"backbone": {"source": "identity"}, "input": read, **spec}
        return json.dumps({"metadata": {"name": name}, "spec": body})

    def accuracy(self, answers: list[str]) -> float:
        return float(np.mean([a == b for a, b in zip(answers, self.test_labels, strict=True)]))


@pytest.fixture(scope="module", params=list(DATA))
def learned(request: pytest.FixtureRequest, server: RealServer, client: Client) -> tuple[str, Table]:
    name, table = request.param, Table(request.param)
    server.declare(table.declaration(name, head={"kind": HEADS[name]}))
    report = client.learn(name, [(Tensors(table.train), table.train_labels)])
    assert report.durable_samples == len(table.train)
    return name, table


def best(client: Client, model: str, values: npt.NDArray[np.float32]) -> list[str]:
    return [top[0].label for top in client.predict(model, Tensors(values)).top]


def test_a_streamed_table_is_learned_as_well_as_all_of_it_at_once(client: Client, learned: tuple[str, Table]) -> None:
    name, table = learned
    peer = make_pipeline(StandardScaler(), PEERS[HEADS[name]]).fit(table.train.astype(float), table.train_labels)
    reference = table.accuracy(list(peer.predict(table.test.astype(float))))
    assert table.accuracy(best(client, name, table.test)) >= reference - 0.02


def test_what_is_exported_predicts_what_the_server_predicts(
    client: Client, learned: tuple[str, Table], tmp_path: Path
) -> None:
    name, table = learned
    paths = {path.name: path for path in client.download(client.export(name), tmp_path)}
    session = onnxruntime.InferenceSession(paths["model.onnx"], providers=["CPUExecutionProvider"])
    scores, label = session.run(["scores", "label"], {"tensor": table.test})
    answer = client.predict(name, Tensors(table.test), scores=True)
    assert np.abs(scores - answer.scores_NC).max() <= 1e-5
    assert list(label) == [top[0].label for top in answer.top]
    told = session.get_modelmeta().custom_metadata_map
    assert (told["everlearn.modality"], json.loads(told["everlearn.shape"])) == ("tensor", [table.train.shape[1]])
    card = paths["MODEL_CARD.md"].read_text()
    assert "tabular-classification" in card
    program = card.partition("```python\n")[2].partition("```")[0]
    exec(compile(program.replace("model.onnx", str(paths["model.onnx"])), "card", "exec"), {})


def test_other_tools_ask_by_the_open_inference_protocol(
    server: RealServer, client: Client, learned: tuple[str, Table]
) -> None:
    name, table = learned
    caller = triton.InferenceServerClient(server.address)
    told = {each.name: (each.datatype, list(each.shape)) for each in caller.get_model_metadata(name).inputs}
    columns = table.train.shape[1]
    assert told == {"tensor": ("FP32", [-1, columns]), "features": ("FP32", [-1, columns])}
    tensor = triton.InferInput("tensor", list(table.test.shape), "FP32")
    tensor.set_data_from_numpy(table.test)
    answer = caller.infer(name, [tensor]).as_numpy("label")
    assert [label.decode() for label in answer] == best(client, name, table.test)
    caller.close()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [(0, np.nan, "finite"), (0, np.inf, "finite"), (3, 1e9, "near the range")],
)
def test_values_that_are_none_are_refused_by_name(
    client: Client, learned: tuple[str, Table], place: int, value: float, message: str
) -> None:
    name, table = learned
    values = table.test[:4].copy()
    values[2, place] = value
    with pytest.raises(InvalidArgument, match=message) as caught:
        client.predict(name, Tensors(values))
    assert caught.value.field == "samples.tensors[2]"
    before = client.models.get(name).status.sample_count
    report = client.learn(name, [(Tensors(values), table.test_labels[:4])])
    assert [rejected.field for rejected in report.rejected] == ["batch.samples.tensors[2]"]
    assert client.models.get(name).status.sample_count == before


def test_another_shape_or_form_is_refused(client: Client, learned: tuple[str, Table]) -> None:
    name, _ = learned
    for samples, field in (
        (Tensors(np.zeros((1, 3, 3), np.float32)), "tensors"),
        (np.zeros((1, 8, 8, 3), "u1"), "images"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            client.predict(name, samples)
        assert caught.value.field == f"samples.{field}"


def test_a_csv_is_learned_and_predicted_from_the_command_line(server: RealServer, tmp_path: Path) -> None:
    table = Table("wine")
    server.declare(table.declaration("by-hand"))
    train, test, archive = tmp_path / "train.csv", tmp_path / "test.csv", tmp_path / "train.npz"
    rows = [
        ",".join(map(repr, row)) + f",{label}"
        for row, label in zip(table.train.tolist(), table.train_labels, strict=True)
    ]
    train.write_text("\n".join([",".join([*table.columns, "Class"]), *rows[:60]]))
    test.write_text("\n".join(",".join(map(repr, row)) for row in table.test.tolist()))
    np.savez(archive, X=table.train[60:].astype(np.float64), y=np.array(table.train_labels[60:]))

    def run(line: str) -> str:
        result = CliRunner().invoke(app, f"{line} --server {server.address} -o json")
        assert result.exit_code == 0, result.output
        return result.stdout

    assert json.loads(run(f"learn by-hand {train} --shuffle 1"))["durable_samples"] == 60
    assert json.loads(run(f"learn by-hand {archive}"))["durable_samples"] == len(table.train) - 60
    answers = json.loads(run(f"predict by-hand {test}"))
    assert answers[4]["file"] == f"{test}:5"
    assert table.accuracy([answer["top"][0]["label"] for answer in answers]) >= 0.93
    broken = tmp_path / "broken.csv"
    broken.write_text(rows[0] + "\n" + rows[1].replace(",", ",x", 1))
    result = CliRunner().invoke(app, f"learn by-hand {broken} --server {server.address}")
    assert "line 2" in result.output
    assert result.exit_code != 0


def test_a_declaration_and_its_backbone_must_mean_the_same(server: RealServer, client: Client) -> None:
    declared = json.loads(Table("iris").declaration("wrong"))
    declared["spec"]["input"] = {"modality": "image"}
    with pytest.raises(InvalidArgument) as caught:
        client.models.plan(json.dumps(declared))
    assert caught.value.field == "spec.input.modality"


def test_windows_of_a_time_series_are_told_apart_through_random_features(server: RealServer, client: Client) -> None:
    random = np.random.default_rng(0)

    def windows(count: int, kind: str) -> npt.NDArray[np.float32]:
        at = np.arange(32) + random.uniform(0, 32, (count, 1))
        wave = {"sine": np.sin(at / 2), "square": np.sign(np.sin(at / 2)), "saw": (at / 2 / np.pi) % 2 - 1}[kind]
        noisy = wave + random.normal(0, 0.1, wave.shape)
        return np.stack([20 + 5 * noisy, random.normal(0, 1e-3, wave.shape)], axis=2).astype(np.float32)

    kinds = ("sine", "square", "saw")
    body = {
        "backbone": {"source": "identity"},
        "input": {"modality": "tensor", "shape": [32, 2], "range": [[15, 25], [-0.003, 0.003]]},
        "projection": {"dim": 1000},
    }
    server.declare(json.dumps({"metadata": {"name": "waves"}, "spec": body}))
    client.learn("waves", [(Tensors(windows(100, kind)), [kind] * 100) for kind in kinds])
    right = [label == kind for kind in kinds for label in best(client, "waves", windows(50, kind))]
    assert np.mean(right) >= 0.85


def test_a_restart_keeps_a_model_of_tensors(server: RealServer, client: Client) -> None:
    table = Table("iris")
    server.declare(table.declaration("kept"))
    client.learn("kept", [(Tensors(table.train), table.train_labels)])
    before = best(client, "kept", table.test)
    server.restart()
    with server.client() as again:
        assert best(again, "kept", table.test) == before
