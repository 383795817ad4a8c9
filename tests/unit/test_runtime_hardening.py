"""What the launcher sets, seen in processes that were started for it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tests.faults.not_here import NotHereError
from tests.faults.process_walls import seccomp_is_here

from everlearn.runtime import hardening
from everlearn.runtime.hardening import is_hardened, observed, wipes, wiping
from everlearn.runtime.process import child_environment
from everlearn_server import cli

RUNS = """
import os, sys, tempfile
from everlearn.runtime.hardening import forbid_dumps, is_hardened, observed, use_private_temp
from everlearn.runtime.numpy_memory import keep_no_small_arrays
forbid_dumps()
keep_no_small_arrays()
folder = use_private_temp()
assert tempfile.gettempdir() == str(folder)
(folder / "some").write_text("thing")
protection = observed(os.environ)
assert is_hardened(protection) == protection["swap"].startswith("none"), protection
print(folder, flush=True)
"""
CONFINED = """
import os, socket, sys
from everlearn.runtime.sandbox import confine
walls = confine(open_files=3)
os.write(1, str(walls).encode())
def tries():
    yield lambda: os.open("/etc/passwd", os.O_RDONLY)
    yield lambda: os.open("/tmp/made", os.O_CREAT | os.O_WRONLY)
    yield lambda: socket.socket()
    yield lambda: os.fork()
    yield lambda: os.execv("/bin/true", ["true"])
    yield lambda: os.kill(os.getppid(), 0)
for attempt in tries():
    try:
        attempt()
    except OSError:
        continue
    os.write(1, b"it could")
"""


def run(code: str, *, then: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code + then]
    return subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=240, check=False)


def test_a_child_is_told_to_wipe_what_it_frees() -> None:
    assert wipes(child_environment())
    assert not wipes({})


def test_other_tunables_stay_and_the_thread_caches_are_off() -> None:
    told = wiping({"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7:glibc.pthread.rseq=0"})["GLIBC_TUNABLES"]
    assert told == "glibc.pthread.rseq=0:glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"


SMALL_ARRAYS = """
import ctypes, os, sys
import numpy as np
from tests.faults.memory_scan import count_in_memory
from everlearn.runtime.hardening import observed
from everlearn.runtime.numpy_memory import keep_no_small_arrays
if sys.argv[1] == "told":
    assert keep_no_small_arrays()
piece = np.frombuffer(os.urandom(40), np.uint8)
def use():
    for rows in range(2, 25):  # of 80 to 960 bytes
        both = np.concatenate([piece] * rows)
        both.reshape(rows, -1).copy().astype(np.float32)
use()
twice = lambda data: {"twice": data.count(piece.tobytes() * 2)}
hits = count_in_memory([os.getpid()], twice, 80)["twice"]
# `twice` itself makes two of what it looks for, and lets go of them.
print(hits, observed(os.environ)["heap"], sep="|")
"""


@pytest.mark.parametrize("told", ["told", "not told"])
def test_small_arrays_are_overwritten_as_all_is_and_control_without_being_told_they_are_not(told: str) -> None:
    command = [sys.executable, "-c", SMALL_ARRAYS, told]
    paths = os.pathsep.join([child_environment()["PYTHONPATH"], str(Path(__file__).parents[2])])
    environment = child_environment({"PYTHONPATH": paths})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    hits, _, heap = done.stdout.strip().partition("|")
    assert heap == ("wiped when freed" if told == "told" else "wiped when freed, but for small arrays")
    assert (int(hits) == 0) == (told == "told")


def test_a_hardened_process_says_so_and_its_temporary_folder_is_gone_with_it() -> None:
    done = run(RUNS)
    assert done.returncode == 0, done.stderr
    assert not Path(done.stdout.strip()).exists()


def test_the_folder_of_a_killed_process_is_private_and_swept_by_the_next() -> None:
    killed = run(RUNS, then="os.kill(os.getpid(), 9)")
    folder = Path(killed.stdout.strip())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert run(RUNS).returncode == 0
    assert not folder.exists()


def test_a_process_that_was_not_hardened_says_what_is_missing() -> None:
    found = observed({})
    assert found["heap"] == "not wiped when freed"
    assert found["temporary_files"] == "shared folder"


SWAPS = """Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority
/dev/sda2                               partition\t1048572\t\t0\t\t-2
/swap\\040file                           file\t\t1048572\t\t0\t\t-3
/dev/zram0                              partition\t1048572\t\t0\t\t100
/dev/zram1                              partition\t1048572\t\t0\t\t100
/dev/dm-0                               partition\t1048572\t\t0\t\t-4
/dev/dm-1                               partition\t1048572\t\t0\t\t-5
"""


def test_swap_is_safe_where_it_is_encrypted_or_stays_in_ram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "swaps").write_text(SWAPS)
    for name, text in {
        "zram0/backing_dev": "none\n",
        "zram1/backing_dev": "/dev/sdb1\n",
        "dm-0/dm/uuid": "CRYPT-PLAIN-swap\n",
        "dm-1/dm/uuid": "LVM-abc\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(hardening, "_SWAPS", tmp_path / "swaps")
    monkeypatch.setattr(hardening, "_BLOCK_DEVICES", tmp_path)
    assert observed({})["swap"] == "/dev/sda2, /swap\\040file, /dev/zram1, /dev/dm-1"
    (tmp_path / "swaps").write_text(SWAPS.splitlines()[0])
    assert observed({})["swap"].startswith("none")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("heap", "not wiped when freed"),
        ("core_dumps", "possible"),
        ("temporary_files", "shared folder"),
        ("swap", "/dev/sda2"),
    ],
)
def test_a_server_is_hardened_where_nothing_at_all_is_missing(what: str, said: str) -> None:
    whole = {"heap": "wiped when freed", "core_dumps": "off", "temporary_files": "private, in RAM", "swap": "none that"}
    assert is_hardened(whole)
    assert not is_hardened(whole | {what: said})


def test_a_confined_process_opens_nothing_and_starts_nothing() -> None:
    done = run(CONFINED)
    assert done.returncode == 0, done.stderr
    if "alone" in done.stdout:
        assert not seccomp_is_here()
        raise NotHereError(f"a process that is confined by {done.stdout}")
    assert "it could" not in done.stdout


def test_the_server_replaces_itself_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, str]] = []

    class Replaced(Exception):  # noqa: N818  # what execve does not come back from
        pass

    def execve(program: str, arguments: list[str], environment: dict[str, str]) -> None:
        asked.append(environment)
        raise Replaced

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(sys, "argv", ["everlearn-server"])
    for name in ("MALLOC_PERTURB_", "EVERLEARN_RESTARTED", "EVERLEARN_UNHARDENED"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Replaced):
        cli.main()
    assert wipes(asked[0])
    assert asked[0]["EVERLEARN_RESTARTED"] == "1"
