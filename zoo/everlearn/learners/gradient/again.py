"""Learns again without a client: back to a state from before it came, then what is kept of others, as it came."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from everlearn.errors import InputError, PreconditionError
from everlearn.learners.gradient.guards import REASON
from everlearn.learners.gradient.learner import GradientLearner
from everlearn.memories.base import Origin
from everlearn.memories.latents import Latents
from everlearn.values import QuantisedBd


class Again:
    """A function of the state, the client and `before` alone: done twice, it ends in the same bytes."""

    def __init__(
        self,
        present: GradientLearner,
        client: str,
        before: bytes | None,
        *,
        begin: Callable[[Sequence[str]], GradientLearner],
        restore: Callable[[bytes], GradientLearner],
    ) -> None:
        """`begin`: a learner that has learned nothing; `restore`: one from its bytes. `present` is spent, unless this
        raises.

        Raises InputError where `before` is no earlier moment of `present`, and what `restore` raises.
        """
        memory, labels = present.memory, present.labels
        self.learner = begin(labels) if before is None else restore(before)
        known, filled = self.learner.labels, self.learner.memory
        is_earlier = labels[: len(known)] == known and self.learner.samples <= present.samples
        if isinstance(memory, Latents) and isinstance(filled, Latents):
            is_earlier &= not filled.kept and filled.arrivals <= memory.arrivals
        if not is_earlier:
            raise InputError("this is no earlier moment of what has been learned", field="before")
        self.gone = memory.forget_client(client)
        """Rows of the client that were kept."""
        if known != labels:  # they keep their places, and the stream's order of labels with them
            self.learner.declare(labels[len(known) :])
        since = 0
        if isinstance(memory, Latents) and isinstance(filled, Latents):
            since = filled.arrivals
            filled.take_back(memory)
        rows = memory.by_arrival(since) if isinstance(memory, Latents) else iter(())
        self._rows: deque[tuple[QuantisedBd, list[str], Origin]] = deque(rows)

    @property
    def left(self) -> int:
        """Batches that are still to be learned."""
        return len(self._rows)

    def relearn(self, batches: int) -> None:
        """Learns some. One on which a step would lose the weights is left out: an erasure is not to fail by it."""
        for _ in range(min(batches, self.left)):
            quantised_Bd, labels, origin = self._rows.popleft()
            try:
                self.learner.learn(quantised_Bd, labels, origin=origin)
            except PreconditionError as error:
                if error.reason != REASON:
                    raise
