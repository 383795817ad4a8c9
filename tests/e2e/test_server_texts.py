"""Texts through the real server and the real all-MiniLM-L6-v2: from the wheel and the command line to the export."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as triton
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from tests.encoders import MINILM, MINILM_TOKENIZER
from tests.real_server import RealServer
from tests.texts import scipy_summaries, sentences
from tokenizers import Tokenizer
from typer.testing import CliRunner

from everlearn_client import Client, InvalidArgument, Texts
from everlearn_client.cli.app import app
from everlearn_protos.v1 import models_pb2


def declaration(name: str, **spec: object) -> str:
    body = {"backbone": MINILM, "input": {"modality": "text"}, **spec}
    return json.dumps({"metadata": {"name": name}, "spec": body})


@pytest.fixture(scope="module")
def topics(server: RealServer, client: Client) -> str:
    """A model that has learned eight sentences of each topic."""
    server.declare(declaration("topics"))
    report = client.learn("topics", zip(*sentences(0, 8), strict=True))
    assert (report.durable_samples, report.rejected) == (32, ())
    return "topics"


def best(client: Client, model: str, texts: list[str]) -> list[str]:
    return [top[0].label for top in client.predict(model, Texts(texts)).top]


def test_a_few_sentences_are_enough_to_tell_topics_apart(client: Client, topics: str) -> None:
    texts, labels = sentences(8, 12)
    assert np.mean([a == b for a, b in zip(best(client, topics, texts), labels, strict=True)]) >= 0.9
    status = client.models.get(topics).status
    assert dict(zip(status.labels, status.samples_per_class, strict=True)) == dict.fromkeys(labels, 8)
    assert (status.input.modality, status.input.max_tokens, status.input.max_text_bytes) == ("text", 256, 8192)
    assert status.lock["tokenizer.json"] == MINILM_TOKENIZER


def test_doctor_examines_texts(server: RealServer, client: Client, topics: str, tmp_path: Path) -> None:
    texts, labels = sentences(0, 12)
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    (tmp_path / "topics.json").write_text(json.dumps(rows))
    before = client.models.get(topics).status.memory_digest
    arguments = ["doctor", topics, str(tmp_path / "topics.json"), "--server", server.address, "-o", "json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    level_of = {each["check"]: each["level"] for each in json.loads(result.stdout)["findings"]}
    assert {level_of[check] for check in ("empty texts", "length", "baseline", "one batch")} == {"ok"}
    assert "brightness" not in level_of
    assert client.models.get(topics).status.memory_digest == before


def test_what_scipys_functions_do_is_told_better_than_by_their_words(server: RealServer, client: Client) -> None:
    texts, labels = scipy_summaries()
    cut = 2 * len(texts) // 3
    server.declare(declaration("scipy"))
    batches = [(Texts(texts[i : i + 32]), labels[i : i + 32]) for i in range(0, cut, 32)]
    batches[-1] = (Texts(texts[len(batches) * 32 - 32 : cut]), labels[len(batches) * 32 - 32 : cut])
    assert client.learn("scipy", batches).durable_samples == cut
    answers = best(client, "scipy", texts[cut:])
    ours = np.mean([a == b for a, b in zip(answers, labels[cut:], strict=True)])
    peer = make_pipeline(TfidfVectorizer(sublinear_tf=True), RidgeClassifierCV(class_weight="balanced"))
    theirs = peer.fit(texts[:cut], labels[:cut]).score(texts[cut:], labels[cut:])
    assert ours >= max(0.88, theirs)
    record = client.models.get("scipy").status.prequential
    # Every text was predicted before it was learned, the first ones by a head that had seen next to nothing.
    assert record.tested == cut
    assert record.accuracy >= 0.75


def ids_of(folder: Path, texts: list[str]) -> np.ndarray:
    """As the model card says."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    rows = [each.ids for each in tokenizer.encode_batch(texts)]
    longest = max(map(len, rows))
    return np.array([[*row, *[-1] * (longest - len(row))] for row in rows], np.int64)


def test_what_is_exported_predicts_what_the_server_predicts(client: Client, topics: str, tmp_path: Path) -> None:
    paths = {path.name: path for path in client.download(client.export(topics), tmp_path)}
    assert paths.keys() == {"model.onnx", "MODEL_CARD.md", "probes.npz", "tokenizer.json"}
    assert hashlib.sha256(paths["tokenizer.json"].read_bytes()).hexdigest() == MINILM_TOKENIZER
    session = onnxruntime.InferenceSession(paths["model.onnx"], providers=["CPUExecutionProvider"])
    told = session.get_modelmeta().custom_metadata_map
    assert told["everlearn.tokenizer_sha256"] == MINILM_TOKENIZER
    assert (told["everlearn.modality"], told["everlearn.max_tokens"]) == ("text", "256")
    texts = [*sentences(8, 12)[0], "snow", "The match was called off because of the rain. " * 60]
    scores, label = session.run(["scores", "label"], {"input_ids": ids_of(tmp_path, texts)})
    answer = client.predict(topics, Texts(texts), scores=True)
    assert np.abs(scores - answer.scores_NC).max() <= 1e-5
    assert list(label) == [top[0].label for top in answer.top]


def test_the_card_says_how_to_use_it(
    client: Client, topics: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client.download(client.export(topics), tmp_path)
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert "text-classification" in card
    assert MINILM_TOKENIZER in card
    program = card.partition("```python\n")[2].partition("```")[0]
    assert "a text" in program
    monkeypatch.chdir(tmp_path)
    text = "Bake the bread until the crust is brown."
    exec(compile(program.replace("a text", text), "card", "exec"), {})
    assert "cooking" in capsys.readouterr().out.partition("]")[0]


def test_other_tools_ask_by_the_open_inference_protocol(server: RealServer, client: Client, topics: str) -> None:
    caller = triton.InferenceServerClient(server.address)
    told = {each.name: (each.datatype, list(each.shape)) for each in caller.get_model_metadata(topics).inputs}
    assert told == {"text": ("BYTES", [-1]), "features": ("FP32", [-1, 384])}
    texts = sentences(8, 12)[0]
    for given in (np.array([text.encode() for text in texts], object), np.array([b"\xff\xfe"], object)):
        tensor = triton.InferInput("text", list(given.shape), "BYTES")
        tensor.set_data_from_numpy(given)
        if len(given) > 1:
            answer = caller.infer(topics, [tensor]).as_numpy("label")
            assert [label.decode() for label in answer] == best(client, topics, texts)
        else:
            with pytest.raises(triton.InferenceServerException, match="not UTF-8"):
                caller.infer(topics, [tensor])
    caller.close()


@pytest.mark.parametrize(
    ("text", "message"), [("", "empty"), (" \n", "empty"), ("a" * 8193, "at most 8192"), ("😀" * 2049, "at most 8192")]
)
def test_texts_that_are_none_are_refused_by_name(client: Client, topics: str, text: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message) as caught:
        client.predict(topics, Texts(["rain", text]))
    assert caught.value.field == "samples.texts.texts[1]"
    before = client.models.get(topics).status.sample_count
    report = client.learn(topics, [(Texts(["rain", text]), ["weather", "weather"])])
    assert [rejected.field for rejected in report.rejected] == ["batch.samples.texts.texts[1]"]
    assert client.models.get(topics).status.sample_count == before


@pytest.mark.parametrize("text", ["a" * 8192, "[" * 8192, "[PAD] [MASK] [SEP]", "\0\x1b[2J", "中" * 2730, "́" * 4000])
def test_odd_texts_within_the_bounds_are_answered(client: Client, topics: str, text: str) -> None:
    scores = client.predict(topics, Texts([text]), scores=True).scores_NC
    assert scores is not None
    assert np.isfinite(scores).all()


def test_other_forms_are_refused(client: Client, topics: str) -> None:
    with pytest.raises(InvalidArgument, match="takes texts") as caught:
        client.predict(topics, np.zeros((1, 8, 8, 3), "u1"))
    assert caught.value.field == "samples.images"


def test_a_file_is_learned_and_predicted_from_the_command_line(
    server: RealServer, client: Client, tmp_path: Path, topics: str
) -> None:
    server.declare(declaration("by-hand"))
    texts, labels = sentences(0, 8)
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "test.csv").write_text('text\nit rains\n"Stir, then simmer the soup."\n')
    (tmp_path / "one.txt").write_text("The goalkeeper was sent off.\n")

    def run(line: str) -> str:
        result = CliRunner().invoke(app, f"{line} --server {server.address} -o json")
        assert result.exit_code == 0, result.output
        return result.stdout

    assert json.loads(run(f"learn by-hand {tmp_path}/train.jsonl --shuffle 1"))["durable_samples"] == 32
    answers = json.loads(run(f"predict by-hand {tmp_path}/test.csv {tmp_path}/one.txt"))
    assert [answer["top"][0]["label"] for answer in answers] == ["weather", "cooking", "sport"]
    assert answers[1]["file"] == f"{tmp_path}/test.csv:2"
    # The same sums in another order: the same answers.
    more = Texts(sentences(8, 12)[0])
    ours, theirs = (client.predict(model, more).top for model in ("by-hand", topics))
    assert [(a[0].label, a[0].score) for a in ours] == [(b[0].label, b[0].score) for b in theirs]


def test_a_declaration_without_pins_is_locked_to_all_files(client: Client) -> None:
    unpinned = {name: MINILM[name] for name in ("source", "loader")}
    body = {"backbone": unpinned, "input": {"modality": "text"}}
    text = json.dumps({"metadata": {"name": "pinned"}, "spec": body})
    with pytest.raises(InvalidArgument) as caught:
        client.models.plan(text)
    assert caught.value.field == "spec.backbone.revision"
    locked = client.models.lock(text)
    assert json.loads(locked.declaration)["spec"]["backbone"] == MINILM


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"modality": "image"}, "spec.input.modality"),
        ({"modality": "text", "tokenizer": "0" * 64}, "spec.input.tokenizer"),
        ({"modality": "text", "max_tokens": 1024}, "spec.input.max_tokens"),
    ],
)
def test_a_declaration_and_its_encoder_must_mean_the_same(
    client: Client, fields: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        client.models.plan(declaration("wrong", input=fields))
    assert caught.value.field == field


def test_a_restart_keeps_a_model_of_texts(server: RealServer, client: Client, topics: str) -> None:
    texts = sentences(8, 12)[0]
    before = client.predict(topics, Texts(texts)).top
    status: models_pb2.ModelStatus = client.models.get(topics).status
    server.restart()
    with server.client() as again:
        assert again.predict(topics, Texts(texts)).top == before
        assert again.models.get(topics).status.memory_digest == status.memory_digest
        again.learn(topics, [("The pitch was frozen solid.", "weather")])
        assert again.models.get(topics).status.sample_count == status.sample_count + 1
