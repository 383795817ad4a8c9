"""What a device says of each file: one record, whose names and JSON programs can rely on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everlearn_client.edge.folder_source import FolderSource
from everlearn_client.edge.runtime import Runtime
from everlearn_client.errors import FailedPrecondition
from everlearn_client.results import Predictions, ScoredLabel

VERSION = "models/m/versions/1"


class Model:
    """Stands for an EdgeModel: answers as it was told."""

    def __init__(self, answer: Predictions, *, task: str = "classification", version: str = VERSION) -> None:
        self.answer, self.task, self.version = answer, task, version
        self.lessons: list[tuple[Any, Any]] = []
        self.sends_samples, self.takes_texts = True, False

    def predict(self, samples: Any, *, scores: bool) -> Predictions:
        assert scores
        return self.answer

    def observe(self, sample: Any, label: Any, *, send: Any, step: str, scores_C: Any) -> str:
        if label == "refused":
            raise FailedPrecondition("no", reason="NO_FEATURES")
        self.lessons.append((label, scores_C))
        return "send"


def said(folder: Path, model: Model, *, label: str | None = None, seconds: float = 2.5) -> list[dict[str, Any]]:
    """Of one array in the folder, with this text as its label."""
    camera = folder / "camera"
    camera.mkdir()
    np.save(camera / "a.npy", np.zeros((4, 4, 3), np.uint8))
    if label is not None:
        (camera / "a.npy.label").write_text(label)
    now_s = [0.0]
    source = FolderSource(camera, labels="sidecar", settle_s=0.0, clock_s=lambda: 0.0)
    records: list[dict[str, Any]] = []
    runtime = Runtime(model, source, records.append, clock_s=lambda: now_s[0])  # type: ignore[arg-type]  # stands for one
    now_s[0] = seconds
    runtime.step(lambda: False)
    return records


def answer(**told: Any) -> Predictions:
    best = (ScoredLabel("mug", 1, 0.75), ScoredLabel("cup", 0, 0.25))
    scores = np.array([[0.25, 0.75]], np.float32)
    whole = {"version": VERSION, "top": (best[:1],), "labels": ("cup", "mug"), "scores_NC": scores} | told
    return Predictions(**whole, queue_ms=0.0, trunk_ms=0.0)


def test_an_answer_has_its_label_score_version_and_seconds(tmp_path: Path) -> None:
    assert said(tmp_path, Model(answer())) == [
        {"file": "a.npy", "label": "mug", "score": 0.75, "version": VERSION, "seconds": 2.5}
    ]


def test_a_lesson_has_its_truth_and_what_became_of_it(tmp_path: Path) -> None:
    model = Model(answer())
    (record,) = said(tmp_path, model, label="cup\n")
    assert (record["truth"], record["decision"]) == ("cup", "send")
    ((label, scores_C),) = model.lessons
    assert (label, scores_C.tolist()) == ("cup", [0.25, 0.75])


def test_of_several_labels_all_are_told_and_none_is_a_label_too(tmp_path: Path) -> None:
    model = Model(answer(top=((),)), task="multilabel")
    (record,) = said(tmp_path, model, label="\n")
    assert (record["labels"], record["truth"]) == ([], [])
    assert "label" not in record


def test_of_a_regression_values_are_told_and_a_lesson_is_numbers(tmp_path: Path) -> None:
    values = answer(top=(), labels=("celsius",), scores_NC=None, values_NK=np.array([[21.5]], np.float32))
    model = Model(values, task="regression")
    (record,) = said(tmp_path, model, label="20.25")
    assert (record["values"], record["truth"]) == ({"celsius": 21.5}, [20.25])
    (other := tmp_path / "other").mkdir()
    (record,) = said(other, model, label="warm")
    assert (record["values"], record["error"]["field"]) == ({"celsius": 21.5}, "label")


def test_what_is_like_nothing_learned_is_taught_as_unsure(tmp_path: Path) -> None:
    model = Model(answer(novelty=(7.0,)))
    (record,) = said(tmp_path, model, label="cup")
    assert (record["novelty"], record["abstained"], model.lessons) == (7.0, True, [("cup", None)])


@pytest.mark.parametrize("figure", [float("nan"), float("inf")])
def test_a_figure_that_json_has_no_word_for_is_null(tmp_path: Path, figure: float) -> None:
    odd = answer(top=((ScoredLabel("mug", 1, figure),),), novelty=(figure,))
    (record,) = said(tmp_path, Model(odd))
    assert (record["score"], record["novelty"], record["abstained"]) == (None, None, True)
    json.dumps(record, allow_nan=False)


def test_an_error_is_named_as_the_server_would(tmp_path: Path) -> None:
    (record,) = said(tmp_path, Model(answer()), label="refused")
    assert (record["label"], record["error"]["code"]) == ("mug", "FAILED_PRECONDITION")


def test_before_there_is_a_model_files_wait_where_they_are(tmp_path: Path) -> None:
    assert said(tmp_path, Model(answer(), version="")) == []
    assert [path.name for path in (tmp_path / "camera").iterdir()] == ["a.npy"]
