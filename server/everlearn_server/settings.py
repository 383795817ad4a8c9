"""Settings of a server: flags first, then environment, then defaults. Nothing else reads the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One field, one meaning; units in names."""

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
    """`cpu` or `cuda`; `cuda` fails at start where it cannot be had."""
    max_batch: int = 0
    """Images in one trunk pass; 0 = 1 on a CPU, 32 on a GPU."""
    commit_share: float = 0.1
    """Share of the time that commits may keep the disk busy."""
    max_message_bytes: int = 4 * 2**20
    """Largest request."""
    hub_endpoint: str | None = None
    """Another address of the Hugging Face hub (a mirror)."""
    hub_token: str | None = field(default=None, repr=False)
    """For private and gated repositories."""
    hub_offline: bool = False
    """Only what is cached."""
    hub_cache: Path | None = None
    """Default: `hub` in the data folder."""
    ready_file: Path | None = None
    """Written when the server answers: JSON with its address and process id."""
    log_level: str = "info"
    """debug, info, warning, error."""
    log_json: bool = False
    """One JSON object a line instead of text."""
    grace_s: float = 5.0
    """How long running calls may finish at shutdown."""

    @property
    def providers(self) -> tuple[str, ...]:
        """ONNX Runtime execution providers, first choice first."""
        return ("CUDAExecutionProvider", "CPUExecutionProvider") if self.device == "cuda" else ("CPUExecutionProvider",)

    @property
    def images_a_pass(self) -> int:
        """Largest trunk batch."""
        return self.max_batch or (32 if self.device == "cuda" else 1)


def from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Settings found in the environment: `EVERLEARN_*`, and the hub's own variables as its users know them."""
    known = {
        "EVERLEARN_DATA": "data_dir",
        "EVERLEARN_LISTEN": "listen",
        "EVERLEARN_METRICS_LISTEN": "metrics_listen",
        "EVERLEARN_DEVICE": "device",
        "EVERLEARN_LOG_LEVEL": "log_level",
        "HF_ENDPOINT": "hub_endpoint",
        "HF_TOKEN": "hub_token",
        "HF_HUB_OFFLINE": "hub_offline",
    }
    return {name: environment[variable] for variable, name in known.items() if environment.get(variable)}
