"""Turns one pinned PyTorch weights file into safetensors, in a child process with limits.

A `.pth` is a pickle. It is read only if the declaration pins its sha256, once, with `weights_only=True`, in a process
without environment, with little memory to gain, little CPU time and no way to write much; what comes out is checked
tensors under names. The order of the file is kept, because `keys: by_order` needs it and safetensors sorts.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from everlearn.errors import BackboneError, IntegrityError
from everlearn.runtime.process import become_background_child, limit_memory, run_module
from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles

ORDER = "everlearn.order"
"""Key of the safetensors metadata that lists the tensors as the source file had them (JSON)."""

_MEMORY_PER_FILE_BYTE = 5  # the bytes read, the tensors, the tensors cloned, the file written, and one to spare
_MEMORY_SPARE = 512 << 20
_CPU_S = 300


def convert(source: Path, sha256: str, cache: Path, *, timeout_s: float = 600) -> Path:
    """The safetensors form of a weights file, from the cache where it was converted before.

    Raises IntegrityError if the file is not the one pinned, BackboneError if it is not a plain dict of tensors, or if
    the child ran into its limits.
    """
    wanted = cache / f"{sha256}.safetensors"
    if wanted.exists():
        return wanted
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = cache / f".{sha256}.{os.getpid()}.{os.urandom(4).hex()}"
    try:
        answer = run_module(
            __name__,
            [str(source), str(unfinished), sha256],
            timeout_s=timeout_s,
            task=f"reading the weights file {source.name}",
        )
        refusal = answer.decode()
        if refusal.startswith("digest "):
            raise IntegrityError(f"{source.name} is {refusal[7:]}, the pin says {sha256}")
        if refusal:
            raise BackboneError(f"{source.name}: {refusal}", field="spec.backbone.format")
        os.replace(unfinished, wanted)
    finally:
        unfinished.unlink(missing_ok=True)
    return wanted


def with_safetensors(backbone: Backbone, files: BackboneFiles, name: str, cache: Path) -> BackboneFiles:
    """The same files, with the safetensors form of the torch file `name` added as `name.safetensors`."""
    if backbone.sha256 is None:
        raise BackboneError("format torch needs the file's sha256", field="spec.backbone.sha256")
    converted = convert(files.paths[name], backbone.sha256, cache)
    return replace(files, paths={**files.paths, f"{name}.safetensors": converted})


def main(source: str, target: str, sha256: str) -> str:
    """The child: returns an empty string, or what is wrong with the file."""
    become_background_child()
    data = Path(source).read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        return f"digest {found}"
    import torch  # the child's own, and only after the digest is right
    from safetensors.torch import save_file

    _limit(len(data))
    try:
        loaded = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:
        return f"cannot be read as weights only ({str(error).strip().splitlines()[0][:200] or type(error).__name__})"
    tensors = single_dict(loaded, torch.Tensor)
    if isinstance(tensors, str):
        return tensors
    own = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    save_file(own, target, metadata={ORDER: json.dumps(list(own))})
    return ""


def single_dict(loaded: object, tensor_type: type) -> Mapping[str, Any] | str:
    """The one dict of tensors in what was loaded, or what is wrong with it.

    A state dict may lie under a key of its own, next to epochs and such; two candidates (`state_dict` and
    `state_dict_ema`) are refused, because the choice would be a guess.
    """

    def is_state(value: object) -> bool:
        return (
            isinstance(value, Mapping)
            and len(value) > 0
            and all(isinstance(key, str) and isinstance(item, tensor_type) for key, item in value.items())
        )

    if isinstance(loaded, Mapping) and is_state(loaded):
        return loaded
    if not isinstance(loaded, Mapping):
        return f"holds a {type(loaded).__name__}; a dict of tensors is needed"
    candidates = [key for key, value in loaded.items() if is_state(value)]
    if len(candidates) != 1:
        return f"holds {len(candidates)} dicts of tensors {sorted(map(str, candidates))}; exactly one is needed"
    state: Mapping[str, Any] = loaded[candidates[0]]
    return state


def _limit(size: int) -> None:
    """No more memory than the weights need on top of what torch maps, little CPU time, no big file."""
    limit_memory(_MEMORY_PER_FILE_BYTE * size + _MEMORY_SPARE)
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * size + (1 << 20),) * 2)


if __name__ == "__main__":
    sys.stdout.write(main(*sys.argv[1:]))
