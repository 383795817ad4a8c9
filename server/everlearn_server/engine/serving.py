"""What answers predictions: immutable snapshots, swapped by one reference assignment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from everlearn.inputs.samples import Samples
from everlearn.spec.input import Input
from everlearn.values import FeaturesBd, Front, LinearHead
from everlearn_server.engine.tails import LiveTail

_PRODUCTS_ON_THE_LOOP = 2**24
"""Multiplications of a head that are done where everyone waits; more go to a thread."""
_DIRECTIONS = 128
"""In which a novelty looks, at most."""


class TrunkHandle(Protocol):
    """A shared trunk session with its bounded queue."""

    @property
    def digest(self) -> str:
        """sha256 of the trunk's ONNX file."""
        ...

    @property
    def feature_dim(self) -> int:
        """d."""
        ...

    @property
    def provider(self) -> str:
        """ONNX Runtime's execution provider that it runs on."""
        ...


@dataclass(frozen=True)
class Answers:
    """What a version says of some samples."""

    scores_BC: npt.NDArray[np.float32]
    novelty_B: npt.NDArray[np.float32] | None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Everything one prediction needs; a request keeps the snapshot it began with."""

    model: str
    version: int
    trunk: TrunkHandle
    front: Front
    head: LinearHead
    tail: LiveTail | None = None
    """Between trunk and head, where a part of the backbone learns."""
    input: Input
    """Limits and encodings that the declaration names."""
    feature_digest: str
    create_time_s: float

    def scores(self, features_Bd: FeaturesBd) -> npt.NDArray[np.float32]:
        """[B, C] of what the trunk gives. Raises BackboneError, UnavailableError where the tail fails."""
        return self.head.scores(self._through(features_Bd))

    def novelty(self, features_Bd: FeaturesBd) -> npt.NDArray[np.float32] | None:
        """[B] of what the trunk gives: how unlike all learned classes a sample is; beyond 1 it is unknown. None where
        the declaration asks for none. Raises as `scores`."""
        return self.head.novelty.of(self._through(features_Bd)) if self.head.novelty is not None else None

    def answers(self, features_Bd: FeaturesBd) -> Answers:
        """Both, through the tail once. Raises as `scores`."""
        features_Bd = self._through(features_Bd)
        novelty = self.head.novelty
        return Answers(self.head.scores(features_Bd), novelty.of(features_Bd) if novelty is not None else None)

    def _through(self, features_Bd: FeaturesBd) -> FeaturesBd:
        return features_Bd if self.tail is None else self.tail.run(features_Bd, self.trunk.provider)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores of one request, with where its time went."""

    scores_BC: npt.NDArray[np.float32]
    features_Bd: FeaturesBd
    decode_ms: float
    queue_ms: float
    trunk_ms: float
    head_ms: float
    novelty_B: npt.NDArray[np.float32] | None = None
    """Where samples may be unknown."""


async def answers_of(snapshot: Snapshot, features_Bd: FeaturesBd) -> Answers:
    """What a version says, without holding up others on the event loop."""
    head = snapshot.head
    products = features_Bd.size * (len(head.labels) + (_DIRECTIONS if head.tells_novelty else 0))
    if snapshot.tail is not None or products > _PRODUCTS_ON_THE_LOOP or not head.is_loaded:
        return await asyncio.to_thread(snapshot.answers, features_Bd)
    return snapshot.answers(features_Bd)


class Serving(Protocol):
    """The engine as the prediction services see it."""

    def models(self) -> list[str]:
        """Names of the declared models, sorted."""
        ...

    def snapshot(self, model: str, version: str = "") -> Snapshot:
        """`version`: a number, `stable`, `latest`, or empty for `stable`.

        Raises NotFoundError (no such model or version), PreconditionError with reason MODEL_NOT_READY (preparing,
        unloaded, or nothing learned yet).
        """
        ...

    def versions(self, model: str) -> list[int]:
        """Numbers that `snapshot` would answer, ascending. Raises NotFoundError."""
        ...

    async def score(self, snapshot: Snapshot, samples: Samples, *, timeout_s: float | None) -> Scored:
        """Decodes, runs the trunk through the shared queue, applies the head.

        Raises InputError (field path below `samples`), OverloadedError (queue full), ExpiredError (deadline passed
        while queued).
        """
        ...

    async def keep(self, snapshot: Snapshot, scored: Scored, *, caller: Callable[[], str]) -> list[str]:
        """An id for each sample, where the model's predictions wait for their labels; none elsewhere. `caller`:
        who asks, empty where nobody says."""
        ...

    def load(self, model: str) -> None:
        """Serves the model again after `unload`. Raises NotFoundError."""
        ...

    def unload(self, model: str) -> None:
        """Stops serving the model until `load` or a restart; it goes on learning. Raises NotFoundError."""
        ...
