"""The Hugging Face hub against a local one that serves real weights, and everything that can go wrong on the way."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
from tests.local_hub import Fault, LocalHub
from tests.unit.hub_calls import FETCH, REPO, SOURCE, declared, fetch, hub_at, parts

from everlearn.errors import (
    IntegrityError,
    MovingReferenceError,
    UnavailableError,
)
from everlearn.hubs.huggingface import HuggingFace
from everlearn.spec.model import Backbone


def test_a_pinned_fetch_brings_exactly_the_published_bytes(
    local: LocalHub, lite0: dict[str, bytes], tmp_path: Path
) -> None:
    commit = local.add_repo(REPO, lite0)
    steps: list[tuple[int, int]] = []
    files = hub_at(local, tmp_path).fetch(declared(revision=commit), lambda *step: steps.append(step))
    assert set(files.paths) == {"model.safetensors", "config.json"}
    for name, path in files.paths.items():
        assert path.read_bytes() == lite0[name]
        assert files.sha256[name] == hashlib.sha256(lite0[name]).hexdigest()
    total = sum(len(lite0[name]) for name in files.paths)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1] == (total, total)
    assert not any(request.path.endswith("README.md") for request in local.requests)


def test_a_branch_is_resolved_with_sizes_and_digests_and_refused_by_fetch(
    local: LocalHub, lite0: dict[str, bytes], tmp_path: Path
) -> None:
    commit = local.add_repo(REPO, lite0)
    hub = hub_at(local, tmp_path)
    resolved = hub.resolve(declared(revision="main"))
    weights, config = resolved.files
    assert resolved.revision == commit == hub.resolve(Backbone(source=SOURCE)).revision
    assert (weights.name, weights.size_bytes) == ("model.safetensors", len(lite0["model.safetensors"]))
    assert weights.sha256 == hashlib.sha256(lite0["model.safetensors"]).hexdigest()
    assert (config.name, config.size_bytes, config.sha256) == ("config.json", len(lite0["config.json"]), None)
    assert not weights.cached
    assert not local.files_asked()
    before = len(local.requests)
    for moving in ("main", None, commit[:12], commit.upper()):
        with pytest.raises(MovingReferenceError) as caught:
            fetch(hub, moving)
        assert caught.value.field == "spec.backbone.revision"
    assert len(local.requests) == before


def test_cached_files_are_served_without_a_request_and_without_a_hub(
    local: LocalHub, lite0: dict[str, bytes], tmp_path: Path
) -> None:
    commit = local.add_repo(REPO, lite0)
    first = fetch(hub_at(local, tmp_path), commit)
    asked = len(local.requests)
    assert fetch(hub_at(local, tmp_path), commit) == first
    assert fetch(hub_at(local, tmp_path, offline=True), commit) == first
    resolved = hub_at(local, tmp_path, offline=True).resolve(declared(revision=commit))
    assert all(file.cached for file in resolved.files)
    assert len(local.requests) == asked
    url = local.url
    local.stop()
    assert fetch(hub_at(url, tmp_path), commit) == first


def test_a_hub_that_is_gone_is_unavailable_and_so_is_what_offline_lacks(
    local: LocalHub, lite0: dict[str, bytes], tmp_path: Path
) -> None:
    commit = local.add_repo(REPO, lite0)
    with pytest.raises(UnavailableError, match="offline"):
        fetch(hub_at(local, tmp_path, offline=True), commit)
    assert not local.requests
    url = local.url
    local.stop()
    for attempt in (
        lambda: fetch(hub_at(url, tmp_path), commit),
        lambda: hub_at(url, tmp_path).resolve(declared(revision="main")),
    ):
        with pytest.raises(UnavailableError, match=r"127\.0\.0\.1"):
            attempt()


def test_a_hub_that_vanishes_in_mid_download_keeps_the_part_for_later(
    local: LocalHub, lite0: dict[str, bytes], tmp_path: Path
) -> None:
    commit = local.add_repo(REPO, lite0)
    local.fault = Fault(status=503, only="config.json")
    with pytest.raises(UnavailableError, match="503"):
        fetch(hub_at(local, tmp_path), commit)
    local.fault = None
    resolved = hub_at(local, tmp_path).resolve(declared(revision=commit))
    assert [file.cached for file in resolved.files] == [True, False]
    fetch(hub_at(local, tmp_path), commit)
    assert sum("model.safetensors" in request.path for request in local.files_asked()) == 1


def start_and_kill(local: LocalHub, commit: str, cache: Path) -> int:
    """Kills a downloading process -9 once the hub has stalled, and returns how much of the file it left."""
    local.fault = Fault(stall_after=8_000_000, only="model.safetensors")
    process = subprocess.Popen([sys.executable, "-c", FETCH, local.url, str(cache), commit])
    deadline = time.monotonic() + 120
    while not (found := [part.stat().st_size for part in parts(cache)]) or found[0] < 7_000_000:
        assert time.monotonic() < deadline, "the download never got there"
        assert process.poll() is None, "the download ended by itself"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    local.fault = None
    return parts(cache)[0].stat().st_size


def test_the_client_alone_starts_over_which_is_why_we_do_not_leave_it_to_it(
    local: LocalHub, lite0: dict[str, bytes], tmp_path: Path
) -> None:
    commit = local.add_repo(REPO, lite0)
    command = (
        "import sys, huggingface_hub as h; h.hf_hub_download('timm/lite0', 'model.safetensors', "
        "revision=sys.argv[3], cache_dir=sys.argv[2], endpoint=sys.argv[1], token=False)"
    )
    environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    arguments = [sys.executable, "-c", command, local.url, str(tmp_path), commit]
    # It writes in pieces of 10 MiB.
    local.fault = Fault(stall_after=15_000_000)
    process = subprocess.Popen(arguments, env=environment)
    deadline = time.monotonic() + 120
    while not [path for path in tmp_path.rglob("*.incomplete") if path.stat().st_size > 4_000_000]:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    local.fault = None
    subprocess.run(arguments, env=environment, check=True)
    assert [request.headers.get("range") for request in local.files_asked()] == [None, None]


def test_a_killed_download_goes_on_where_it_was(local: LocalHub, lite0: dict[str, bytes], tmp_path: Path) -> None:
    commit = local.add_repo(REPO, lite0)
    left = start_and_kill(local, commit, tmp_path)
    size = len(lite0["model.safetensors"])
    assert 0 < left < size
    asked, sent = len(local.files_asked()), len(local.sent_bytes)
    subprocess.run([sys.executable, "-c", FETCH, local.url, str(tmp_path), commit], check=True)
    again = local.files_asked()[asked]
    assert again.headers["range"] == f"bytes={left}-"
    assert local.sent_bytes[sent] == size - left
    assert (
        fetch(hub_at(local, tmp_path, offline=True), commit).paths["model.safetensors"].read_bytes()
        == (lite0["model.safetensors"])
    )
    assert not parts(tmp_path)


def test_a_part_that_a_power_cut_spoiled_is_replaced(
    local: LocalHub, lite0: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    commit = local.add_repo(REPO, lite0)
    left = start_and_kill(local, commit, tmp_path)
    with parts(tmp_path)[0].open("r+b") as part:
        part.seek(left - 4096)
        part.write(bytes(4096))
    files = fetch(hub_at(local, tmp_path), commit)
    assert files.paths["model.safetensors"].read_bytes() == lite0["model.safetensors"]
    assert "starting again" in caplog.text


def test_a_cut_connection_is_resumed_in_the_same_run(local: LocalHub, lite0: dict[str, bytes], tmp_path: Path) -> None:
    commit = local.add_repo(REPO, lite0)
    local.fault = Fault(cut_after=6_000_000, times=2, only="model.safetensors")
    fetch(hub_at(local, tmp_path), commit)
    ranges = [request.headers.get("range") for request in local.files_asked() if "safetensors" in request.path]
    assert ranges == [None, "bytes=6000000-", "bytes=12000000-"]


def test_a_stalled_hub_is_left_after_the_timeout_and_resumed(
    local: LocalHub, lite0: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HuggingFace, "timeout_s", 0.4)
    commit = local.add_repo(REPO, lite0)
    local.fault = Fault(stall_after=5_000_000, times=1, only="model.safetensors")
    fetch(hub_at(local, tmp_path), commit)
    assert [request.headers.get("range") for request in local.files_asked()][:2] == [None, "bytes=5000000-"]
    local.fault = Fault(stall_after=0)
    with pytest.raises(UnavailableError, match="Timeout"):
        fetch(hub_at(local, tmp_path / "other"), commit)


@pytest.mark.parametrize("fault", [Fault(ignore_range=True), Fault(shift_range=7)], ids=["whole file", "other range"])
def test_a_range_answered_with_something_else_never_ends_in_a_wrong_file(
    local: LocalHub, lite0: dict[str, bytes], tmp_path: Path, fault: Fault
) -> None:
    commit = local.add_repo(REPO, lite0)
    start_and_kill(local, commit, tmp_path)
    fault.only = "model.safetensors"
    fault.times = 1
    local.fault = fault
    files = fetch(hub_at(local, tmp_path), commit)
    assert files.paths["model.safetensors"].read_bytes() == lite0["model.safetensors"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_flipped_byte_is_refused_and_the_part_deleted(
    local: LocalHub, lite0: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    commit = local.add_repo(REPO, lite0)
    local.fault = Fault(flip_byte_at=len(lite0[name]) // 2, only=name)
    with pytest.raises(IntegrityError):
        fetch(hub_at(local, tmp_path), commit)
    assert not parts(tmp_path)
    assert not (tmp_path / "models--timm--lite0/snapshots" / commit / name).exists()
    # The control: the client alone takes the same byte for good.
    taken = huggingface_hub.hf_hub_download(
        REPO, name, revision=commit, cache_dir=tmp_path / "theirs", endpoint=local.url, token=False
    )
    assert Path(taken).read_bytes() != lite0[name]
    local.fault = None
    assert fetch(hub_at(local, tmp_path), commit).paths[name].read_bytes() == lite0[name]


@pytest.mark.parametrize("extra", [b"x", b"x" * 300_000])
def test_more_bytes_than_listed_are_refused(
    local: LocalHub, lite0: dict[str, bytes], tmp_path: Path, extra: bytes
) -> None:
    commit = local.add_repo(REPO, lite0)
    local.fault = Fault(extra_bytes=extra)
    with pytest.raises(IntegrityError, match="listed for the commit"):
        fetch(hub_at(local, tmp_path), commit)
    assert not parts(tmp_path)
