"""Which files a hub may hand over: by name first, so that nothing else is ever downloaded.

Safetensors, ONNX and JSON cannot run code. A torch file is a pickle, which can: it passes only where the spec names the
format and pins the file's sha256, and is then read once, in a limited child process.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import PurePosixPath

from everlearn.errors import ForbiddenFileError, PayloadTooLargeError, SourceNotFoundError, SpecError
from everlearn.spec.model import Backbone
from everlearn.spec.rules import TRANSFORMERS

FIELD_FILE = "spec.backbone.file"
FIELD_SHA256 = "spec.backbone.sha256"
FIELD_FORMAT = "spec.backbone.format"

SUFFIXES = {
    "safetensors": (".safetensors",),
    "onnx": (".onnx",),
    "torch": (".bin", ".pth", ".pt", ".ckpt", ".pkl"),
}
DEFAULT_FILE = {"safetensors": "model.safetensors", "onnx": "model.onnx", "torch": "pytorch_model.bin"}

MAX_WEIGHTS_BYTES = 8 * 2**30
"""No backbone for the edge is near this; a larger file would only fill the disk."""
MAX_CONFIG_BYTES = 2**20
MAX_TOKENIZER_BYTES = 32 * 2**20
"""A multilingual vocabulary of 250,000 pieces fits."""

_CONFIG = "config.json"
_ENCODERS = {
    _CONFIG: MAX_CONFIG_BYTES,
    "tokenizer.json": MAX_TOKENIZER_BYTES,
    # How Sentence Transformers pool: Reimers & Gurevych 2019.
    "modules.json": MAX_CONFIG_BYTES,
    "1_Pooling/config.json": MAX_CONFIG_BYTES,
    "sentence_bert_config.json": MAX_CONFIG_BYTES,
}


def side_files(backbone: Backbone) -> dict[str, int]:
    """Names of the files that belong beside a backbone's weights, and how large each may be, in bytes."""
    return _ENCODERS if backbone.loader == TRANSFORMERS else {_CONFIG: MAX_CONFIG_BYTES}


def format_of(name: str) -> str | None:
    """Format that a file's name stands for, or None.

    >>> format_of("onnx/model.ONNX"), format_of("model.gguf")
    ('onnx', None)
    """
    suffix = PurePosixPath(name).suffix.lower()
    return next((kind for kind, suffixes in SUFFIXES.items() if suffix in suffixes), None)


def check_plain(name: str, *, field: str = FIELD_FILE) -> None:
    """Raises ForbiddenFileError unless `name` is a plain relative path that stays where it is put.

    >>> check_plain("onnx/model.onnx")
    """
    parts = name.split("/")
    if len(name) > 1024 or any(part in ("", ".", "..") for part in parts) or any(c in name for c in "\\\0:\n\r"):
        raise ForbiddenFileError(
            f"{name[:80]!r} is not a plain relative path; right would be e.g. 'onnx/model.onnx'", field=field
        )


def check_weights_name(name: str, backbone: Backbone) -> None:
    """Raises ForbiddenFileError unless the file's type is the declared one."""
    check_plain(name)
    found = format_of(name)
    if found == backbone.format:
        return
    if found == "torch":
        raise ForbiddenFileError(
            f"{name!r} is a pickle, which can run code when it is read; right would be a .safetensors or .onnx file, "
            "or `format: torch` together with the file's `sha256`",
            field=FIELD_FORMAT,
        )
    if found:
        raise ForbiddenFileError(
            f"{name!r} is not what `format: {backbone.format}` says; right would be `format: {found}`",
            field=FIELD_FORMAT,
        )
    allowed = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
    raise ForbiddenFileError(f"{name!r} is of a type that is not read; read are {allowed}", field=FIELD_FILE)


def check_pinned(backbone: Backbone, scheme: str) -> None:
    """Raises ForbiddenFileError for a torch file without a digest, SpecError for a source that has no other pin."""
    if backbone.sha256 is not None:
        return
    remedy = "so `sha256` of the weights file is needed; `everlearn lock` writes it"
    if backbone.format == "torch":
        raise ForbiddenFileError(f"a torch file is a pickle, {remedy}", field=FIELD_SHA256)
    if scheme != "hf":
        raise SpecError(f"no commit pins a {scheme} source, {remedy}", field=FIELD_SHA256)


def check_size(name: str, size_bytes: int, limit_bytes: int) -> None:
    """Raises PayloadTooLargeError."""
    if size_bytes > limit_bytes:
        raise PayloadTooLargeError(
            f"{name!r} has {size_bytes} bytes, more than the {limit_bytes} that are read; take a smaller backbone",
            field=FIELD_FILE,
        )


def choose_weights(names: Iterable[str], backbone: Backbone) -> str:
    """The weights file among the files of a repository: the declared one, or the one that the format implies.

    Raises SourceNotFoundError with close names, ForbiddenFileError where only pickles are offered.
    """
    offered = sorted(names)
    wanted = backbone.file or DEFAULT_FILE[backbone.format]
    check_weights_name(wanted, backbone)
    if wanted in offered:
        return wanted
    pickles = [name for name in offered if format_of(name) == "torch"]
    usable = [name for name in offered if format_of(name) == backbone.format]
    if backbone.format != "torch" and pickles and not usable and backbone.file is None:
        raise ForbiddenFileError(
            f"{backbone.source} offers no {backbone.format} file, only pickles ({_some(pickles)}), which can run code "
            "when they are read; right would be a revision or fork that offers "
            f"{wanted}, or `format: torch` with `file` and `sha256`",
            field=FIELD_FORMAT,
        )
    close = get_close_matches(wanted, usable, n=3, cutoff=0.4) or usable
    hint = f"close to it: {_some(close)}" if close else f"it has {_some(offered)}" if offered else "it has no file"
    raise SourceNotFoundError(f"{backbone.source} has no file {wanted!r}; {hint}", field=FIELD_FILE)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
