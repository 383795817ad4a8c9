"""A model that says when it does not know: over the wire, by the Open Inference Protocol, on a device, in the file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import tritonclient.grpc as triton
from sklearn.datasets import load_digits
from tests.real_server import RealServer
from typer.testing import CliRunner

from everlearn_client import Client, InvalidArgument, Predictions, Tensors
from everlearn_client.cli.app import app
from everlearn_client.edge import EdgeModel, EdgeSettings, SendPolicy

FALSE_ALARMS = 0.05
WAIT_S = 240.0
Values = npt.NDArray[np.float32]


class Digits:
    """Real digits, as plain numbers: 1,400 to learn, the rest to ask about, and what is no digit."""

    def __init__(self) -> None:
        pixels, target = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(target))
        self.pixels, self.labels = pixels[order].astype(np.float32), [str(target[row]) for row in order]
        self.asked = self.pixels[1400:]
        self.foreign = 16 - self.asked

    def declaration(self, name: str, **spec: object) -> str:
        read = {"modality": "tensor", "shape": [64], "range": [[0, 16]]}
        return json.dumps(
            {"metadata": {"name": name}, "spec": {"backbone": {"source": "identity"}, "input": read, **spec}}
        )

    def teach(self, server: RealServer, name: str, **spec: object) -> None:
        server.declare(self.declaration(name, **spec))
        with server.client(client_id="teacher") as teacher:
            teacher.learn(name, [(Tensors(self.pixels[:1400]), self.labels[:1400])])


@pytest.fixture(scope="module")
def digits(server: RealServer) -> Digits:
    digits = Digits()
    digits.teach(server, "careful", unknown={"kind": "abstain", "false_alarms": FALSE_ALARMS})
    digits.teach(server, "plain")
    return digits


def until(holds: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < give_up_s, "no version came of the declaration"
        time.sleep(0.02)


def share(answer: Predictions) -> float:
    return float(np.mean(answer.abstained))


def test_what_is_no_digit_is_unknown_and_digits_seldom_are(client: Client, digits: Digits) -> None:
    known, foreign = (client.predict("careful", Tensors(each)) for each in (digits.asked, digits.foreign))
    assert share(known) <= 2 * FALSE_ALARMS
    assert share(foreign) > 0.98
    # What it is taken for is told all the same: who asks may want a guess.
    right = [top[0].label == label for top, label in zip(known.top, digits.labels[1400:], strict=True)]
    assert np.mean(right) > 0.9
    assert len(foreign.top) == len(digits.foreign)


def test_a_model_that_does_not_declare_it_tells_nothing_of_it(client: Client, digits: Digits, tmp_path: Path) -> None:
    answer = client.predict("plain", Tensors(digits.foreign))
    assert answer.novelty == answer.abstained == ()
    path = next(p for p in client.download(client.export("plain"), tmp_path) if p.name == "model.onnx")
    names = [output.name for output in onnxruntime.InferenceSession(path).get_outputs()]
    assert names == ["scores", "label_index", "label", "labels"]


def test_scores_and_best_classes_are_those_of_a_model_without_it(client: Client, digits: Digits) -> None:
    careful, plain = (client.predict(name, Tensors(digits.asked), scores=True) for name in ("careful", "plain"))
    assert careful.scores_NC is not None
    assert plain.scores_NC is not None
    assert np.array_equal(careful.scores_NC, plain.scores_NC)
    assert careful.top == plain.top


def test_the_file_tells_the_same_novelty_and_has_no_label_for_what_is_unknown(
    client: Client, digits: Digits, tmp_path: Path
) -> None:
    paths = {path.name: path for path in client.download(client.export("careful"), tmp_path)}
    session = onnxruntime.InferenceSession(paths["model.onnx"])
    for values in (digits.asked, digits.foreign):
        served = client.predict("careful", Tensors(values))
        novelty, label, index = session.run(["novelty", "label", "label_index"], {"tensor": values})
        np.testing.assert_allclose(novelty, served.novelty, rtol=1e-3, atol=1e-3)
        decided = np.abs(np.array(served.novelty) - 1) > 1e-3
        best = np.array([top[0].label for top in served.top])
        expected = np.where(np.array(served.abstained), "", best)
        assert np.array_equal(np.array(label)[decided], expected[decided])
        assert np.array_equal(index == -1, np.array(label) == "")
    assert "novelty" in paths["MODEL_CARD.md"].read_text()


def test_a_device_abstains_as_the_server_does_and_sends_what_it_does_not_know(
    server: RealServer, client: Client, digits: Digits, tmp_path: Path
) -> None:
    policy = SendPolicy(only_unsure=True, margin_below=1e-9, duplicate_bits=None)  # sure of whatever is known
    with server.client(client_id="device-1") as own:
        device = EdgeModel("careful", folder=tmp_path, client=own, settings=EdgeSettings(policy=policy))
        try:
            device.pull()
            answer, served = device.predict(Tensors(digits.foreign)), client.predict("careful", Tensors(digits.foreign))
            np.testing.assert_allclose(answer.novelty, served.novelty, rtol=1e-3, atol=1e-3)
            assert share(answer) > 0.98
            known = int(np.argmin(client.predict("careful", Tensors(digits.asked)).novelty))
            assert device.observe(digits.asked[known], "1") == "sure"
            assert device.observe(digits.foreign[int(np.argmax(answer.novelty))], "inverted") == "send"
        finally:
            device.close()


def test_the_open_inference_protocol_has_one_output_more_where_it_is_declared(
    server: RealServer, client: Client, digits: Digits
) -> None:
    asked = triton.InferenceServerClient(server.address)
    outputs = {name: [o.name for o in asked.get_model_metadata(name).outputs] for name in ("careful", "plain")}
    assert outputs == {
        "plain": ["scores", "label", "label_index"],
        "careful": ["scores", "label", "label_index", "novelty"],
    }
    tensor = triton.InferInput("tensor", list(digits.foreign.shape), "FP32")
    tensor.set_data_from_numpy(digits.foreign)
    answer = asked.infer("careful", [tensor])
    novelty = np.array(client.predict("careful", Tensors(digits.foreign)).novelty, np.float32)
    np.testing.assert_allclose(answer.as_numpy("novelty"), novelty, rtol=1e-5)
    assert np.array_equal(answer.as_numpy("label_index") == -1, novelty > 1)
    assert np.array_equal(answer.as_numpy("label") == b"", novelty > 1)
    plain = asked.infer("plain", [tensor])
    assert plain.as_numpy("novelty") is None
    assert (plain.as_numpy("label_index") >= 0).all()


def test_it_is_declared_later_and_taken_back_without_learning_anything_again(
    server: RealServer, client: Client, digits: Digits
) -> None:
    digits.teach(server, "later")
    assert client.predict("later", Tensors(digits.asked)).novelty == ()
    plan = client.models.plan(digits.declaration("later", unknown="abstain"))
    assert [(change.field, change.before, change.after) for change in plan.changes] == [
        ("spec.unknown.kind", "answer", "abstain"),
        ("spec.unknown.false_alarms", "", "0.01"),
    ]
    server.declare(digits.declaration("later", unknown="abstain"))
    until(lambda: bool(client.predict("later", Tensors(digits.asked)).novelty))
    declared = client.predict("later", Tensors(digits.foreign))
    assert share(declared) > 0.98
    server.restart()
    assert client.predict("later", Tensors(digits.foreign)).novelty == declared.novelty
    server.declare(digits.declaration("later"))
    until(lambda: not client.predict("later", Tensors(digits.foreign)).novelty)


def test_what_a_client_sends_is_watched_before_it_is_learned(server: RealServer, digits: Digits) -> None:
    digits.teach(server, "watched", unknown={"kind": "abstain", "false_alarms": FALSE_ALARMS})
    with server.client(client_id="clean") as clean, server.client(client_id="dirty") as dirty:
        clean.learn("watched", [(Tensors(digits.asked[:100]), digits.labels[1400:1500])])
        dirty.learn("watched", [(Tensors(digits.foreign[:100]), digits.labels[1400:1500])])
        found = {each.client: each for each in clean.models.clients("watched")}
        plain = {each.client: each for each in clean.models.clients("plain")}
    assert found["clean"].recent_novelty < 1 < found["dirty"].recent_novelty
    assert found["clean"].recent_unknown <= 2 * FALSE_ALARMS
    assert found["dirty"].recent_unknown > 0.9
    assert not plain["teacher"].HasField("recent_novelty")
    shown = CliRunner().invoke(app, ["clients", "watched", "--server", server.address], env={"COLUMNS": "300"})
    assert "NOVELTY" in shown.output
    assert shown.output.count("% unknown)") >= 2
    bare = CliRunner().invoke(app, ["clients", "plain", "--server", server.address], env={"COLUMNS": "300"})
    assert "NOVELTY" not in bare.output


def test_the_command_line_says_unknown(server: RealServer, digits: Digits, tmp_path: Path) -> None:
    table = tmp_path / "asked.csv"
    rows = [",".join(str(float(value)) for value in row) for row in (digits.asked[0], digits.foreign[0])]
    table.write_text("\n".join([",".join(f"p{column}" for column in range(64)), *rows]) + "\n")
    command = ["predict", "careful", str(table), "--server", server.address]
    shown = CliRunner().invoke(app, command)
    assert shown.output.count("unknown") == 1
    done = CliRunner().invoke(app, [*command, "-o", "json"])
    assert done.exit_code == 0, done.output
    answers = json.loads(done.stdout)
    assert [answer["abstained"] for answer in answers] == [False, True]
    assert answers[1]["novelty"] > 1


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"unknown": {"kind": "abstain", "false_alarm": 0.1}}, "did you mean 'false_alarms'"),
        ({"unknown": {"kind": "abstain", "false_alarms": 0.9}}, "spec.unknown.false_alarms"),
        ({"unknown": "abstane"}, "did you mean 'abstain'"),
        ({"unknown": "abstain", "task": "multilabel"}, "has no classes of one label a sample"),
        ({"unknown": "abstain", "recipe": "lwf"}, "learns by gradient steps"),
    ],
)
def test_what_cannot_be_declared_says_why(client: Client, digits: Digits, spec: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        client.models.plan(digits.declaration("wrong", **spec))
