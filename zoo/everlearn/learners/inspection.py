"""Looks at a learner's bytes without a trunk, without a process and without torch: are they what such a learner leaves?

Bytes that match their digest can still be those of a bug; `everlearn.invariants` says what must hold of sums.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from everlearn import invariants
from everlearn.errors import DataLossError, InvalidError, PreconditionError
from everlearn.learners.gradient import layout
from everlearn.memories import memory_for
from everlearn.memories.base import Memory
from everlearn.memories.latents import Latents
from everlearn.memories.per_class_statistics import PerClassStatistics
from everlearn.memories.sealing import counts
from everlearn.privacy.noised_sums import NoisedSums
from everlearn.spec.model import ModelSpec
from everlearn.target_sums import TargetSums


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """What was found in a learner's bytes."""

    samples: int
    """Learned."""
    samples_of: Mapping[str, int] = field(default_factory=dict)
    """Of each label, or output."""
    broken: tuple[str, ...] = ()
    """Invariants that do not hold, in words."""
    releases: int = 0
    """Times that noise was added to what came until then."""


def inspect(spec: ModelSpec, data: bytes) -> Inspected:
    """What a completed declaration's learner has left. Raises DataLossError for bytes that no such learner left."""
    if spec.by_gradient:
        return _gradient(spec, data)
    if spec.privacy.tier == "dp":
        return _noised(data)
    if spec.task != "classification":
        return _targets(spec, data)
    if spec.adapt.kind == "first_session":
        return _first_session(spec, data)
    return _memory(spec, data)


def left_over(spec: ModelSpec, data: bytes, parts: Iterable[tuple[str, bytes]]) -> list[str]:
    """What is wrong with parts, (client, what a learner of `alone` left), that are to add up to a learner's bytes: of
    a spec that keeps each client's own sums. Raises DataLossError where the learner's own bytes cannot be read."""
    if spec.task != "classification":
        sums = TargetSums.from_bytes(data)
        return _left_over(sums, TargetSums.from_bytes, TargetSums(sums.dim, outputs=sums.outputs), parts)
    kind = memory_for(spec.memory.kind)
    memory = kind.from_bytes(data)
    return _left_over(memory, kind.from_bytes, kind.create(memory.dim, []), parts)


def _left_over(whole: Any, parse: Callable[[bytes], Any], empty: Any, parts: Iterable[tuple[str, bytes]]) -> list[str]:
    broken = []
    for client, part in parts:
        try:
            whole.subtract(parse(part))
        except (DataLossError, InvalidError, PreconditionError) as error:
            broken.append(f"those of client {client} are no part of the memory: {error.message}")
    if not broken and whole.digest() != empty.digest():
        broken.append("they do not add up to the memory")
    return broken


def _limit(spec: ModelSpec) -> int:
    return (1 << (spec.memory.bits - 1)) - 1


def _memory(spec: ModelSpec, data: bytes) -> Inspected:
    if (sealed := counts(data)) is not None:
        return Inspected(samples=sum(sealed.values()), samples_of=sealed, broken=tuple(_negative(sealed)))
    memory = memory_for(spec.memory.kind).from_bytes(data)
    seen = dict(zip(memory.labels, (int(count) for count in memory.seen_C), strict=True))
    return Inspected(samples=memory.seen, samples_of=seen, broken=tuple(_broken(memory, _limit(spec))))


def _noised(data: bytes) -> Inspected:
    """With noise in them sums need not be those of any samples."""
    sums = NoisedSums.from_bytes(data)
    seen = {label: max(int(count), 0) for label, count in zip(sums.labels, sums.count_C, strict=True)}
    return Inspected(samples=sums.samples, samples_of=seen, releases=sums.releases)


def _negative(samples_of: Mapping[str, int]) -> list[str]:
    return ["a class has a negative number of samples"] if any(count < 0 for count in samples_of.values()) else []


def _broken(memory: Memory, limit: int) -> list[str]:
    broken = _negative({str(place): int(count) for place, count in enumerate(memory.seen_C)})
    if isinstance(memory, Latents):
        if (memory.kept_C > memory.seen_C).any():
            broken.append("more rows of a class are kept than were learned")
        return broken
    if isinstance(memory, PerClassStatistics):
        for label in memory.labels:
            found = invariants.of_sums(memory.sums_of(label), limit=limit)
            broken += [f"class {label!r}: {text}" for text in found]
        return broken
    return broken + invariants.of_sums(memory.sums, limit=limit)


def _targets(spec: ModelSpec, data: bytes) -> Inspected:
    sums = TargetSums.from_bytes(data)
    broken = invariants.of_targets(sums, limit=_limit(spec))
    if sums.outputs != spec.declared_outputs:
        broken.append("its outputs are not the declared ones")
    counts = dict(zip(sums.labels, (int(count) for count in sums.count_K), strict=True))
    return Inspected(samples=sums.samples, samples_of=counts, broken=tuple(broken))


def _first_session(spec: ModelSpec, data: bytes) -> Inspected:
    """See `FirstSession.to_bytes`: nothing before the session has ended, then a header line, weights and a memory."""
    if not data:
        return Inspected(samples=0)
    line, _, body = data.partition(b"\n")
    try:
        size = int(json.loads(line)["weights"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataLossError(f"the stored first session cannot be read ({type(error).__name__})") from error
    broken, after = _finite(body[:size], ""), _memory(spec, body[size:])
    return replace(after, broken=(*broken, *after.broken))


def _gradient(spec: ModelSpec, data: bytes) -> Inspected:
    parts = layout.split(data)
    broken = _finite(parts.tensors, "weights.")
    try:
        labels, counts = [str(label) for label in parts.header["labels"]], [int(n) for n in parts.header["counts"]]
        seen, samples = dict(zip(labels, counts, strict=True)), int(parts.header["samples"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataLossError(f"these bytes are sealed but not a gradient learner: {error}") from error
    if any(count < 0 for count in counts):
        broken.append("a class has a negative number of samples")
    if spec.task == "classification" and spec.privacy.tier != "dp" and sum(counts) != samples:
        broken.append(f"{samples} samples in all, {sum(counts)} by class")
    if parts.memory and spec.task == "classification" and spec.privacy.tier != "dp":
        broken += _memory(spec, parts.memory).broken
    releases = int(parts.header.get("releases", 0))
    return Inspected(samples=samples, samples_of=seen, broken=tuple(broken), releases=releases)


def _finite(tensors: bytes, prefix: str) -> list[str]:
    """Tensors of that prefix that are infinite or none; raises DataLossError for what is not safetensors."""
    try:
        loaded = safetensors.numpy.load(tensors)
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataLossError(f"weights are not safetensors: {error}") from error
    return [
        f"{name} has values that are infinite or none"
        for name, value in sorted(loaded.items())
        if name.startswith(prefix) and not np.isfinite(value).all()
    ]
