"""What is run a second time, and what never is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests import again

PLAIN = "import pathlib\n\n\ndef test_one():\n    assert pathlib.Path('fine').exists()\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_plain.py").write_text(PLAIN)
    again.FAILED.parent.mkdir(parents=True)
    again.FAILED.write_text(json.dumps({"test_plain.py::test_one": True}))
    return tmp_path


@pytest.mark.parametrize(
    ("failed", "why"),
    [
        ([], "broken off"),
        ([f"tests/e2e/test_x.py::test_{number}" for number in range(again.MOST + 1)], "no accident"),
        (["tests/e2e/test_x.py::test_a", "tests/faults/test_no_raw_data.py::test_b"], "once is enough"),
        (["tests/properties/test_erasure.py::test_c"], "once is enough"),
        (["tests/e2e/test_x.py::test_a"], ""),
    ],
)
def test_many_failures_and_what_must_never_happen_are_not_asked_twice(failed: list[str], why: str) -> None:
    told = again.refusal(failed)
    assert why in told
    assert bool(told) == bool(why)


def test_what_passes_alone_holds_nothing_up_and_is_named(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "fine").touch()
    assert again.main() == 0
    assert "passed alone, to be looked into:\n    test_plain.py::test_one" in capfd.readouterr().out


def test_what_fails_again_fails(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert again.main() == 1
    assert "failed again:\n    test_plain.py::test_one" in capfd.readouterr().out


def test_without_a_record_of_what_failed_nothing_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert again.main() == 1
