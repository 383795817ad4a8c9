"""The `everlearn` command against a server on a real port: what it prints, what it asks and how it exits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from tests.fake_server import FakeServer
from typer.testing import CliRunner, Result

from everlearn_client import errors
from everlearn_client.cli import exit_codes, output
from everlearn_client.cli.app import app
from everlearn_client.errors import ERROR_OF_STATUS

DECLARATION = "metadata: {name: digits}\nspec: {backbone: b0, gate: strict}\n"
Run = Callable[..., Result]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def run(server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVERLEARN_SERVER", server.target)
    (tmp_path / "model.yaml").write_text(DECLARATION)

    def invoke(line: str, *, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, line, input=stdin)

    return invoke


def test_plan_apply_plan_goes_from_changes_to_none(run: Run) -> None:
    planned = run("plan -f model.yaml")
    assert planned.exit_code == exit_codes.CHANGES
    assert "create (plan " in planned.stdout
    assert "costs download_bytes 1e+06" in planned.stdout
    applied = run("apply -f model.yaml")
    assert applied.exit_code == exit_codes.OK
    assert "models/digits is ready (generation 1)" in applied.stdout
    assert [line.split(": ")[1] for line in applied.stderr.splitlines()] == ["download", "build", "ready"]
    again = run("plan -f model.yaml")
    assert (again.exit_code, again.stdout) == (exit_codes.OK, "no changes\n")
    assert run("apply -f model.yaml").exit_code == exit_codes.OK


def test_a_declaration_may_come_from_stdin(run: Run) -> None:
    assert run("apply -f -", stdin=DECLARATION).exit_code == exit_codes.OK
    assert run("diff -f -", stdin=DECLARATION).exit_code == exit_codes.OK


def test_diff_shows_what_differs(run: Run) -> None:
    assert run("diff -f model.yaml").exit_code == exit_codes.DIFFERENT
    run("apply -f model.yaml")
    Path("model.yaml").write_text(DECLARATION.replace("strict", "loose"))
    differing = run("diff -f model.yaml")
    assert differing.exit_code == exit_codes.DIFFERENT
    assert "-  gate: strict" in differing.stdout
    assert "+  gate: loose" in differing.stdout


def test_a_replacement_needs_a_yes_and_nobody_is_there_to_give_it(run: Run, server: FakeServer) -> None:
    run("apply -f model.yaml")
    Path("model.yaml").write_text(DECLARATION.replace("b0", "b1"))
    refused = run("apply -f model.yaml")
    assert refused.exit_code == exit_codes.REFUSED
    assert "--replace" in refused.stderr
    assert "DELETES the memory: 10 samples" in refused.stdout
    assert server.models["models/digits"].generation == 1
    assert run("apply -f model.yaml --replace").exit_code == exit_codes.OK
    Path("model.yaml").write_text(DECLARATION)
    assert run("apply -f model.yaml --yes").exit_code == exit_codes.OK
    assert server.models["models/digits"].generation == 3


@pytest.mark.parametrize(("answer", "code"), [("y", exit_codes.OK), ("n", exit_codes.REFUSED)])
def test_on_a_terminal_a_replacement_is_asked_for(
    run: Run, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    run("apply -f model.yaml")
    Path("model.yaml").write_text(DECLARATION.replace("b0", "b1"))
    monkeypatch.setattr(output, "_somebody_is_there", lambda: True)
    asked = run("apply -f model.yaml", stdin=f"{answer}\n")
    assert asked.exit_code == code
    assert "This deletes what the model has learned. Go on?" in asked.output


def test_apply_is_held_to_a_plan(run: Run) -> None:
    plan_id = json.loads(run("plan -f model.yaml -o json").stdout)["id"]
    assert run(f"apply -f model.yaml --plan {plan_id}").exit_code == exit_codes.OK
    stale = run(f"apply -f model.yaml --plan {plan_id}")
    assert stale.exit_code == exit_codes.STALE
    assert stale.stderr.startswith("error: plan ")


def test_a_dry_run_changes_nothing(run: Run, server: FakeServer) -> None:
    assert "nothing was changed" in run("apply -f model.yaml --dry-run").stdout
    assert server.models == {}


def test_a_typo_in_a_declaration_is_one_clear_line(run: Run) -> None:
    Path("model.yaml").write_text("metadata: {name: digits}\nsepc: {}\n")
    result = run("apply -f model.yaml")
    assert result.exit_code == exit_codes.INVALID
    assert result.stderr == "error: unknown key sepc; did you mean spec?\n"
    assert "Traceback" not in result.output


def test_a_failed_preparation_names_the_field(run: Run) -> None:
    Path("model.yaml").write_text("metadata: {name: digits}\nspec: {backbone: broken}\n")
    result = run("apply -f model.yaml")
    assert result.exit_code == exit_codes.REFUSED
    assert "error: digest differs (spec.backbone)" in result.stderr


def test_models_are_listed_shown_and_deleted(run: Run, server: FakeServer) -> None:
    for name in ("a", "b", "c"):
        server.ready_model(name)
    lines = run("get").stdout.splitlines()
    assert lines[0].split() == ["NAME", "STATE", "CLASSES", "SAMPLES", "STABLE", "LATEST", "ACCURACY"]
    assert [line.split()[0] for line in lines[1:]] == ["a", "b", "c"]
    shown = json.loads(run("get a -o json").stdout)
    assert (shown["name"], shown["generation"], shown["status"]["state"]) == ("models/a", 1, "READY")
    assert shown["status"]["aliases"] == {"stable": 1}
    assert yaml.safe_load(run("get a -o yaml").stdout) == shown
    assert yaml.safe_load(run("get a --spec-only").stdout)["metadata"]["name"] == "a"
    assert len(json.loads(run("get --spec-only -o json").stdout)) == 3
    assert "ready" in run("describe a").stdout
    assert run("delete a").exit_code == exit_codes.REFUSED
    assert run("delete a --yes").exit_code == exit_codes.OK
    gone = run("get a")
    assert (gone.exit_code, gone.stderr) == (exit_codes.NOT_FOUND, "error: there is no models/a (name)\n")


def test_what_is_printed_can_be_applied_again(run: Run) -> None:
    run("apply -f model.yaml")
    printed = run("get digits --spec-only").stdout
    assert run("plan -f -", stdin=printed).exit_code == exit_codes.OK


def test_versions_move(run: Run, server: FakeServer) -> None:
    server.ready_model()
    assert len(run("versions digits").stdout.splitlines()) == 4
    assert "stable is version 3" in run("promote digits").stdout
    assert "stable is version 1" in run("rollback digits --to 1").stdout
    refused = run("promote digits 9")
    assert (refused.exit_code, refused.stderr) == (exit_codes.REFUSED, "error: accuracy is below the gate\n")
    assert run("promote digits newest").exit_code == exit_codes.INVALID


def test_info_and_schema_and_lock(run: Run) -> None:
    assert "version:" in run("info").stdout
    assert json.loads(run("info -o json").stdout)["heads"] == ["ridge"]
    assert json.loads(run("schema").stdout) == {"title": "Model"}
    locked = run("lock -f model.yaml")
    assert locked.stdout.endswith("# locked\n")
    assert "locked revision = aaaa" in locked.stderr


def test_every_verb_that_answers_does_so_for_programs_too(run: Run, server: FakeServer) -> None:
    server.ready_model()
    assert json.loads(run("describe digits -o json").stdout) == json.loads(run("get digits -o json").stdout)
    assert json.loads(run("promote digits -o json").stdout)["status"]["aliases"]["stable"] == 3
    assert yaml.safe_load(run("rollback digits --to 1 -o yaml").stdout)["status"]["aliases"]["stable"] == 1
    differing = run("diff -f model.yaml -o json")
    assert differing.exit_code == exit_codes.DIFFERENT
    shown = json.loads(differing.stdout)
    assert (shown["name"], shown["different"]) == ("models/digits", True)
    assert "+  gate: strict" in shown["diff"]
    locked = json.loads(run("lock -f model.yaml -o json").stdout)
    assert locked == {"declaration": DECLARATION + "# locked\n", "lock": {"revision": "a" * 40}}
    assert json.loads(run("delete digits --yes -o json").stdout) == {"name": "models/digits", "deleted": True}


def test_lock_in_place_pins_the_file_that_a_link_leads_to_and_keeps_its_mode(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "model.yaml"
    target.chmod(0o640)
    (tmp_path / "link.yaml").symlink_to(target)
    locked = run("lock -i -f link.yaml")
    assert (locked.exit_code, locked.stdout) == (exit_codes.OK, "")
    assert "locked revision = aaaa" in locked.stderr
    assert target.read_text() == DECLARATION + "# locked\n"
    assert target.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "link.yaml").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.yaml", "model.yaml"]
    assert run("lock -i -f -").exit_code == exit_codes.INVALID


def test_predictions_are_a_table_or_json(run: Run, tmp_path: Path) -> None:
    for name, data in {"a.png": b"\x89PNG", "b.png": b"\x89PNG", "bad.png": b"GIF"}.items():
        (tmp_path / name).write_bytes(data)
    assert run("apply -f -", stdin=DECLARATION).exit_code == exit_codes.OK
    table = run("predict digits a.png b.png --top 2")
    assert table.exit_code == exit_codes.OK
    assert table.stdout.splitlines()[1].split() == ["a.png", "cat", "0.7500", "dog", "0.2500"]
    partly = run("predict digits a.png bad.png -o json")
    assert partly.exit_code == exit_codes.PARTLY
    answers = json.loads(partly.stdout)
    assert answers[0]["top"][0] == {"label": "cat", "index": 0, "score": 0.75}
    assert answers[1]["error"]["code"] == "INVALID_ARGUMENT"
    assert "bad.png: not an image (samples.encoded_images.images[0])" in partly.stderr
    assert run("predict digits bad.png").exit_code == exit_codes.INVALID
    assert run("predict digits nowhere.png").exit_code == exit_codes.INVALID


def test_an_export_lands_in_the_folder(run: Run, server: FakeServer, tmp_path: Path) -> None:
    result = run("export digits -d out")
    assert result.exit_code == exit_codes.OK
    assert (tmp_path / "out" / "model.onnx").read_bytes() == server.files["model.onnx"]
    assert json.loads(run("export digits -d out -o json").stdout)["parity"]["probes"] == 16


@pytest.mark.parametrize(
    "line", ["", "nonsense", "plan", "get --nonsense", "get -o xml", "plan -f nowhere.yaml", "get Digits"]
)
def test_wrong_usage_is_never_mistaken_for_pending_changes(run: Run, line: str) -> None:
    assert run(line).exit_code == exit_codes.INVALID


def test_no_server_is_said_in_one_line_with_a_way_out(run: Run, server: FakeServer) -> None:
    server.stop()
    result = run("info")
    assert result.exit_code == exit_codes.UNAVAILABLE
    assert "EVERLEARN_SERVER" in result.stderr


def test_every_error_has_an_exit_code_and_the_help_shows_them_all(run: Run) -> None:
    for kind in ERROR_OF_STATUS.values():
        assert exit_codes.exit_code_of(kind("x")) > exit_codes.CHANGES
    assert exit_codes.exit_code_of(errors.Fenced("x")) == exit_codes.STALE
    shown = " ".join(run("--help").stdout.split())
    assert len(exit_codes.table()) == 11
    for line in exit_codes.table():
        assert " ".join(line.split()) in shown


def test_a_missing_extra_is_explained(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise ModuleNotFoundError(\"No module named 'typer'\", name='typer')")
    code = "from everlearn_client.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 3
    assert "pip install 'everlearn[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_shells_can_complete(run: Run) -> None:
    asked = {"_EVERLEARN_COMPLETE": "complete_bash", "COMP_WORDS": "everlearn pre", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "from everlearn_client.cli.app import app; app(prog_name='everlearn')"],
        capture_output=True,
        text=True,
        env={**os.environ, **asked},
        check=True,
    )
    assert done.stdout.split() == ["predict"]


def test_ctrl_c_stops_cleanly_and_says_what_is_durable(server: FakeServer, tmp_path: Path) -> None:
    server.ready_model()
    server.faults.answer_delay_s = 0.02
    (tmp_path / "data.csv").write_text("".join(f"x.png,l{i}\n" for i in range(3000)))
    (tmp_path / "x.png").write_bytes(b"\x89PNG")
    command = ["learn", "digits", str(tmp_path / "data.csv"), "--batch", "1", "--client", "me", "-s", server.target]
    code = f"import sys; sys.argv[1:] = {command!r}; from everlearn_client.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    begun = threading.Event()
    while len(server.committed) < 8 and process.poll() is None:
        begun.wait(0.02)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=240)
    assert process.returncode == exit_codes.INTERRUPTED, said
    durable = server.learners[("models/digits", "me")].durable
    assert 8 <= durable < 3000
    assert f"up to sequence {durable} is durable" in said
    assert f"{durable} samples in {durable} batches, durable" in printed
