"""What each client of a model has contributed, kept beside the memory so that it can be taken out without its help.

Between commits a client's batches wait in RAM as the integers that were learned, or as their sums where those are
smaller. A commit adds them to the client's own sums, one client after the other, and writes those with the memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from everlearn.contribution import Contribution
from everlearn.errors import DataLossError
from everlearn.learners.base import Learner
from everlearn.spec.model import ModelSpec
from everlearn.truth import Truth
from everlearn.values import QuantisedBd
from everlearn_server.engine.receipts import Receipts
from everlearn_server.store.client_sums import ClientSums, Sealed
from everlearn_server.store.rows import ClientSumsRow, ModelRow
from everlearn_server.store.store import Store

if TYPE_CHECKING:
    from everlearn_server.engine.integration import Integration

_logger = structlog.get_logger(__name__)

_ROWS_PER_FEATURE: Final = 4
"""So many samples take as much RAM as sums: 2 d bytes each, and 8 d^2."""
_AT_ONCE: Final = 64
"""Clients whose rows are read together."""


@dataclass(eq=False)
class _Staged:
    """Of one client, since the last commit."""

    batches: list[Contribution] = field(default_factory=list)
    samples: int = 0
    """In `batches`."""
    part: Learner | None = None
    """What came before those."""

    def add(self, contribution: Contribution, whole: Learner) -> None:
        self.batches.append(contribution)
        self.samples += contribution.samples
        if self.samples >= _ROWS_PER_FEATURE * contribution.quantised_Bd.shape[1]:
            self.part = self.part or whole.alone()
            self.into(self.part)
            self.batches, self.samples = [], 0

    def into(self, part: Learner) -> None:
        for batch in self.batches:
            part.integrate(batch.quantised_Bd, batch.truth)


class ClientParts:
    """Of one model. Methods block, and run where the writer's lock allows: `add`, `take`, `of` and `erased` while it is
    held, `rows` between two commits."""

    def __init__(self, stored: ClientSums) -> None:
        self._stored = stored
        self._staged: dict[str, _Staged] = {}

    def add(self, client: str, quantised_Bd: QuantisedBd, truth: Truth, learner: Learner) -> None:
        """A batch was learned of a client."""
        if len(quantised_Bd):
            staged = self._staged.setdefault(client, _Staged())
            staged.add(Contribution(quantised_Bd=quantised_Bd, truth=truth), learner)

    def take(self) -> Mapping[str, _Staged]:
        """What the memory knows now and the last commit did not; it counts as taken."""
        staged, self._staged = self._staged, {}
        return staged

    def of(self, client: str, learner: Learner) -> Learner:
        """All that was learned of a client until now: what to subtract. Raises DataLossError."""
        return self._sum(client, self._stored.find([client]).get(client), self._staged.get(client), learner)

    def erased(self, client: str) -> None:
        """Nothing of it is in the memory any more; its row and key go with the commit that is being made."""
        self._staged.pop(client, None)
        self._stored.forget_key(client)

    def rows(
        self, staged: Mapping[str, _Staged], learner: Learner, *, forgotten: str = ""
    ) -> tuple[ClientSumsRow, ...]:
        """The rows of those that have changed, in the order of their names. `forgotten`: a class that was taken out of
        the memory, and so of everybody's sums.

        Sums that are damaged are left as they are: learning goes on, and an erasure of their client says so. Only of
        what lies beside a class that is taken out nothing may stay: they are emptied then.
        """
        names = sorted({*self._stored.clients(), *staged} if forgotten else staged)
        rows = []
        for start in range(0, len(names), _AT_ONCE):
            some = names[start : start + _AT_ONCE]
            found = self._stored.find(some)
            rows += [self._row(each, found.get(each), staged.get(each), learner, forgotten) for each in some]
        return tuple(row for row in rows if row is not None)

    def _row(
        self, client: str, sealed: Sealed | None, staged: _Staged | None, learner: Learner, forgotten: str
    ) -> ClientSumsRow | None:
        try:
            part = self._sum(client, sealed, staged, learner)
        except DataLossError as error:
            _logger.error("a client's own sums are damaged", client=client, problem=error.message)
            return self._stored.emptied(client) if forgotten else None
        if forgotten in part.labels:
            part.forget_class(forgotten)
        elif staged is None:
            return None
        return self._stored.sealed(client, part.to_bytes(), part.samples)

    def _sum(self, client: str, sealed: Sealed | None, staged: _Staged | None, learner: Learner) -> Learner:
        try:
            part = learner.alone(self._stored.opened(client, sealed) if sealed is not None else b"")
        except DataLossError as error:
            raise DataLossError(f"what is kept of client {client!r} cannot be read: {error.message}") from error
        if staged is not None:
            staged.into(part)
            if staged.part is not None:
                part.merge(staged.part)
        return part


async def accounts_of(store: Store, row: ModelRow, spec: ModelSpec) -> tuple[Receipts, ClientParts | None]:
    """How a model accounts for what it learns of each client; to be set before it learns anything. Raises
    UnavailableError."""
    receipts = Receipts(store, uid=row.uid, lineage=row.lineage)
    if spec.privacy.client_sums:
        return receipts, ClientParts(await store.client_sums.open(row.name))
    # After a crash between a declaration that keeps none any more and their deletion.
    await asyncio.to_thread(store.client_sums.drop, row.name)
    return receipts, None


def drop_parts(work: Integration, store: Store, model: str) -> None:
    """No client's own sums are kept from now on, and those that were are deleted. Between two commits; blocks."""
    work.parts = None
    store.client_sums.drop(model)
