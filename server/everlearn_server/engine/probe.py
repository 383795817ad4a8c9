"""How well a model's backbone fits what it has learned so far, and what it costs. Changes nothing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from everlearn.metrics.transferability import Transferability, transferability
from everlearn_server.engine.live_model import LiveModel
from everlearn_server.engine.trunk_times import TrunkTimes

_FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Figures of one moment."""

    fit: Transferability
    feature_dim: int
    trunk_bytes: int
    """Of the ONNX file."""
    head_bytes: int
    """Of a linear head for the present labels."""
    trunk_s: float | None
    """Median seconds of an image's forward pass; None until one has passed."""
    timed_images: int
    """Behind that median."""


async def probe(model: LiveModel, times: TrunkTimes) -> Probe:
    """Raises PreconditionError: MODEL_NOT_READY, EMPTY_MEMORY, ONE_CLASS."""
    trunk = model.ready_trunk
    sums, scale = await model.writer.copy_sums()
    # Beside the event loop, on a copy, where heads are solved.
    fit = await asyncio.get_running_loop().run_in_executor(model.solvers, transferability, sums, scale)
    trunk_s, timed_images = times.median_s(trunk.session)
    labels = len(model.writer.held.shown.labels)
    return Probe(
        fit=fit,
        feature_dim=trunk.feature_dim,
        trunk_bytes=trunk.size_bytes,
        head_bytes=_FLOAT_BYTES * (trunk.feature_dim + 1) * labels,
        trunk_s=trunk_s,
        timed_images=timed_images,
    )
