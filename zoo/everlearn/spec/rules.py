"""What single fields of a declaration may be, as plain functions: each returns its value or raises ValueError.

Messages say what was wrong, then what would be right; `everlearn.spec.load` puts the field's path in front.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence

NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
HEX64 = r"^[0-9a-f]{64}$"
COMMIT = re.compile(r"[0-9a-f]{40}")
EXACT_VERSION = re.compile(r"[0-9][A-Za-z0-9.!+_-]*")
IDENTITY = "identity"
"""The source of a model without a network, and its loader."""
MLP = "mlp"
"""What a source begins with that is a network of its own making, and its loader."""
MAX_LAYERS, MAX_WIDTH = 8, 4096
"""Of such a network: more is no small one."""
TRANSFORMERS = "transformers"
"""The loader of text encoders, whose weights need files beside them: config.json, tokenizer.json."""
MAX_VALUES = 65_536
"""Of one tensor: sums over d values hold d^2 numbers long before that."""
MAX_LABEL_BYTES = 256
"""Of a class label, in UTF-8; learners are held to it too."""

_HF = re.compile(r"hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_WHEEL = re.compile(r"wheel://[A-Za-z0-9][A-Za-z0-9._-]*/[^\s/]\S*")
_FOLDER = re.compile(r"folder:/\S+")
_MLP = re.compile(r"mlp:[0-9]{1,4}(x[0-9]{1,4})*")
_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,254}")
_EXTENSION_MEANS = {
    ".safetensors": "safetensors",
    ".onnx": "onnx",
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt", ".pkl"), "torch"),
}


def scheme(source: str) -> str:
    """The part of a source before its colon: `hf`, `wheel`, `folder`, `mlp` or `identity`."""
    return source.partition(":")[0]


def source(value: str) -> str:
    """A source is one of the known forms, and its path cannot leave where it starts."""
    if value == IDENTITY:
        return value
    if scheme(value) == MLP:
        mlp_widths(value)
        return value
    if not any(form.fullmatch(value) for form in (_HF, _WHEEL, _FOLDER)):
        if value.startswith("hf://") and re.search(r"[@#:]", value[5:]):
            raise ValueError("takes no revision behind the name; write hf://owner/name here and the commit in revision")
        raise ValueError(
            "must be hf://owner/name, wheel://distribution/path, folder:/path, mlp:64x64 or identity; URLs are never "
            "fetched directly"
        )
    if ".." in value.split("/"):
        raise ValueError("must not contain '..'; name the file itself")
    return value


def loaded_by_itself(backbone: dict[str, object]) -> dict[str, object]:
    """A backbone as it was declared, with loader and seed where its source has no files and says all by itself."""
    source = backbone.get("source")
    kind = scheme(source) if isinstance(source, str) else ""
    if kind == MLP:
        return {"loader": kind, **backbone, "seed": 0 if backbone.get("seed") is None else backbone["seed"]}
    return {"loader": kind, **backbone} if kind == IDENTITY else backbone


def mlp_widths(of_source: str) -> tuple[int, ...]:
    """Widths of the layers that a source of that form names, lowest first.

    >>> mlp_widths("mlp:128x64")
    (128, 64)
    """
    if not _MLP.fullmatch(of_source):
        raise ValueError("names its layers by their widths, such as mlp:64 for one and mlp:128x64 for two")
    widths = tuple(int(width) for width in of_source.partition(":")[2].split("x"))
    if len(widths) > MAX_LAYERS or not all(1 <= width <= MAX_WIDTH for width in widths):
        raise ValueError(f"has layers {list(widths)}; up to {MAX_LAYERS} of 1 to {MAX_WIDTH} are allowed")
    return widths


def revision(value: str | None, of_source: str) -> str | None:
    """hf: a reference; wheel: an exact version; folder: nothing."""
    kind = scheme(of_source)
    if value is None:
        return None
    if kind in (IDENTITY, MLP):
        raise ValueError(f"{kind} has no files and no revisions; leave it out")
    if kind == "folder":
        raise ValueError("a folder has no revisions; leave it out and pin the file with sha256")
    if kind == "wheel" and not EXACT_VERSION.fullmatch(value):
        raise ValueError(f"must be one exact version such as 1.2.0, not {value!r}")
    if not _REFERENCE.fullmatch(value) or ".." in value:
        raise ValueError(f"{value!r} is no commit, branch or tag; write the 40 hex digits of a commit")
    return value


def file(value: str | None, of_source: str) -> str | None:
    """hf only: a relative path inside the repository."""
    if value is None:
        return None
    if scheme(of_source) != "hf":
        raise ValueError("only hf:// repositories hold several files; elsewhere the source names the file itself")
    if not value or value.startswith("/") or "\\" in value or ".." in value.split("/"):
        raise ValueError(f"{value!r} must be a path inside the repository, such as model.safetensors")
    return value


def file_format(value: str, of_source: str, of_file: str | None) -> str:
    """The format agrees with the file's extension, where that says anything."""
    name = of_source if scheme(of_source) != "hf" else (of_file or "")
    for extension, meant in _EXTENSION_MEANS.items():
        if name.lower().endswith(extension) and meant != value:
            raise ValueError(f"is {value}, but a file named *{extension} has format: {meant}")
    return value


def loader(value: str, of_format: str, of_source: str) -> str:
    """ONNX files go to the onnx loader, weights to the others, and no files to the identity and the MLP."""
    for own in (IDENTITY, MLP):
        if (value == own) != (scheme(of_source) == own):
            raise ValueError(f"source {own} and loader {own} belong together; write the source alone")
    if value == "onnx" and of_format != "onnx":
        raise ValueError(f"onnx reads ONNX graphs, not {of_format}; write format: onnx, or loader: timm for weights")
    if value in ("timm", TRANSFORMERS) and of_format == "onnx":
        raise ValueError(f"{value} reads weights, not ONNX graphs; write loader: onnx")
    return value


def normalisation(value: Sequence[float] | None, *, lowest_excluded: bool) -> None:
    """Means and deviations are of values in [0, 1], not of bytes."""
    for number in value or ():
        if number > 1:
            raise ValueError(f"is of values in [0, 1], so {number:g} is too large; divide byte statistics by 255")
        if number < 0 or (lowest_excluded and number == 0):
            raise ValueError(f"must be {'above 0' if lowest_excluded else 'at least 0'}, not {number:g}")


def shape(value: Sequence[int]) -> None:
    """Sizes of one sample's axes: at least one axis, not more values than sums can be kept of."""
    if not 1 <= len(value) <= 4:
        raise ValueError(f"has {len(value)} axes; one sample has 1 to 4, without the batch's, such as [13] or [50, 3]")
    if math.prod(value) > MAX_VALUES:
        raise ValueError(f"is {math.prod(value)} values; at most {MAX_VALUES}")


def ranges(value: Sequence[Sequence[float]], of_shape: Sequence[int]) -> None:
    """Ends of the values' range: one pair for all, or one for each place of the last axis."""
    if len(value) not in (1, of_shape[-1]):
        raise ValueError(
            f"has {len(value)} pairs; write one [low, high] for all values, or {of_shape[-1]}, one for each place of "
            "the last axis"
        )
    for low, high in value:
        if not low < high:
            raise ValueError(f"[{low:g}, {high:g}] is empty; write the lower end first")
        # Their difference must be a number in float32, and so must its inverse.
        if not 1e-30 < high - low < 1e30 or max(abs(low), abs(high)) > 1e30:
            raise ValueError(f"[{low:g}, {high:g}] is beyond float32; choose another unit")


def label(value: str) -> str:
    """A class label: 1 to 256 bytes of UTF-8 without control characters, not blank, no space at its ends.

    >>> label("scratch")
    'scratch'
    """
    if not value:
        raise ValueError("must not be empty")
    if len(value.encode()) > MAX_LABEL_BYTES:
        raise ValueError(f"{value[:20]!r}... has {len(value.encode())} bytes; at most {MAX_LABEL_BYTES}")
    if any(unicodedata.category(character) == "Cc" for character in value):
        raise ValueError(f"{value!r} contains a control character; write it without")
    if value != value.strip():
        raise ValueError(f"{value!r} begins or ends with a space; write it without")
    return value


def unique(values: Iterable[str]) -> None:
    """No value is given twice."""
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{value!r} is given twice; once is enough")
        seen.add(value)
