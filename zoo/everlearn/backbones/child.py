"""Describes and builds backbones in a child process, so that the server neither loads torch nor runs a foreign graph
before it was checked, and outlives both.

    parent  --JSON on stdin-->  python -m everlearn.backbones.child  --JSON on stdout-->  parent
                                      | trunk.onnx, trunk.json in a folder of the work dir
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from everlearn import backbones, errors
from everlearn.backbones.base import BackboneDefaults, Loader, weights_name
from everlearn.backbones.manifest import dump_manifest, front_data, front_of, load_trunk
from everlearn.backbones.projection import project
from everlearn.backbones.tail import Tail
from everlearn.backbones.tail_manifest import dump_tail, load_tail
from everlearn.backbones.torch_file import with_safetensors
from everlearn.errors import BackboneError, EverlearnError
from everlearn.plugins import load
from everlearn.runtime.process import become_background_child, limit_memory, run_module
from everlearn.spec.model import Backbone
from everlearn.spec.recipe import Projection
from everlearn.values import BackboneFiles, Front, Trunk

_MEMORY_PER_FILE_BYTE = 12
"""Weights as read, as tensors, in the exporter's copies, in the graph, in two sessions."""
_MEMORY_SPARE = 2 << 30
"""Libraries that load late, and activations."""

__all__ = ["build_cut_in_child", "build_in_child", "describe_in_child", "dump_manifest", "load_trunk"]


def build_in_child(
    backbone: Backbone,
    files: BackboneFiles,
    front: Front,
    *,
    bits: int,
    work_dir: Path,
    projection: Projection | None = None,
    timeout_s: float = 600,
) -> Trunk:
    """Builds a trunk in a niced process of its own. Blocks: call it in a thread.

    `work_dir` also keeps weights that were converted from a torch file, by their sha256. Raises what the loader raises
    (BackboneError, IntegrityError, SpecError), and BackboneError if the child crashed, was killed or is late.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    if backbone.format == "torch":
        files = with_safetensors(backbone, files, weights_name(backbone, files), work_dir)
    with tempfile.TemporaryDirectory(prefix="trunk-", dir=work_dir) as folder:
        request = _request(backbone, files) | {"front": front_data(front), "bits": bits, "folder": folder}
        if projection is not None:
            request["projection"] = projection.model_dump(mode="json")
        _ask(request, timeout_s, f"building the trunk of {backbone.source}")
        return load_trunk((Path(folder) / "trunk.onnx").read_bytes(), (Path(folder) / "trunk.json").read_bytes())


def build_cut_in_child(
    backbone: Backbone,
    files: BackboneFiles,
    front: Front,
    *,
    bits: int,
    blocks: int | None,
    work_dir: Path,
    timeout_s: float = 600,
) -> tuple[Trunk, Tail]:
    """As `build_in_child`, in two: see `Loader.build_cut`."""
    work_dir.mkdir(parents=True, exist_ok=True)
    if backbone.format == "torch":
        files = with_safetensors(backbone, files, weights_name(backbone, files), work_dir)
    with tempfile.TemporaryDirectory(prefix="trunk-", dir=work_dir) as name:
        request = _request(backbone, files) | {"front": front_data(front), "bits": bits, "folder": name}
        _ask(request | {"cut": {"blocks": blocks}}, timeout_s, f"cutting {backbone.source}")
        folder = Path(name)
        trunk = load_trunk((folder / "trunk.onnx").read_bytes(), (folder / "trunk.json").read_bytes())
        parts = ("tail.onnx", "tail.safetensors", "tail.json")
        return trunk, load_tail(*((folder / part).read_bytes() for part in parts))


def describe_in_child(backbone: Backbone, files: BackboneFiles | None, *, timeout_s: float = 280) -> BackboneDefaults:
    """What the backbone says of itself. Costs seconds for timm (its import), and at its low priority minutes on a busy
    machine, for less than which a client waits (300 s); remember the answer.

    Raises as `build_in_child`.
    """
    told = _ask(_request(backbone, files), timeout_s, f"describing {backbone.source}")
    return BackboneDefaults(**told | {"mean": tuple(told["mean"]), "std": tuple(told["std"])})


def main() -> None:
    """The child: one request on stdin, one answer on stdout."""
    become_background_child()
    # Whatever a library prints must not mix with the answer.
    answer_to = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        answer = {"told": _carry_out(json.load(sys.stdin))}
    except EverlearnError as error:
        answer = {"error": {"kind": type(error).__name__, "message": error.message, "field": error.field}}
    with answer_to:
        json.dump(answer, answer_to)


def _carry_out(request: Mapping[str, Any]) -> dict[str, Any]:
    backbone = Backbone.model_validate_json(json.dumps(request["backbone"]))
    files = _files(request["files"])
    loader = load(backbones, backbone.loader, Loader, field="spec.backbone.loader")()  # type: ignore[type-abstract]  # the kind found is concrete
    _limit(files)
    if "front" not in request:
        return asdict(loader.describe(backbone, files))
    assert files is not None
    folder, front, bits = Path(request["folder"]), front_of(request["front"]), request["bits"]
    if "cut" in request:
        trunk, tail = loader.build_cut(backbone, files, front, bits=bits, blocks=request["cut"]["blocks"])
        (folder / "tail.onnx").write_bytes(tail.graph)
        (folder / "tail.safetensors").write_bytes(tail.weights)
        (folder / "tail.json").write_bytes(dump_tail(tail))
    else:
        trunk = loader.build(backbone, files, front, bits=bits)
    if "projection" in request:
        trunk = project(trunk, Projection.model_validate_json(json.dumps(request["projection"])))
    (folder / "trunk.onnx").write_bytes(trunk.onnx)
    (folder / "trunk.json").write_bytes(dump_manifest(trunk))
    return {"digest": trunk.digest}


def _limit(files: BackboneFiles | None) -> None:
    """A graph that a file describes in a few bytes may want any amount of memory."""
    size = sum(path.stat().st_size for path in files.paths.values()) if files is not None else 0
    limit_memory(_MEMORY_PER_FILE_BYTE * size + _MEMORY_SPARE)


def _request(backbone: Backbone, files: BackboneFiles | None) -> dict[str, Any]:
    told = None
    if files is not None:
        paths = {name: str(path.absolute()) for name, path in files.paths.items()}
        told = {"source": files.source, "revision": files.revision, "paths": paths, "sha256": dict(files.sha256)}
    return {"backbone": backbone.model_dump(mode="json"), "files": told}


def _files(told: Mapping[str, Any] | None) -> BackboneFiles | None:
    if told is None:
        return None
    paths = {name: Path(path) for name, path in told["paths"].items()}
    return BackboneFiles(source=told["source"], revision=told["revision"], paths=paths, sha256=told["sha256"])


def _ask(request: Mapping[str, Any], timeout_s: float, task: str) -> dict[str, Any]:
    data = run_module("everlearn.backbones.child", stdin=json.dumps(request).encode(), timeout_s=timeout_s, task=task)
    try:
        answer = json.loads(data)
    except ValueError as error:
        raise BackboneError(f"{task} ended without an answer") from error
    if "error" not in answer:
        told: dict[str, Any] = answer["told"]
        return told
    kind = getattr(errors, answer["error"]["kind"])
    raise kind(answer["error"]["message"], field=answer["error"]["field"])


if __name__ == "__main__":
    main()
