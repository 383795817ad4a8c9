"""Trunk sessions, shared by digest: a thousand models on one backbone hold one session."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from everlearn.backbones.tail import Tail
from everlearn.export.int8_trunk import calibrated_on, observes
from everlearn.runtime.session import TrunkSession
from everlearn.values import FeatureScale, Front, Trunk


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveTrunk:
    """A model's view of a shared session: the front and scale are the model's, the session is everyone's."""

    digest: str
    feature_dim: int
    feature_digest: str
    session: TrunkSession
    front: Front
    scale: FeatureScale
    provenance: Mapping[str, str]
    parity_max_rel_diff: float
    size_bytes: int = 0
    """Of the ONNX file."""
    tokenizer: bytes = b""
    """text: the tokenizer.json."""
    tail: Tail | None = None
    """Where a part of the backbone learns: that part, as it was before. The features are then the values at the cut."""

    @property
    def observes(self) -> bool:
        """Whether it only stands in the place of a trunk in 8 bits, for which images have yet to come."""
        return observes(self.provenance)

    @property
    def calibrated_on(self) -> int:
        """Of a trunk in 8 bits: images that its ranges are from; 0 of another one."""
        return calibrated_on(self.provenance)

    @property
    def provider(self) -> str:
        """ONNX Runtime's execution provider in use; what follows the trunk runs there too."""
        return self.session.providers[0]


class TrunkPool:
    """Opens each trunk once and counts who uses it. Not thread-safe: call from the event loop."""

    def __init__(self, open_session: Callable[[Trunk], TrunkSession]) -> None:
        self._open_session = open_session
        self._sessions: dict[str, TrunkSession] = {}
        self._users: Counter[str] = Counter()

    def find(self, digest: str) -> TrunkSession | None:
        """The session of a trunk that somebody uses; None where nobody does. Opening one takes seconds."""
        return self._sessions.get(digest)

    def acquire(self, trunk: Trunk, session: TrunkSession | None = None, tail: Tail | None = None) -> LiveTrunk:
        """The model's view of the trunk; opens the session if nobody has, or takes the one given."""
        digest = trunk.digest
        if digest not in self._sessions:
            self._sessions[digest] = session or self._open_session(trunk)
        self._users[digest] += 1
        return LiveTrunk(
            digest=digest,
            feature_dim=trunk.feature_dim,
            feature_digest=trunk.feature_digest,
            session=self._sessions[digest],
            front=trunk.front,
            scale=trunk.scale,
            provenance=dict(trunk.provenance),
            parity_max_rel_diff=trunk.parity_max_rel_diff,
            size_bytes=len(trunk.onnx),
            tokenizer=trunk.tokenizer,
            tail=tail,
        )

    def release(self, live: LiveTrunk) -> None:
        """Forgets one user; the last one closes the session (requests in flight keep their reference)."""
        self._users[live.digest] -= 1
        if self._users[live.digest] <= 0:
            del self._users[live.digest]
            self._sessions.pop(live.digest, None)

    def users(self) -> dict[str, int]:
        """digest -> how many models share the session."""
        return dict(self._users)

    def providers(self) -> list[str]:
        """Execution providers in use, sorted."""
        return sorted({provider for session in self._sessions.values() for provider in session.providers})
