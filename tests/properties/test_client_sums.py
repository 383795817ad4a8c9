"""Each client's own sums, through learning, commits, crashes and erasures: what is left never saw who was erased."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.faults.erasure_run import KINDS, LABELS, Model
from tests.unit.test_spec_composition import declared

from everlearn.contribution import Contribution
from everlearn.errors import DataLossError, InvalidError
from everlearn.learners.base import Learner
from everlearn.learners.inspection import left_over
from everlearn.truth import LabelSets, Values
from everlearn_server.engine.client_parts import ClientParts
from everlearn_server.store.client_sums import ClientSums, Sealed
from everlearn_server.store.rows import ClientSumsRow

CLIENTS = ("ann", "bob", "cat")
SPECS = {
    "statistics": declared().spec,
    "per_class_statistics": declared(memory={"kind": "per_class_statistics"}).spec,
    "multilabel": declared(task="multilabel", head={"kind": "ridge"}).spec,
}


@dataclass
class Kept:
    """What lies on disk, as if it were not sealed."""

    rows: dict[str, bytes] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)

    def clients(self) -> list[str]:
        return sorted(self.rows)

    def find(self, clients: Collection[str]) -> dict[str, Sealed]:
        return {client: ("", self.rows[client]) for client in clients if client in self.rows}

    def opened(self, client: str, sealed: Sealed) -> bytes:
        if client in self.damaged:
            raise DataLossError("it does not open")
        assert sealed[1] is not None
        return sealed[1]

    def sealed(self, client: str, plain: bytes, samples: int) -> ClientSumsRow:
        return ClientSumsRow(client=client, sample_count=samples, digest="", size=len(plain), content=plain)

    def emptied(self, client: str) -> ClientSumsRow:
        return self.sealed(client, b"", 0)

    def forget_key(self, client: str) -> None:
        self.rows.pop(client, None)


class Server:
    """A learner, its clients' own sums, and what a crash would leave of both."""

    def __init__(self, kind: str, *, dim: int = 3, fault: str = "") -> None:
        self.model = Model(kind, dim=dim)
        self.fault = fault
        self.kept = Kept()
        self.learner = self.model.learner()
        self.parts = ClientParts(cast(ClientSums, self.kept))
        self.history: dict[str, list[Contribution]] = {}
        self.durable: tuple[bytes, dict[str, bytes], dict[str, list[Contribution]]] = (b"", {}, {})

    def learn(self, client: str, batch: Contribution) -> None:
        self.learner.integrate(batch.quantised_Bd, batch.truth)
        if self.fault != "a batch is not kept" or client not in self.history:
            self.parts.add(client, batch.quantised_Bd, batch.truth, self.learner)
        self.history.setdefault(client, []).append(batch)

    def commit(self, *, forgotten: str = "") -> None:
        for row in self.parts.rows(self.parts.take(), self.learner, forgotten=forgotten):
            assert row.content is not None
            self.kept.rows[row.client] = row.content
        told = {client: list(batches) for client, batches in self.history.items()}
        self.durable = self.learner.to_bytes(), dict(self.kept.rows), told

    def crash(self) -> None:
        """What is not committed is gone, and was never said to be durable."""
        data, rows, told = self.durable
        self.learner = self.model.learner().alone(data)
        rows = self.kept.rows if self.fault == "another transaction" else rows
        self.kept = Kept(dict(rows))
        self.parts = ClientParts(cast(ClientSums, self.kept))
        self.history = {client: list(batches) for client, batches in told.items()}

    def half_commit(self) -> None:
        """The rows alone, as a server would leave them that wrote them in a transaction of their own."""
        before = self.durable
        self.commit()
        self.durable = before

    def erase(self, client: str) -> None:
        self.learner.subtract(self.parts.of(client, self.learner))
        self.parts.erased(client)
        self.history.pop(client, None)
        self.commit()

    def erase_class(self, label: str) -> None:
        self.learner.forget_class(label)
        for client, batches in self.history.items():
            self.history[client] = [_without(batch, label) for batch in batches]
        self.commit(forgotten=label)

    def never_saw(self) -> Learner:
        """A learner of all who are left."""
        learner = self.model.learner()
        for batches in self.history.values():
            for batch in batches:
                learner.integrate(batch.quantised_Bd, batch.truth)
        return learner

    def holds(self) -> bool:
        return self.learner.learned().digest() == self.never_saw().learned().digest()


def _without(batch: Contribution, label: str) -> Contribution:
    assert not isinstance(batch.truth, LabelSets | Values)
    rows = [row for row, each in enumerate(batch.truth) if each != label]
    return Contribution(quantised_Bd=batch.quantised_Bd[rows], truth=tuple(batch.truth[row] for row in rows))


def walk(server: Server, seed: int, *, steps: int = 30) -> bool:
    """A random life; whether each erasure ended where the erased were never seen."""
    random = np.random.default_rng(seed)
    for _ in range(steps):
        what, client = random.random(), str(random.choice(CLIENTS))
        if what < 0.7:
            server.learn(client, server.model.batch(random))
        elif what < 0.8:
            server.commit()
        elif what < 0.87:
            if server.fault == "another transaction":
                server.half_commit()
            server.crash()
        elif what < 0.95 or server.model.kind != "per_class_statistics":
            if client in server.history:
                server.erase(client)
                if not server.holds():
                    return False
        elif (label := str(random.choice(LABELS))) in server.learner.labels:
            server.erase_class(label)
    for client in list(server.history):
        server.erase(client)
    return server.holds() and server.learner.samples == 0


@settings(max_examples=50, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32 - 1))
def test_whoever_is_erased_was_never_seen_bit_for_bit_through_commits_and_crashes(kind: str, seed: int) -> None:
    assert walk(Server(kind), seed)


@pytest.mark.parametrize("fault", ["a batch is not kept", "another transaction"])
@pytest.mark.parametrize("kind", KINDS)
def test_control_sums_that_are_not_those_of_the_memory_are_caught(kind: str, fault: str) -> None:
    caught = 0
    for seed in range(8):
        try:
            caught += not walk(Server(kind, fault=fault), seed)
        except InvalidError:  # what is subtracted cannot be a part
            caught += 1
    assert caught > 3


@settings(max_examples=20, deadline=None)
@given(kind=st.sampled_from(sorted(SPECS)), seed=st.integers(0, 2**32 - 1))
def test_the_clients_own_sums_add_up_to_the_memory_and_a_check_sees_where_they_do_not(kind: str, seed: int) -> None:
    server, random = Server(kind), np.random.default_rng(seed)
    for client in (*CLIENTS, *CLIENTS):
        server.learn(client, server.model.batch(random))
    server.commit()
    memory, rows = server.learner.to_bytes(), dict(server.kept.rows)
    assert left_over(SPECS[kind], memory, rows.items()) == []
    assert left_over(SPECS[kind], memory, list(rows.items())[1:]) == ["they do not add up to the memory"]
    [told] = left_over(SPECS[kind], memory, [*rows.items(), ("ann", rows["ann"])])
    assert told.startswith("those of client ann are no part of the memory")
    assert left_over(SPECS[kind], memory, [("ann", b"no sums")])[0].startswith("those of client ann")


def test_many_samples_between_two_commits_are_kept_as_sums_and_take_no_more_room() -> None:
    server, random = Server("statistics", dim=4), np.random.default_rng(0)
    for _ in range(200):
        server.learn("ann", server.model.batch(random))
    [staged] = server.parts.take().values()
    assert staged.samples < 16
    assert len(staged.batches) < 16
    assert staged.part is not None
    assert staged.part.samples + staged.samples == server.learner.samples


def test_damaged_sums_stop_nobody_from_learning_and_are_not_taken_for_all_there_was() -> None:
    server, random = Server("per_class_statistics"), np.random.default_rng(1)
    for client in ("ann", "bob"):
        server.learn(client, server.model.batch(random))
    server.commit()
    server.kept.damaged.add("ann")
    before = server.kept.rows["ann"]
    server.learn("ann", server.model.batch(random))
    server.learn("bob", server.model.batch(random))
    server.commit()
    assert server.kept.rows["ann"] == before
    with pytest.raises(DataLossError, match="client 'ann' cannot be read"):
        server.parts.of("ann", server.learner)
    server.erase("bob")
    server.erase_class(str(server.learner.labels[0]))
    assert server.kept.rows["ann"] == b""  # nothing of the class may stay


@pytest.mark.parametrize("kind", KINDS)
def test_merging_is_having_met_both(kind: str) -> None:
    model, random = Model(kind, dim=5), np.random.default_rng(2)
    batches = [model.batch(random) for _ in range(4)]
    whole, one, other = model.learner(), model.learner().alone(), model.learner().alone()
    for index, batch in enumerate(batches):
        for learner in (whole, (one, other)[index % 2]):
            learner.integrate(batch.quantised_Bd, batch.truth)
    one.merge(other.alone(other.to_bytes()))
    assert one.learned().digest() == whole.learned().digest()
    with pytest.raises(InvalidError, match=r"not learned on this model's features|other outputs"):
        one.merge(Model("statistics" if kind == "multilabel" else "multilabel", dim=5).learner())
    with pytest.raises(DataLossError):
        one.alone(Model(kind, dim=6).learner().to_bytes())
