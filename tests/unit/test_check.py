"""`everlearn-server check`: finds each kind of damage, and nothing in a folder that is whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests import data_folders as folders
from tests import tiny
from tests.data_folders import blob, flip, flip_column, reseal, sql
from tests.real_server import RealServer
from typer.testing import CliRunner

from everlearn.errors import NotFoundError, PreconditionError, UnavailableError
from everlearn_server.check.findings import Report
from everlearn_server.check.folder import check
from everlearn_server.command import app
from everlearn_server.store import migrate
from everlearn_server.store.database import NAME
from everlearn_server.store.store import Store

TRUNK = "SELECT trunk_digest FROM model WHERE name = 'tiny'"
EXPORTED = "SELECT sha256 FROM export_file WHERE file_name = 'model.onnx' ORDER BY version_number LIMIT 1"
LAST = "(SELECT max(id) FROM commit_log WHERE model = 'tiny')"
STABLE = "(SELECT number FROM alias WHERE model = 'tiny' AND alias = 'stable')"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check") / "data"
    folders.make(folder)
    return folder


def told(report: Report) -> list[str]:
    return [f"{finding.where}: {finding.problem}" for finding in report.damaged]


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_folder_that_is_whole_has_no_findings_and_is_left_as_it_is(whole: Path) -> None:
    before = digests(whole)
    report = check(whole)
    assert report.findings == []
    assert digests(whole) == before
    tags, tiny = report.models
    assert (tiny.name, tiny.samples, tiny.classes, tiny.clients, tiny.exports) == ("tiny", 60, 2, 2, 3)
    assert (tags.name, tags.samples, tags.classes) == ("tags", 4, 2)
    assert tiny.versions >= 3
    assert tiny.commit > 6
    assert (report.revision, len(report.timeline)) == (migrate.head(), 32)
    assert report.blobs >= 4


def update(table: str, what: str, where: str = "model = 'tiny'") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        sql(folder, f"UPDATE {table} SET {what} WHERE {where}")

    return change


def drop(table: str, where: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        sql(folder, f"DELETE FROM {table} WHERE {where}")

    return change


@dataclass(frozen=True)
class Case:
    damage: Callable[[Path], object]
    found: str
    """Some finding begins so, or has it in it."""


CASES = {
    "a trunk's blob": Case(lambda f: flip(blob(f, TRUNK)), "other bytes than its name says"),
    "a trunk that is gone": Case(lambda f: blob(f, TRUNK).unlink(), "it is missing, and rows name it"),
    "an export's blob": Case(lambda f: flip(blob(f, EXPORTED)), "model.onnx: its blob"),
    "an export's size": Case(update("export_file", "size = size + 1"), "and the row says"),
    "a file of an export": Case(drop("export_file", "position = 0"), "a file of it is missing"),
    "a memory's bytes": Case(
        lambda f: flip_column(f, "memory", "content", "model = 'tiny'"),
        "model tiny, memory: its bytes do not match their digest",
    ),
    "a memory of label sets": Case(
        lambda f: flip_column(f, "memory", "content", "model = 'tags'"), "model tags, memory: its bytes do not match"
    ),
    "a count without its sample": Case(
        lambda f: reseal(f, folders.more_of_a_class), "it has 61 samples, and the row says 60"
    ),
    "a sum of no integers": Case(lambda f: reseal(f, folders.odd_sum), "disagree in parity at feature 3"),
    "squares below the means": Case(lambda f: reseal(f, folders.not_semidefinite), "is not positive semidefinite"),
    "squares too large": Case(lambda f: reseal(f, folders.too_large), "G is larger than 60 samples allow"),
    "a memory's samples": Case(update("memory", "sample_count = 59"), "60 samples were tested, and 59 learned"),
    "a memory's lineage": Case(update("memory", "lineage = 2"), "of lineage 2, and the model of 1"),
    "what was tested": Case(
        update("memory", "prequential_json = replace(prequential_json, '\"client-0\": [', '\"client-0\": [1')"),
        "model tiny, record of tests: it cannot be read",
    ),
    "a memory that is gone": Case(drop("memory", "model = 'tiny'"), "which has no memory"),
    "a memory of another commit": Case(
        update("commit_log", "memory_digest = 'x'", f"id = {LAST}"), "wrote another memory than the one that is there"
    ),
    "a commit that is gone": Case(
        drop("commit_log", f"id = (SELECT max(id) FROM commit_log WHERE model = 'tiny' AND id < {LAST})"),
        "it must follow",
    ),
    "the last commit": Case(drop("commit_log", f"id = {LAST}"), "the memory is of commit"),
    "a link": Case(update("commit_log", "parent = 1", f"id = {LAST}"), "follows 1; it must follow"),
    "a watermark that fell": Case(update("stream", "durable_sequence = 0"), "the commits moved watermarks"),
    "a watermark below zero": Case(update("stream", "epoch = 0"), "epoch 0, durable sequence"),
    "a client that came before it was": Case(update("stream", "first_commit = 999"), "its first commit is 999"),
    "a state to go back to": Case(
        lambda f: sql(f, "INSERT INTO moment VALUES ('tiny', 1, 1, 60, 'x', 3, X'010203')"),
        "model tiny, state of commit 1: its bytes do not match their digest",
    ),
    "a refusal of the future": Case(update("reject", "sequence = 99"), "batch 99 was refused and is not durable"),
    "a head": Case(
        lambda f: flip_column(f, "version", "head", f"model = 'tiny' AND number = {STABLE}"),
        "its bytes do not match their digest",
    ),
    "a version's labels": Case(update("version", "labels_json = '[]'"), "its head has other labels"),
    "a version's number": Case(update("model", "next_version = 1", "name = 'tiny'"), "was never given out"),
    "an alias of nothing": Case(update("alias", "number = 999"), "points to version 999, which is not there"),
    "an alias that moved by itself": Case(
        update("alias", f"number = (SELECT min(number) FROM version WHERE model = 'tiny' AND number < {STABLE})"),
        "and was last moved to",
    ),
    "a stable version that failed": Case(update("version", "gate_passed = 0"), "alias stable: it points to version"),
    "a trunk's row": Case(drop("trunk", "1"), "model tiny: there is no trunk"),
    "a declaration": Case(
        update("model", "declaration = 'kind: {'", "name = 'tiny'"), "its declaration cannot be read"
    ),
    "an operation": Case(update("operation", "request_json = '{'"), "cannot be read"),
    "an orphan": Case(update("stream", "model = 'gone'", "model = 'tags'"), "belongs to a model that is not there"),
    "the timeline": Case(drop("timeline", "1"), "it has 0 timelines"),
    "the key": Case(lambda f: (f / "keys" / "master").write_bytes(b"short"), "keys/master has 5 bytes"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_damage_is_found(whole: Path, tmp_path: Path, name: str) -> None:
    case, folder = CASES[name], folders.copied(whole, tmp_path / "data")
    case.damage(folder)
    found = told(check(folder))
    assert any(case.found in line for line in found), found


def test_damage_of_one_model_is_not_put_down_to_another(whole: Path, tmp_path: Path) -> None:
    folder = folders.copied(whole, tmp_path / "data")
    flip_column(folder, "memory", "content", "model = 'tags'")
    assert [finding.where for finding in check(folder).damaged] == ["model tags, memory"]


def test_a_torn_page_is_found_and_the_rest_is_still_looked_at(whole: Path, tmp_path: Path) -> None:
    folder = folders.copied(whole, tmp_path / "data")
    flip(blob(folder, EXPORTED))
    ((page,),) = sql(folder, "SELECT rootpage FROM sqlite_master WHERE name = 'commit_log'")
    file, size = folder / NAME, 16 * 1024
    data = bytearray(file.read_bytes())
    data[(int(str(page)) - 1) * size : int(str(page)) * size] = b"\xff" * size
    file.write_bytes(data)
    found = told(check(folder))
    assert any(line.startswith("database: ") for line in found)
    assert any("model.onnx" in line or "other bytes" in line for line in found)


def test_what_is_no_database_is_damage(whole: Path, tmp_path: Path) -> None:
    folder = folders.copied(whole, tmp_path / "data")
    (folder / NAME).write_bytes(b"not a database, though long enough to be taken for one" * 100)
    assert any("database: it cannot be read" in line for line in told(check(folder)))


def test_what_a_crash_leaves_is_a_note_and_no_damage(whole: Path, tmp_path: Path) -> None:
    folder = folders.copied(whole, tmp_path / "data")
    orphan = hashlib.sha256(b"orphan").hexdigest()
    place = folder / "blobs" / "sha256" / orphan[:2]
    place.mkdir(exist_ok=True)
    (place / orphan).write_bytes(b"orphan")
    (place / ".part-1").write_bytes(b"half")
    (folder / "keys" / "master").unlink()
    report = check(folder)
    assert report.damaged == []
    assert len(report.findings) == 3


def test_the_last_commit_in_the_log_of_a_killed_server_is_read_without_touching_it(tmp_path: Path) -> None:
    with RealServer(tmp_path / "data") as server, server.client() as client:
        client.models.apply(tiny.declaration(tiny.write_backbone(tmp_path)))
        client.learn("tiny", [(tiny.images(8, 0), ["a"] * 8)])
        server.kill()
    assert (tmp_path / "data" / f"{NAME}-wal").stat().st_size
    before = digests(tmp_path / "data")
    report = check(tmp_path / "data")
    assert (report.damaged, report.models[0].samples) == ([], 8)
    assert digests(tmp_path / "data") == before


def test_a_folder_in_use_or_newer_or_none_is_refused_with_what_to_do(whole: Path, tmp_path: Path) -> None:
    folder = folders.copied(whole, tmp_path / "data")
    with Store.open(folder), pytest.raises(UnavailableError, match=r"everlearn-server backup --data .* --to FOLDER"):
        check(folder)
    sql(folder, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(PreconditionError, match="newer everlearn"):
        check(folder)
    with pytest.raises(NotFoundError, match="no data folder"):
        check(tmp_path)


def test_the_command_says_it_in_words_and_in_json_and_by_its_status(whole: Path, tmp_path: Path) -> None:
    folder, runner = folders.copied(whole, tmp_path / "data"), CliRunner()
    good = runner.invoke(app, ["check", "--data", str(folder)])
    assert (good.exit_code, good.output.splitlines()[-1]) == (0, "nothing is damaged")
    assert "tiny: 60 samples in 2 classes" in good.output
    flip_column(folder, "memory", "content", "model = 'tiny'")
    bad = runner.invoke(app, ["--data", str(folder), "check"])
    assert bad.exit_code == 1
    assert "DAMAGED  model tiny, memory: its bytes do not match their digest" in bad.output
    assert bad.output.splitlines()[-1] == "1 thing is damaged"
    data = json.loads(runner.invoke(app, ["check", "--data", str(folder), "--json"]).output)
    assert data["damaged"] is True
    assert data["findings"][0]["where"] == "model tiny, memory"
    assert runner.invoke(app, ["check", "--data", str(tmp_path / "none")]).exit_code == 2
