"""Lines as a device reads them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from everlearn_client.edge import line_source
from everlearn_client.edge.line_source import STDIN, lines, opened
from everlearn_client.edge.policy import Chooser, SendPolicy
from everlearn_client.edge.texts import read, read_line, unlike_others
from everlearn_client.errors import InvalidArgument


@pytest.mark.parametrize(
    ("line", "text", "labels"),
    [
        (b"it rains", "it rains", None),
        (b"  it rains\r", "it rains", None),
        (b'"it \\"rains\\""', 'it "rains"', None),
        (b'{"text": "it rains"}', "it rains", None),
        (b'{"Text": "it rains", "label": "weather"}', "it rains", ["weather"]),
        (b'{"sentence": "it rains", "labels": ["wet", "cold"]}', "it rains", ["wet", "cold"]),
        (b'{"text": "it rains", "labels": []}', "it rains", []),
        (b'{"text": "it rains", "y": 3.5}', "it rains", ["3.5"]),
        ("\ufeffdéjà vu".encode(), "déjà vu", None),
    ],
)
def test_a_line_is_a_text_or_json_with_its_label(line: bytes, text: str, labels: list[str] | None) -> None:
    found = read_line(line, 7)
    assert (found.number, found.text, found.labels, found.error) == (7, text, labels, None)


@pytest.mark.parametrize(
    "line", [b"{", b'"', b"{}", b'{"text": 1}', b'{"text": "a", "x": "b"}', b"\xff", b'{"text": null}']
)
def test_a_line_that_is_none_says_why_and_not_what_it_was(line: bytes) -> None:
    error = read_line(line, 1).error
    assert error is not None
    assert error.field == "text"


def test_files_hold_one_text_or_one_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.jsonl").write_text('"one"\n\n"two"\n')
    assert [(each.number, each.text) for each in read(tmp_path / "a.txt")] == [(None, "one\ntwo")]
    assert [(each.number, each.text) for each in read(tmp_path / "b.jsonl")] == [(1, "one"), (3, "two")]


def test_texts_are_compared_by_what_nobody_can_read_them_from() -> None:
    chooser = Chooser(SendPolicy(), lambda: 0.0)
    texts = [f"text {number}" for number in range(100)]
    kept = [chooser.decide(scores_C=None, sample=unlike_others(each), label="a") for each in [*texts, *texts]]
    assert kept == ["send"] * 100 + ["duplicate"] * 100
    assert chooser.decide(scores_C=None, sample=unlike_others("text 1"), label="b") == "send"
    assert unlike_others("\ud800").shape == (32,)
    assert not np.isclose(unlike_others("a"), unlike_others("b")).all()


def test_lines_come_as_they_are_written_and_the_last_needs_no_end() -> None:
    out, into = os.pipe()

    def write() -> None:
        for part in (b"on", b"e\ntw", b"o\n\n", b"thr", b"ee"):
            os.write(into, part)
        os.close(into)

    writer = threading.Thread(target=write)
    writer.start()
    assert list(lines(out, lambda: False)) == [(1, b"one"), (2, b"two"), (4, b"three")]
    writer.join()
    os.close(out)


def test_who_is_to_end_does_not_wait_for_a_line() -> None:
    out, into = os.pipe()
    looks = iter([False, False, True])
    assert list(lines(out, lambda: next(looks))) == []
    os.close(out)
    os.close(into)


def test_a_line_without_end_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(line_source, "MAX_LINE_BYTES", 100)
    (tmp_path / "long").write_bytes(b"short\n" + b"x" * 101)
    with opened(tmp_path / "long") as descriptor, pytest.raises(InvalidArgument, match="line 2 has more than"):
        list(lines(descriptor, lambda: False))
    with pytest.raises(InvalidArgument, match="cannot be read"), opened(tmp_path / "none"):
        pass
    with opened(STDIN) as descriptor:
        assert descriptor == 0
