"""The Hugging Face hub: moved, missing, gated, hostile; and what the unmodified client makes of our cache."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import traceback
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from tests.local_hub import Fault, LocalHub, lite0_pth
from tests.unit.hub_calls import REPO, TOKEN, declared, fetch, hub_at

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
from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles


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
