"""Settings of a server: flags first, then environment, then defaults. Nothing else reads the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from everlearn.errors import InvalidError
from everlearn.inputs.decoding import KINDS

DEVICES = ("cpu", "cuda")
LOG_LEVELS = ("debug", "info", "warning", "error")
_ADDRESS = re.compile(r"([^\s:\[\]]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One field, one meaning; units in names. Raises InvalidError that names the field."""

    data_dir: Path
    """Everything durable: database, blobs, hub cache."""
    listen: str = "127.0.0.1:8470"
    """Address and port; port 0 takes a free one. Loopback by default, because there is no authentication yet."""
    metrics_listen: str = ""
    """Address and port of Prometheus' /metrics; empty for none."""
    workers: int = field(default_factory=lambda: max(1, len(os.sched_getaffinity(0))))
    """Threads that run trunks: one a core."""
    queue_images: int = 256
    """Images that may wait, per lane."""
    device: str = "cpu"
    """`cpu` or `cuda`, of trunks and of gradient steps; `cuda` fails at start where it cannot be had."""
    visible_devices: str = ""
    """CUDA_VISIBLE_DEVICES, for the processes that make gradient steps: they see no variable but this and the next."""
    library_path: str = ""
    """LD_LIBRARY_PATH, for the same: some clusters put the driver's libraries where only that points."""
    max_batch: int = 0
    """Images in one trunk pass; 0 = 1 on a CPU, 32 on a GPU."""
    commit_share: float = 0.08
    """Share of the time that commits may keep the disk busy; below the promised tenth, because each pause is set by the
    commit before it."""
    working_set_bytes: int = 2**30
    """Of what models have learned, kept in RAM while nobody needs it; more is read again from the data folder then."""
    max_message_bytes: int = 16 * 2**20
    """Largest request of the Open Inference Protocol; everlearn.v1 has 4 MiB by contract, whatever this is."""
    hub_endpoint: str | None = None
    """Another address of the Hugging Face hub (a mirror)."""
    hub_token: str | None = field(default=None, repr=False)
    """For private and gated repositories."""
    hub_offline: bool = False
    """Only what is cached."""
    hub_cache: Path | None = None
    """Default: `hub` in the data folder."""
    min_free_bytes: int = 128 * 2**20
    """Free space on the data folder's disk below which nothing is learned, declared or exported; 0 to never look."""
    ready_file: Path | None = None
    """Written when the server answers: JSON with its address and process id."""
    log_level: str = "info"
    """debug, info, warning, error."""
    log_json: bool = False
    """One JSON object a line instead of text."""
    heartbeat_bytes: int = 136 * 2**10
    """What a learner is asked to send when all it sent is durable. gRPC keeps the last that it has read of a connection
    until more follows, in a buffer of up to 64 KiB; twice that much fills it. 0 for metered lines: then the last
    batches stay until the next ones come or the connection ends."""
    image_decoding: str = "apart"
    """Where image files are read: `apart`, in confined processes, one for each of `workers`; or `here`, in the server,
    where a hostile file meets all that the server holds."""
    unhardened: bool = False
    """For profilers and debuggers: freed memory is not wiped, core dumps and a look from outside are possible, and
    temporary files go to the shared folder. Not for real data."""
    grace_s: float = 5.0
    """How long running calls may finish at shutdown."""

    def __post_init__(self) -> None:
        _check("listen", self.listen, _is_address(self.listen), "address:port, such as 127.0.0.1:8470")
        told = not self.metrics_listen or _is_address(self.metrics_listen)
        _check("metrics_listen", self.metrics_listen, told, "address:port, such as 127.0.0.1:9090")
        _check("device", self.device, self.device in DEVICES, " or ".join(DEVICES))
        _check("heartbeat_bytes", self.heartbeat_bytes, 0 <= self.heartbeat_bytes <= 2**20, "from 0 to 1 MiB")
        _check("image_decoding", self.image_decoding, self.image_decoding in KINDS, " or ".join(KINDS))
        _check("log_level", self.log_level, self.log_level in LOG_LEVELS, "one of " + ", ".join(LOG_LEVELS))
        _check("workers", self.workers, 1 <= self.workers <= 1024, "from 1 to 1024")
        _check("queue_images", self.queue_images, self.queue_images >= 1, "at least 1")
        _check("max_batch", self.max_batch, 0 <= self.max_batch <= 4096, "from 0 to 4096")
        _check("commit_share", self.commit_share, 0 < self.commit_share <= 1, "above 0 and at most 1")
        _check("working_set_bytes", self.working_set_bytes, self.working_set_bytes >= 0, "0 or more")
        fits = 2**16 <= self.max_message_bytes <= 2**30
        _check("max_message_bytes", self.max_message_bytes, fits, "from 64 KiB to 1 GiB")
        _check("min_free_bytes", self.min_free_bytes, self.min_free_bytes >= 0, "0 or more")
        _check("grace_s", self.grace_s, 0 <= self.grace_s <= 3600, "from 0 to 3600")

    @property
    def providers(self) -> tuple[str, ...]:
        """ONNX Runtime execution providers, first choice first."""
        return ("CUDAExecutionProvider", "CPUExecutionProvider") if self.device == "cuda" else ("CPUExecutionProvider",)

    @property
    def images_a_pass(self) -> int:
        """Largest trunk batch."""
        return self.max_batch or (32 if self.device == "cuda" else 1)


def load_settings(flags: Mapping[str, object], environment: Mapping[str, str]) -> Settings:
    """Flags, then `EVERLEARN_*` and the hub's own variables, then defaults.

    None is a flag that was not given; a variable that is empty is not set. Raises InvalidError.
    """
    values: dict[str, Any] = {"data_dir": Path("everlearn-data"), **_from_environment(environment)}
    values |= {name: value for name, value in flags.items() if value is not None}
    for name in ("data_dir", "hub_cache"):
        if name in values:
            values[name] = values[name].absolute()
    return Settings(**values)


def _from_environment(environment: Mapping[str, str]) -> dict[str, object]:
    return {
        name: _read(variable, environment[variable], kind)
        for variable, (name, kind) in VARIABLES.items()
        if environment.get(variable)
    }


def _read(variable: str, text: str, kind: Callable[[str], object]) -> object:
    try:
        return kind(text)
    except ValueError:
        # The text is left out: a token may have been put into the wrong variable.
        raise InvalidError(f"{variable} must be {_MEANT[kind]}", field=variable) from None


def _switch(text: str) -> bool:
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in known:
        raise ValueError(text)
    return known[text.lower()]


_MEANT: dict[Callable[[str], object], str] = {
    int: "a whole number",
    float: "a number",
    _switch: "1 or 0, true or false, yes or no, on or off",
}
VARIABLES: Mapping[str, tuple[str, Callable[[str], object]]] = {
    "EVERLEARN_DATA": ("data_dir", Path),
    "EVERLEARN_LISTEN": ("listen", str),
    "EVERLEARN_METRICS_LISTEN": ("metrics_listen", str),
    "EVERLEARN_WORKERS": ("workers", int),
    "EVERLEARN_QUEUE_IMAGES": ("queue_images", int),
    "EVERLEARN_DEVICE": ("device", str),
    "CUDA_VISIBLE_DEVICES": ("visible_devices", str),
    "LD_LIBRARY_PATH": ("library_path", str),
    "EVERLEARN_MAX_BATCH": ("max_batch", int),
    "EVERLEARN_COMMIT_SHARE": ("commit_share", float),
    "EVERLEARN_WORKING_SET_BYTES": ("working_set_bytes", int),
    "EVERLEARN_MAX_MESSAGE_BYTES": ("max_message_bytes", int),
    "EVERLEARN_MIN_FREE_BYTES": ("min_free_bytes", int),
    "EVERLEARN_HUB_CACHE": ("hub_cache", Path),
    "EVERLEARN_READY_FILE": ("ready_file", Path),
    "EVERLEARN_LOG_LEVEL": ("log_level", str),
    "EVERLEARN_LOG_JSON": ("log_json", _switch),
    "EVERLEARN_HEARTBEAT_BYTES": ("heartbeat_bytes", int),
    "EVERLEARN_IMAGE_DECODING": ("image_decoding", str),
    "EVERLEARN_UNHARDENED": ("unhardened", _switch),
    "EVERLEARN_GRACE_S": ("grace_s", float),
    "HF_ENDPOINT": ("hub_endpoint", str),
    "HF_TOKEN": ("hub_token", str),
    "HF_HUB_OFFLINE": ("hub_offline", _switch),
}
"""Variable -> setting and how its text is read. The hub's variables are named as its users know them."""


def _is_address(text: str) -> bool:
    found = _ADDRESS.fullmatch(text)
    return found is not None and int(found[2]) <= 65535


def _check(name: str, value: object, is_right: bool, meant: str) -> None:
    if not is_right:
        raise InvalidError(f"{name} is {str(value)[:80]!r}; it must be {meant}", field=name)
