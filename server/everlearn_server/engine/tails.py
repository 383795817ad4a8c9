"""The part of a backbone that learns, as one version serves it."""

from __future__ import annotations

import threading

from everlearn.backbones.tail import Tail, TailSession
from everlearn.values import FeaturesBd


class LiveTail:
    """Weights of one version behind a session that is opened when somebody first asks: most versions are never asked.

    Thread-safe.
    """

    def __init__(self, tail: Tail) -> None:
        self.tail = tail
        self._lock = threading.Lock()
        self._session: TailSession | None = None

    def run(self, values_Bn: FeaturesBd, provider: str) -> FeaturesBd:
        """Features [B, d] of values at the cut, on what their trunk runs on. Raises BackboneError, UnavailableError."""
        with self._lock:
            if self._session is None:
                self._session = TailSession(self.tail, provider=provider)
        return self._session.run(values_Bn)
