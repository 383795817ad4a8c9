"""`everlearn edge run` with a model of texts, the real all-MiniLM-L6-v2: files, folders and stdin, offline too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.test_server_texts import declaration
from tests.real_server import RealServer
from tests.texts import sentences
from typer.testing import CliRunner

from everlearn_client import Client, Texts
from everlearn_client.cli import exit_codes
from everlearn_client.cli.app import app
from everlearn_client.edge import EdgeModel, EdgeSettings, SendPolicy

MAIN = "from everlearn_client.cli import main; main()"


@pytest.fixture(scope="module")
def topics(server: RealServer, client: Client) -> str:
    server.declare(declaration("topics"))
    client.learn("topics", zip(*sentences(0, 8), strict=True))
    return "topics"


def run(server: RealServer, model: str, folder: Path, source: Path, *more: str) -> tuple[int, list[dict[str, Any]]]:
    line = ["edge", "run", model, "--folder", str(folder / "device"), "--source", str(source)]
    done = CliRunner().invoke(app, [*line, "--server", server.address, "--settle", "0", *more])
    return done.exit_code, [json.loads(each) for each in done.stdout.splitlines()]


def counts(client: Client, model: str) -> dict[str, int]:
    status = client.models.get(model).status
    return dict(zip(status.labels, status.samples_per_class, strict=True))


def test_a_file_of_lines_is_answered_as_the_server_answers_and_what_has_a_label_is_taught(
    server: RealServer, client: Client, topics: str, tmp_path: Path
) -> None:
    texts, labels = sentences(8, 12)
    lines = [json.dumps({"text": text, "label": label}) for text, label in zip(texts[:8], labels[:8], strict=True)]
    lines += [json.dumps(texts[8]), texts[9], "", *texts[10:]]
    (tmp_path / "some.jsonl").write_text("\n".join(lines))
    before = counts(client, topics)
    status, records = run(server, topics, tmp_path, tmp_path / "some.jsonl")
    assert status == exit_codes.OK
    assert [each["line"] for each in records] == [*range(1, 11), *range(12, 13 + len(texts) - 10 - 1)]
    version = int(records[0]["version"].rpartition("/")[2])
    served = client.predict(topics, Texts(texts), version=version)
    assert [each["label"] for each in records] == [top[0].label for top in served.top]
    for each, top in zip(records, served.top, strict=True):
        assert each["score"] == pytest.approx(top[0].score, abs=1e-4)
    assert [each.get("truth") for each in records] == [*labels[:8], *[None] * (len(texts) - 8)]
    after = counts(client, topics)
    assert sum(after.values()) - sum(before.values()) == 8


def test_a_folder_is_labelled_as_one_of_pictures_is_and_each_text_is_taught_once(
    server: RealServer, client: Client, topics: str, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    (source / "weather").mkdir(parents=True)
    (source / "weather" / "rain.txt").write_text("It rained\nall day long.\n")
    (source / "weather" / "more.jsonl").write_text('"Snow is expected."\n{"text": "A goal!", "label": "sport"}\n')
    (source / "weather" / "again.txt").write_text("It rained\nall day long.")
    (source / "weather" / "picture.jpg").write_bytes(b"is not looked at")
    before = counts(client, topics)
    status, records = run(server, topics, tmp_path, source, "--once", "--labels", "folder")
    assert status == exit_codes.OK
    told = {(each["file"], each.get("line")): (each["truth"], each["decision"]) for each in records}
    assert told == {
        ("weather/again.txt", None): ("weather", "send"),
        ("weather/more.jsonl", 1): ("weather", "send"),
        ("weather/more.jsonl", 2): ("sport", "send"),
        ("weather/rain.txt", None): ("weather", "duplicate"),
    }
    after = counts(client, topics)
    assert (after["weather"] - before["weather"], after["sport"] - before["sport"]) == (2, 1)
    assert sorted(path.name for path in (source / "done" / "weather").iterdir()) == [
        "again.txt",
        "more.jsonl",
        "rain.txt",
    ]


def test_lines_that_are_no_texts_are_told_and_the_others_are_answered(
    server: RealServer, topics: str, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_bytes(b'{"text": 3}\n{"text": "rain"\n\xff\xfe\n""\n"It rains."\n')
    status, records = run(server, topics, tmp_path, wrong)
    assert status == exit_codes.PARTLY
    assert [("error" in each, each["line"]) for each in records] == [(True, n) for n in (1, 2, 3, 4)] + [(False, 5)]
    assert {each["error"]["code"] for each in records[:4]} == {"INVALID_ARGUMENT"}
    assert records[4]["label"] == "weather"


def test_standard_input_is_answered_while_the_server_is_away_and_taught_once_it_is_back(
    server: RealServer, client: Client, topics: str, tmp_path: Path
) -> None:
    (tmp_path / "one.txt").write_text("It rains.\n")
    assert run(server, topics, tmp_path, tmp_path / "one.txt")[0] == exit_codes.OK  # the model is there from now on
    before = counts(client, topics)
    server.terminate()
    line = [sys.executable, "-c", MAIN, "edge", "run", topics, "--folder", str(tmp_path / "device"), "--source", "-"]
    line += ["--server", server.address, "--once"]
    lessons = [json.dumps({"text": text, "label": label}) for text, label in zip(*sentences(8, 9), strict=True)]
    done = subprocess.run(
        line,
        input="\n".join(lessons),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    server.start()
    assert done.returncode == 0, done.stderr
    records = [json.loads(each) for each in done.stdout.splitlines()]
    assert [(each["file"], each["line"]) for each in records] == [("-", n + 1) for n in range(len(lessons))]
    assert {each["decision"] for each in records} == {"send"}
    assert counts(client, topics) == before
    assert run(server, topics, tmp_path, tmp_path / "one.txt")[0] == exit_codes.OK
    assert sum(counts(client, topics).values()) - sum(before.values()) == len(lessons)


def test_features_of_texts_are_the_servers(client: Client, topics: str, tmp_path: Path) -> None:
    settings = EdgeSettings(policy=SendPolicy(send="features"))
    with EdgeModel(topics, folder=tmp_path, client=client, settings=settings) as edge:
        edge.pull()
        before = counts(client, topics)
        assert edge.observe("Stir, then simmer the soup.", "cooking") == "send"
        assert edge.flush().batches == 1 or edge.spool.counts["durable"] == (1, 1)
        assert edge.spool.dead_letters == 0
    assert counts(client, topics)["cooking"] == before["cooking"] + 1
