"""Features of one batch for several models, each backbone run once: what tries many recipes on one stream is built on.

Axes: B samples, d features of a trunk, M random features behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from everlearn.backbones.projection import weights
from everlearn.errors import InputError, PreconditionError
from everlearn.inputs.samples import Features, Raw, Samples
from everlearn.spec.input import Input
from everlearn.spec.recipe import Projection
from everlearn.values import FeaturesBd
from everlearn_server.engine.decode import Decoder
from everlearn_server.engine.live_model import LiveModel
from everlearn_server.engine.trunks import LiveTrunk
from everlearn_server.engine.truth_check import MAX_BATCH_SAMPLES
from everlearn_server.engine.work_queue import Work, WorkQueue

MAX_BYTES = 4 * 2**20 - 64 * 2**10
"""gRPC clients refuse more than 4 MiB unless they are told otherwise; some is left for digests and framing."""
_FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What became of one batch."""

    features_Bd: dict[str, FeaturesBd]
    """By feature digest, in the order of the models."""
    passes: int
    """Trunks that ran on each sample."""
    trunk_s: float


async def embed(models: Sequence[LiveModel], samples: Samples, queue: WorkQueue) -> Embedded:
    """Runs each distinct trunk once; random features that differ are made of the plain trunk's where that is named too.

    They are then NumPy's product instead of the trunk's own last node: alike to rounding, which the fixed-point scale
    of features hides but for a last step now and then. Raises InputError (field below `samples`), PreconditionError.
    """
    for model in models:
        if model.ready_trunk.observes:
            raise PreconditionError(
                f"model {model.name!r} has no features yet: {model.writer.held.waits}",
                field="names",
                reason="NOT_CALIBRATED",
            )
    by_digest = {model.ready_trunk.feature_digest: model for model in models}
    if isinstance(samples, Features):
        raise InputError("features are what the answer is; send the samples themselves", field="samples.features")
    _check_size(len(samples), [model.ready_trunk.feature_dim for model in by_digest.values()])
    plain = {_backbone(model): model for model in by_digest.values() if model.spec.spec.projection is None}
    done: dict[tuple[str, str], Work] = {}
    features_Bd: dict[str, FeaturesBd] = {}
    for digest, model in by_digest.items():
        base = plain.get(_backbone(model), model)
        key = (base.ready_trunk.digest, base.ready_trunk.front.digest)
        if key not in done:
            done[key] = await features_of(base.ready_trunk, base.spec.spec.input, samples, queue)
        projection = model.spec.spec.projection
        made_Bd = done[key].features_Bd
        if base is not model and projection is not None:
            made_Bd = await asyncio.to_thread(_projected, made_Bd, projection)
        features_Bd[digest] = made_Bd
    trunk_s = sum(work.trunk_s for work in done.values())
    return Embedded(features_Bd=features_Bd, passes=len(done), trunk_s=trunk_s)


async def features_of(trunk: LiveTrunk, declared: Input, samples: Raw, queue: WorkQueue) -> Work:
    """One trunk's features of samples, in the lane of learning: it waits behind predictions. Raises InputError."""
    decoder = Decoder(trunk, declared, queue.images)
    decoder.check(samples, field="samples")
    pixels_of = decoder.pixels_of(samples, field="samples")
    work = await queue.learn(decoder.session, pixels_of, len(samples), decoder.feature_dim)
    decoder.check_features(work.features_Bd, samples, field="samples")
    return work


def _projected(features_Bd: FeaturesBd, projection: Projection) -> FeaturesBd:
    """relu(x W), as `everlearn.backbones.projection` has it in the graph."""
    projected_BM: FeaturesBd = np.maximum(features_Bd @ weights(features_Bd.shape[1], projection), 0)
    return projected_BM


def _backbone(model: LiveModel) -> str:
    """What the features before a projection depend on."""
    spec = model.spec.spec
    parts = [part.model_dump_json() for part in (spec.backbone, spec.input, spec.adapt)]
    return "\n".join(parts if spec.int8_trunk is None else [*parts, model.ready_trunk.digest])


def _check_size(count: int, dims: Sequence[int]) -> None:
    if count > MAX_BATCH_SAMPLES:
        raise InputError(f"{count} samples; send {MAX_BATCH_SAMPLES} a request at most", field="samples")
    each = _FLOAT_BYTES * sum(dims)
    if count * each > MAX_BYTES:
        right = f"send {MAX_BYTES // each} samples a request at most" if each <= MAX_BYTES else "name fewer models"
        raise InputError(
            f"{sum(dims)} features of {count} samples are more than the {MAX_BYTES} bytes of an answer; {right}",
            field="samples",
        )
