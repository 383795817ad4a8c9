"""Texts in the SDK and on disk: what travels, what a file means, and what a wrong one is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everlearn_client import Batch, InvalidArgument, Texts, split_batch
from everlearn_client._learn import LearnSession
from everlearn_client.cli.datasets import open_dataset
from everlearn_client.cli.target_files import open_targets
from everlearn_client.cli.texts import read_texts, read_unlabelled_texts
from everlearn_client.samples import to_message
from everlearn_protos.v1 import learn_pb2, models_pb2

TEXTS = ["it rains", 'two, to "one"', "Zürich 🌧"]
LABELS = ["weather", "sport", "weather"]


def test_texts_travel_as_they_are() -> None:
    message = to_message(Texts(TEXTS))
    assert message.WhichOneof("form") == "texts"
    assert list(message.texts.texts) == TEXTS


def test_long_texts_are_split_over_messages_and_none_is_lost() -> None:
    texts = [chr(97 + index % 26) * 40_000 for index in range(60)]
    parts = list(split_batch(Batch(Texts(texts), [str(index) for index in range(60)])))
    assert len(parts) > 2
    assert [text for part in parts for text in part.samples.texts] == texts  # type: ignore[union-attr]  # Texts in, Texts out
    assert [label for part in parts for label in part.labels] == [str(index) for index in range(60)]


@pytest.mark.parametrize(
    ("samples", "hint"),
    [
        (Texts("one text"), "list of str"),
        (Texts([b"bytes"]), "bytes; str"),  # type: ignore[list-item]  # the point
        (Texts(["half \ud800"]), "surrogate"),
    ],
)
def test_what_is_no_text_is_refused_here(samples: Texts, hint: str) -> None:
    with pytest.raises(InvalidArgument, match=hint):
        to_message(samples)


def test_a_text_and_its_label_are_a_batch_of_one() -> None:
    session = LearnSession("m", "c")
    session.open_request()
    opened = learn_pb2.Opened(epoch=1, credits=8, input=models_pb2.InputContract(max_batch_samples=64))
    session.on_response(learn_pb2.LearnResponse(opened=opened))
    session.add(("it rains", "weather"))
    (request,) = session.next_messages()
    assert list(request.batch.samples.texts.texts) == ["it rains"]
    assert list(request.batch.labels) == ["weather"]


def write(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


FILES = {
    "plain.csv": 'it rains,weather\n"two, to ""one""",sport\nZürich 🌧,weather\n',
    "named.csv": 'id,Label,Text\n1,weather,it rains\n2,sport,"two, to ""one"""\n3,weather,Zürich 🌧\n',
    "list.json": json.dumps([{"text": t, "label": label} for t, label in zip(TEXTS, LABELS, strict=True)]),
    "lines.jsonl": "\n".join(
        json.dumps({"sentence": t, "class": label}) for t, label in zip(TEXTS, LABELS, strict=True)
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_texts_and_labels_are_read_from_any_of_these(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name, FILES[name])
    assert read_texts(path) == (TEXTS, LABELS)
    assert [text for _, text in read_unlabelled_texts(path)] == TEXTS
    dataset = open_dataset(path, "text")
    (batch,) = dataset.batches(dataset.order(shuffle_seed=None, limit=2), batch=8)
    assert (batch.samples, list(batch.labels)) == (Texts(TEXTS[:2]), LABELS[:2])


def test_a_folder_of_text_files_has_a_class_a_subfolder(tmp_path: Path) -> None:
    for index, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True)):
        write(tmp_path, f"{label}/{index}.txt", text)
    assert read_texts(tmp_path) == ([TEXTS[1], TEXTS[0], TEXTS[2]], ["sport", "weather", "weather"])
    assert open_dataset(tmp_path, "text").unit == "texts"
    assert read_unlabelled_texts(tmp_path / "sport" / "1.txt") == [(str(tmp_path / "sport" / "1.txt"), TEXTS[1])]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text\nit rains\n", "line 2: there is no label"),
        ("a.csv", "text,label\nit rains,\n", "line 2: there is no label"),
        ("a.csv", "text,label\nit, rains,weather\n", "line 2: 3 columns, not 2"),
        ("a.csv", "1,it rains,weather\n", "name them in the first line"),
        ("a.csv", "", "has no texts"),
        ("a.jsonl", '{"text": "it rains", "label": "weather"}\n{"text": 3}', "line 2: an object such as"),
        ("a.jsonl", '{"text": "x", "label": "y"}\n{', "line 2 is not JSON"),
        ("a.json", "[[1]]", "entry 1: an object such as"),
        ("a.parquet", "", "neither a .csv"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_by_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        open_dataset(write(tmp_path, name, content), "text")


def test_a_folder_without_texts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidArgument, match="no texts"):
        open_dataset(tmp_path, "text")


def test_several_labels_or_values_of_a_text_are_read_too(tmp_path: Path) -> None:
    tags = models_pb2.InputContract(modality="text", task="multilabel")
    path = write(tmp_path, "tags.csv", 'text,label_1,label_2\nit rains,wet,grey\n"so, it is",,\n')
    dataset = open_targets(path, tags)
    (batch,) = dataset.batches(dataset.order(shuffle_seed=None, limit=None), batch=8)
    assert (batch.samples, list(batch.labels)) == (Texts(["it rains", "so, it is"]), [["wet", "grey"], []])
    stars = models_pb2.InputContract(modality="text", task="regression", outputs=[models_pb2.Output(name="stars")])
    path = write(tmp_path, "stars.jsonl", '{"text": "superb", "values": {"stars": 5}}\n')
    dataset = open_targets(path, stars)
    (batch,) = dataset.batches(dataset.order(shuffle_seed=None, limit=None), batch=8)
    assert (batch.samples, list(batch.labels)) == (Texts(["superb"]), [[5.0]])
    with pytest.raises(InvalidArgument, match="one named text is needed"):
        open_targets(write(tmp_path, "paths.csv", "path,label_1\na.jpg,wet\n"), tags)
