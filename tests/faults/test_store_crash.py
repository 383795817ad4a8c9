"""The commit protocol under fire: rows F3 to F8 of the failure matrix (reliability.md 2.4)."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.faults.store_writer import CLIENTS, learn, tally
from tests.store_rows import Fatal, blob_files, wait, with_model

from everlearn.errors import UnavailableError
from everlearn_server.store.store import EXIT_STATUS, Store

ROOT = Path(__file__).parents[2]
SMALL, LARGE = 100, 5 << 20
UNTIL = 12


def writer(folder: Path, *options: object) -> subprocess.Popen[str]:
    """A real process that learns."""
    command = [sys.executable, "-m", "tests.faults.store_writer", str(folder), *map(str, options)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, dict[str, int], str]:
    """Exit status, the last acknowledged sequences, standard error."""
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        # Not communicate(): it would miss what readline() has buffered.
        out, err = process.stdout.read(), process.stderr.read()
    return process.returncode, last_told(out), err


def last_told(out: str) -> dict[str, int]:
    """The last acknowledged sequence of each client."""
    told = dict.fromkeys(CLIENTS, 0)
    for line in out.splitlines():
        _, client, sequence = line.split()
        told[client] = int(sequence)
    return told


def check(folder: Path, acknowledged: dict[str, int]) -> dict[str, int]:
    """Opens the folder as a restart would. Every acknowledged batch is in the memory, and every batch in it once."""
    with Store.open(folder, check=True) as store:
        durable = {client: row.durable_sequence for client, row in wait(store.ledger.streams("digits")).items()}
        memory = wait(store.ledger.memory("digits"))
        held = tally(memory)
        for client, sequence in acknowledged.items():
            assert durable.get(client, 0) >= sequence, f"lost: {client} was told {sequence}, the ledger has {durable}"
        for client, sequence in durable.items():
            assert held.get(client, 0) == sequence, f"memory holds {held}, watermarks say {durable}"
        state = wait(store.ledger.state("digits"))
        log = wait(store.ledger.commits("digits"))
        if state is not None:
            assert (log[-1].id, log[-1].memory_digest) == (state.commit_id, state.digest)
            (latest,) = wait(store.catalog.aliases("digits"))
            assert json.loads(wait(store.catalog.version("digits", latest.number)).head) == held
        named = {state.digest} if state is not None and state.size > 4 << 20 else set()
        assert blob_files(folder) == named, "a temp file or an orphan is left"
        return durable


def resume(folder: Path, size: int) -> None:
    """The clients send on from where they are durable: in the end each batch has been counted once."""
    with Store.open(folder) as store:
        wait(learn(store, until=UNTIL, size=size))
    assert check(folder, dict.fromkeys(CLIENTS, UNTIL)) == dict.fromkeys(CLIENTS, UNTIL)


@pytest.mark.parametrize(
    ("point", "size", "committed"),
    [
        ("begun", SMALL, 2),
        ("before_commit", SMALL, 2),
        ("committed", SMALL, 3),
        ("blob_written", LARGE, 2),
        ("blob_renamed", LARGE, 2),
        ("before_commit", LARGE, 2),
        ("committed", LARGE, 3),
    ],
)
def test_a_kill_after_any_step_leaves_the_commit_before_or_the_whole_next_one(
    tmp_path: Path, point: str, size: int, committed: int
) -> None:
    status, acknowledged, err = ended(writer(tmp_path, "--size", size, "--kill-at", point))
    assert status == -signal.SIGKILL, err
    after_two = {"a": 5, "b": 4}
    assert acknowledged == after_two
    durable = check(tmp_path, acknowledged)
    assert durable == (after_two if committed == 2 else {"a": 6, "b": 6})
    resume(tmp_path, size)


def test_control_watermarks_in_a_transaction_of_their_own_are_found_out(tmp_path: Path) -> None:
    status, acknowledged, err = ended(writer(tmp_path, "--split", "--kill-at", "between"))
    assert status == -signal.SIGKILL, err
    with pytest.raises(AssertionError, match="memory holds"):
        check(tmp_path, acknowledged)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_kills_at_random_times_lose_nothing_and_count_nothing_twice(tmp_path: Path, seed: int) -> None:
    process = writer(tmp_path, "--until", 100_000, "--size", [SMALL, LARGE, 2 << 20][seed - 1])
    assert process.stdout is not None
    first = process.stdout.readline()
    time.sleep(random.Random(seed).uniform(0.0, 0.6))
    process.kill()
    status, acknowledged, err = ended(process)
    assert status == -signal.SIGKILL, err
    told_first = last_told(first)
    assert told_first["a"] > 0
    check(tmp_path, {client: max(acknowledged[client], told_first[client]) for client in CLIENTS})


@pytest.mark.parametrize(("size", "limit"), [(1 << 20, 3 << 20), (LARGE, 1 << 20)], ids=["in COMMIT", "in the blob"])
def test_a_write_that_the_system_refuses_ends_the_process_with_75(tmp_path: Path, size: int, limit: int) -> None:
    status, acknowledged, err = ended(writer(tmp_path, "--size", size, "--file-limit", limit))
    assert status == EXIT_STATUS, err
    check(tmp_path, acknowledged)
    resume(tmp_path, size)


@pytest.mark.parametrize("call", ["fsync", "rename", "write"])
def test_whichever_storage_call_of_the_blobs_fails_the_last_commit_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], call: str
) -> None:
    original = getattr(os, call)
    for nth in range(1, 9):
        folder, fatal, calls = tmp_path / str(nth), Fatal(), []

        def failing(*arguments: object, nth: int = nth, calls: list[object] = calls) -> object:
            calls.append(arguments)
            if len(calls) == nth:
                raise OSError(errno.EIO, "Input/output error")
            return original(*arguments)

        with Store.open(folder, on_fatal=fatal) as store:
            with_model(store)
            with monkeypatch.context() as patch:
                patch.setattr(os, call, failing)
                try:
                    wait(learn(store, until=4, size=LARGE))
                except UnavailableError:
                    assert len(fatal.errors) == 1
            assert len(calls) <= nth or not fatal.errors, "something went on after a storage error"
        check(folder, last_told(capsys.readouterr().out))
        if not fatal.errors:
            assert len(calls) < nth
            break
    assert nth > 1
