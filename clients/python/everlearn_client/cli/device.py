"""What a device is: the name that lasts, what its owner says of it, and what has to be installed there."""

from __future__ import annotations

import uuid
from importlib.util import find_spec
from pathlib import Path

from everlearn_client.errors import InvalidArgument


def identity(folder: Path) -> str:
    """The device's own, made at the first start. Raises InvalidArgument where the folder cannot be written."""
    from everlearn_client.edge.durable_files import read_twice, write_twice

    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        told, _ = read_twice(folder, "identity")
        if told is None:
            told = {"generation": 1, "client_id": f"edge-{uuid.uuid4().hex[:16]}"}
            write_twice(folder, "identity", told)
    except OSError as error:
        raise InvalidArgument(f"{folder} cannot be used: {error.strerror}", field="--folder") from error
    return str(told["client_id"])


def device_labels(given: list[str]) -> dict[str, str]:
    """Of KEY=VALUE. Raises InvalidArgument."""
    found = dict(each.partition("=")[::2] for each in given if "=" in each)
    if len(found) < len(given):
        raise InvalidArgument("is KEY=VALUE, such as site=north, each key once", field="--device-label")
    return found


def check_extra() -> None:
    """Raises InvalidArgument where what a device needs is not installed."""
    missing = [name for name in ("onnxruntime", "zstandard", "PIL") if find_spec(name) is None]
    if missing:
        raise InvalidArgument(
            f"a device needs {', '.join(missing)}, not installed here: pip install 'everlearn[edge-run]'"
        )
