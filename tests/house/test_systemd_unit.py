"""What can be said about the device's unit without booting systemd."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from tests.house.rules import ROOT
from typer.testing import CliRunner

from everlearn_client.cli.app import app

UNIT = ROOT / "clients" / "edge" / "everlearn-edge@.service"
TEXT = UNIT.read_text("utf-8")


def _service() -> dict[str, list[str]]:
    """Of [Service]: name -> its values, in order. systemd lets a name come twice, configparser does not."""
    section = TEXT.partition("[Service]\n")[2].partition("\n[")[0]
    found: dict[str, list[str]] = {}
    for line in section.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def _systemd_version() -> int:
    if shutil.which("systemd-analyze") is None:
        return 0
    told = re.search(r"systemd (\d+)", _analyze("--version").stdout)
    return int(told[1]) if told else 0


def _analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False)


def edge_run_variables() -> set[str]:
    """Environment variables that `everlearn edge run` reads."""
    group = typer.main.get_command(app)
    command = group.commands["edge"].commands["run"]  # type: ignore[attr-defined]  # groups have them
    return {str(each.envvar) for each in command.params if getattr(each, "envvar", None)}


def test_it_is_a_unit_with_its_three_sections() -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read_string(TEXT)
    assert parser.sections() == ["Unit", "Service", "Install"]


def test_what_it_starts_is_the_real_command_with_options_that_it_has() -> None:
    (started,) = _service()["ExecStart"]
    program, *words = shlex.split(started.replace("%i", "shelf").replace("%S", "/var/lib"))
    assert program == "/opt/everlearn/bin/everlearn"
    asked = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200"})
    assert asked.exit_code == 0, asked.output
    for option in (word for word in words if word.startswith("--")):
        assert option in asked.output
    installed = Path(sys.executable).with_name("everlearn")
    ran = subprocess.run([installed, *words, "--help"], capture_output=True, text=True, check=False)
    assert (ran.returncode, "Usage: everlearn edge run" in ran.stdout) == (0, True), ran.stderr
    assert CliRunner().invoke(app, [*words, "--no-such-option"]).exit_code == 3


def test_each_variable_that_it_names_is_one_that_the_command_reads() -> None:
    named = set(re.findall(r"\bEVERLEARN_[A-Z_]+", TEXT))
    assert "EVERLEARN_EDGE_SOURCE" in named
    assert named <= edge_run_variables()


def test_its_folders_are_those_it_may_write() -> None:
    service = _service()
    assert service["StateDirectory"] == ["everlearn-edge/%i"]
    assert "--folder %S/everlearn-edge/%i" in service["ExecStart"][0]
    (source,) = service["Environment"]
    assert service["ReadWritePaths"] == [f"-{source.removeprefix('EVERLEARN_EDGE_SOURCE=')}"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DynamicUser", "yes"),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("NoNewPrivileges", "yes"),
        ("CapabilityBoundingSet", ""),
        ("MemoryDenyWriteExecute", "yes"),
        ("LimitCORE", "0"),
        ("Restart", "on-failure"),
        ("StateDirectoryMode", "0700"),
    ],
)
def test_it_is_confined(name: str, value: str) -> None:
    assert _service()[name] == [value]


def test_it_is_limited_and_still_sees_which_boot_it_is() -> None:
    service = _service()
    assert {"MemoryMax", "TasksMax"} <= service.keys()
    assert "ProcSubset" not in service


@pytest.mark.skipif(_systemd_version() < 250, reason="systemd-analyze of 250 or newer is not installed here")
def test_systemd_understands_it_and_finds_it_confined(tmp_path: Path) -> None:
    here = tmp_path / UNIT.name.replace("@", "@shelf")
    here.write_text(TEXT.replace("/opt/everlearn/bin/everlearn", sys.executable))
    verified = _analyze("verify", "--man=no", str(here))
    assert (verified.returncode, verified.stderr) == (0, ""), verified.stderr
    judged = _analyze("security", "--offline=true", "--threshold=20", str(here))
    assert judged.returncode == 0, judged.stdout[-200:]
    loose = tmp_path / UNIT.name.replace("@", "@loose")
    loose.write_text(
        here.read_text().replace("MemoryMax=512M", "MemoryMost=512M").replace("ProtectSystem=strict\n", "")
    )
    assert "MemoryMost" in _analyze("verify", "--man=no", str(loose)).stderr
