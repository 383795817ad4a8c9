"""The Hugging Face hub against a local one that serves real weights, and everything that can go wrong on the way."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from tests.local_hub import Fault, LocalHub, efficientnet_lite0, lite0_pth

from everlearn.errors import (
    AccessDeniedError,
    EverlearnError,
    ForbiddenFileError,
    IntegrityError,
    MovingReferenceError,
    PayloadTooLargeError,
    SourceNotFoundError,
    SpecError,
    UnavailableError,
)
from everlearn.hubs import hub_for
from everlearn.hubs.base import Hub, HubSettings
from everlearn.hubs.huggingface import HuggingFace
from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles

REPO = "timm/lite0"
SOURCE = f"hf://{REPO}"
TOKEN = "hf_secretsecretsecret"

FETCH = """
import sys
from pathlib import Path
from everlearn.hubs import hub_for
from everlearn.hubs.base import HubSettings
from everlearn.spec.model import Backbone
url, cache, revision = sys.argv[1:]
hub = hub_for(Backbone(source="hf://timm/lite0"), HubSettings(cache=Path(cache), endpoint=url))
hub.fetch(Backbone(source="hf://timm/lite0", revision=revision), lambda done, total: None)
"""


@pytest.fixture(scope="session")
def lite0() -> dict[str, bytes]:
    return efficientnet_lite0()


@pytest.fixture
def local() -> Iterator[LocalHub]:
    with LocalHub() as hub:
        yield hub


def hub_at(local: LocalHub | str, cache: Path, **settings: Any) -> Hub:
    url = local if isinstance(local, str) else local.url
    return hub_for(Backbone(source=SOURCE), HubSettings(cache=cache, endpoint=url, **settings))


def declared(**fields: Any) -> Backbone:
    """Not validated: a hub refuses by itself what a declaration would refuse too."""
    return Backbone(source=SOURCE).model_copy(update=fields)


def fetch(hub: Hub, commit: str | None, **fields: Any) -> BackboneFiles:
    return hub.fetch(declared(revision=commit, **fields), lambda done, total: None)


def parts(cache: Path) -> list[Path]:
    return list(cache.rglob("*.part"))


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
    deadline = time.monotonic() + 30
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
    deadline = time.monotonic() + 8
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


def test_a_moved_branch_changes_nothing_that_is_pinned(
    local: LocalHub, lite0: dict[str, bytes], tmp_path: Path
) -> None:
    old = local.add_repo(REPO, lite0)
    new = local.add_repo(REPO, {**lite0, "config.json": b"{}"})
    hub = hub_at(local, tmp_path)
    assert hub.resolve(declared(revision="main")).revision == new
    assert fetch(hub, old).paths["config.json"].read_bytes() == lite0["config.json"]
    local.move_branch(REPO, "main", old)
    assert hub.resolve(declared(revision="main")).revision == old
    assert fetch(hub, new).paths["config.json"].read_bytes() == b"{}"
    local.move_branch(REPO, "a" * 40, old)
    with pytest.raises(MovingReferenceError, match="only looks like"):
        fetch(hub, "a" * 40)


def test_another_commit_than_asked_for_is_refused_and_a_missing_header_is_not(
    local: LocalHub, lite0: dict[str, bytes], tmp_path: Path
) -> None:
    commit = local.add_repo(REPO, lite0)
    local.fault = Fault(wrong_commit_header="b" * 40)
    with pytest.raises(IntegrityError, match="serves commit"):
        fetch(hub_at(local, tmp_path), commit)
    local.fault = Fault(no_commit_header=True)
    fetch(hub_at(local, tmp_path), commit)


def test_what_is_missing_is_named_with_what_is_there(local: LocalHub, lite0: dict[str, bytes], tmp_path: Path) -> None:
    commit = local.add_repo(REPO, lite0)
    hub = hub_at(local, tmp_path)
    with pytest.raises(SourceNotFoundError, match=r"close to it: model\.safetensors"):
        fetch(hub, commit, file="modell.safetensors")
    with pytest.raises(SourceNotFoundError, match="no revision 'v9'"):
        hub.resolve(declared(revision="v9"))
    with pytest.raises(SourceNotFoundError, match="no revision"):
        fetch(hub, "c" * 40)
    with pytest.raises(SourceNotFoundError, match="no repository hf://timm/lite1"):
        hub.resolve(Backbone(source="hf://timm/lite1"))
    with pytest.raises(SourceNotFoundError, match="no token"):
        hub.fetch(Backbone(source="hf://timm/lite1", revision=commit), lambda done, total: None)
    with pytest.raises(SpecError, match="owner/name"):
        hub.resolve(declared(source="hf://timm/lite0@main"))


def test_a_gated_repository_says_what_to_do_and_opens_with_the_token(
    local: LocalHub, lite0: dict[str, bytes], tmp_path: Path
) -> None:
    commit = local.add_repo(REPO, lite0, gated=True, tokens=(TOKEN,))
    with pytest.raises(AccessDeniedError, match="is gated, and the server has no token: accept"):
        fetch(hub_at(local, tmp_path), commit)
    with pytest.raises(AccessDeniedError, match="token does not open it: accept"):
        fetch(hub_at(local, tmp_path, token="hf_other"), commit)
    fetch(hub_at(local, tmp_path, token=TOKEN), commit)


def test_the_token_goes_to_the_hub_only_and_into_no_log_or_error(
    lite0: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with LocalHub(lfs_redirect=True) as local:
        commit = local.add_repo(REPO, lite0, private=True, tokens=(TOKEN,))
        fetch(hub_at(local, tmp_path, token=TOKEN), commit)
        storage = [request for request in local.requests if request.origin == "storage"]
        assert storage
        assert not any("authorization" in request.headers for request in storage)
        assert all("authorization" in request.headers for request in local.requests if request.origin == "hub")
        local.add_repo(REPO, lite0, private=True, tokens=())
        failures: list[EverlearnError] = []
        for revision in ("main", "d" * 40):
            with pytest.raises(SourceNotFoundError) as caught:
                hub_at(local, tmp_path, token=TOKEN).resolve(declared(revision=revision))
            failures.append(caught.value)
    shown = caplog.text + "".join(line for failure in failures for line in traceback.format_exception(failure))
    assert "lite0" in shown
    assert TOKEN not in shown
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_no_token_is_taken_from_the_machine(
    local: LocalHub, lite0: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fetch(hub_at(local, tmp_path), local.add_repo(REPO, lite0))
    assert not any("authorization" in request.headers for request in local.requests)


def test_a_pickle_passes_only_when_the_spec_names_it_and_pins_it(local: LocalHub, tmp_path: Path) -> None:
    weights = lite0_pth()
    sha256 = hashlib.sha256(weights).hexdigest()
    commit = local.add_repo(REPO, {"pytorch_model.bin": weights, "config.json": b"{}"})
    hub = hub_at(local, tmp_path)
    with pytest.raises(ForbiddenFileError, match=r"only pickles \(pytorch_model\.bin\)"):
        hub.resolve(declared(revision="main"))
    with pytest.raises(ForbiddenFileError, match="format: torch"):
        fetch(hub, commit, file="pytorch_model.bin")
    with pytest.raises(ForbiddenFileError, match="sha256"):
        fetch(hub, commit, format="torch")
    assert not local.files_asked()
    assert hub.resolve(declared(revision=commit, format="torch")).files[0].sha256 == sha256
    files = fetch(hub, commit, format="torch", sha256=sha256)
    assert files.paths["pytorch_model.bin"].read_bytes() == weights


@pytest.mark.parametrize(
    "file", ["../config.json", "/etc/passwd.onnx", "a//b.onnx", "a\\b.onnx", "code.py", ".onnx/.."]
)
def test_a_file_that_leads_elsewhere_or_is_of_no_allowed_type_is_refused(
    local: LocalHub, tmp_path: Path, file: str
) -> None:
    commit = local.add_repo(REPO, {"model.onnx": b"x", "code.py": b"x"})
    with pytest.raises(ForbiddenFileError):
        fetch(hub_at(local, tmp_path), commit, file=file, format="onnx")
    assert not local.files_asked()


@pytest.mark.parametrize("path", ["../../evil.safetensors", "/evil.safetensors", "a/../../b.safetensors"])
def test_a_listing_with_a_hostile_path_is_refused_and_writes_nothing(
    local: LocalHub, lite0: dict[str, bytes], tmp_path: Path, path: str
) -> None:
    commit = local.add_repo(REPO, lite0)
    local.extra_tree_entries = [{"type": "file", "path": path, "oid": "0" * 40, "size": 3}]
    with pytest.raises(ForbiddenFileError, match="plain relative path"):
        fetch(hub_at(local, tmp_path), commit)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "entry",
    [
        {"oid": "../../x"},
        {"oid": "0" * 40, "lfs": {"oid": "../x", "size": 3}},
        {"oid": "0" * 40, "size": -1},
        {"oid": "0" * 40, "size": True},
        {"oid": 7},
    ],
)
def test_a_listing_that_is_none_is_refused(
    local: LocalHub, lite0: dict[str, bytes], tmp_path: Path, entry: dict[str, Any]
) -> None:
    commit = local.add_repo(REPO, lite0)
    local.extra_tree_entries = [{"type": "file", "path": "x.safetensors", "size": 3, **entry}]
    with pytest.raises(UnavailableError, match="does not answer as a Hugging Face hub"):
        fetch(hub_at(local, tmp_path), commit)


def test_a_file_larger_than_the_cap_is_refused_before_it_is_asked_for(
    local: LocalHub, lite0: dict[str, bytes], tmp_path: Path
) -> None:
    commit = local.add_repo(REPO, lite0)
    local.extra_tree_entries = [
        {"type": "file", "path": "big.onnx", "oid": "0" * 40, "size": 1, "lfs": {"oid": "0" * 64, "size": 2**40}}
    ]
    with pytest.raises(PayloadTooLargeError, match="8589934592"):
        fetch(hub_at(local, tmp_path), commit, format="onnx", file="big.onnx")
    assert not local.files_asked()


def test_the_sha256_of_the_spec_must_match_too(local: LocalHub, lite0: dict[str, bytes], tmp_path: Path) -> None:
    commit = local.add_repo(REPO, lite0)
    with pytest.raises(IntegrityError, match="is pinned"):
        fetch(hub_at(local, tmp_path), commit, sha256="0" * 64)
    assert not local.files_asked()
    fetch(hub_at(local, tmp_path), commit, sha256=hashlib.sha256(lite0["model.safetensors"]).hexdigest())


def test_a_hostile_safetensors_file_is_not_handed_over(local: LocalHub, tmp_path: Path) -> None:
    commit = local.add_repo(REPO, {"model.safetensors": (2**63).to_bytes(8, "little") + b"{}"})
    with pytest.raises(ForbiddenFileError, match="well-formed"):
        fetch(hub_at(local, tmp_path), commit)
    assert not (tmp_path / "models--timm--lite0/snapshots").exists()


def test_a_damaged_cache_is_healed_online_and_refused_offline(
    local: LocalHub, lite0: dict[str, bytes], tmp_path: Path
) -> None:
    commit = local.add_repo(REPO, lite0)
    path = fetch(hub_at(local, tmp_path), commit).paths["model.safetensors"]
    with path.open("r+b") as stream:
        stream.seek(1_000_000)
        stream.write(b"damaged")
    with pytest.raises(IntegrityError, match="go online once"):
        fetch(hub_at(local, tmp_path, offline=True), commit)
    assert fetch(hub_at(local, tmp_path), commit).paths["model.safetensors"].read_bytes() == lite0["model.safetensors"]


def test_the_unmodified_client_reads_our_cache(local: LocalHub, lite0: dict[str, bytes], tmp_path: Path) -> None:
    small = {name: lite0[name] for name in ("model.safetensors", "config.json")}
    commit = local.add_repo(REPO, small)
    ours = fetch(hub_at(local, tmp_path), commit)
    asked = len(local.requests)
    for name, path in ours.paths.items():
        theirs = huggingface_hub.hf_hub_download(
            REPO, name, revision=commit, cache_dir=tmp_path, local_files_only=True, token=False
        )
        assert Path(theirs) == path
    folder = huggingface_hub.snapshot_download(
        REPO, revision=commit, cache_dir=tmp_path, local_files_only=True, token=False
    )
    assert sorted(os.listdir(folder)) == sorted(small)
    assert not huggingface_hub.scan_cache_dir(tmp_path).warnings
    assert len(local.requests) == asked


def test_we_read_the_unmodified_clients_cache_and_it_works_against_the_local_hub(
    lite0: dict[str, bytes], tmp_path: Path
) -> None:
    with LocalHub(lfs_redirect=True) as local:
        commit = local.add_repo(REPO, lite0)
        folder = huggingface_hub.snapshot_download(REPO, cache_dir=tmp_path, endpoint=local.url, token=False)
        assert Path(folder).name == commit
        api = huggingface_hub.HfApi(endpoint=local.url, token=False)
        assert api.get_paths_info(REPO, ["config.json"], revision=commit)[0].path == "config.json"
        assert api.list_repo_refs(REPO).branches[0].target_commit == commit
        url = local.url
    files = fetch(hub_at(url, tmp_path), commit)
    assert files.paths["model.safetensors"].read_bytes() == lite0["model.safetensors"]
    # Older clients left no listing: then the names of the blobs say what they are.
    other = tmp_path / "models--timm--lite0"
    renamed = tmp_path / "older"
    renamed.mkdir()
    other.rename(renamed / other.name)
    (renamed / other.name / "trees" / f"{commit}.json").unlink()
    assert fetch(hub_at(url, renamed, offline=True), commit).sha256 == files.sha256


def test_two_at_once_download_once(local: LocalHub, lite0: dict[str, bytes], tmp_path: Path) -> None:
    commit = local.add_repo(REPO, lite0)
    found: list[BackboneFiles] = []
    threads = [threading.Thread(target=lambda: found.append(fetch(hub_at(local, tmp_path), commit))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(files == found[0] for files in found)
    assert len(local.files_asked()) == 2


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://[bad/x", "gopher://x/"], ids=lambda target: target[:5]
)
def test_a_redirect_to_something_else_is_not_followed(
    local: LocalHub, lite0: dict[str, bytes], tmp_path: Path, target: str
) -> None:
    commit = local.add_repo(REPO, lite0)
    local.fault = Fault(redirect=target)
    with pytest.raises((ForbiddenFileError, UnavailableError), match="redirects"):
        fetch(hub_at(local, tmp_path), commit)
