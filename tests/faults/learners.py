"""Clients that stream through anything, what they were promised, and the sums that must come of it.

The oracle trusts nothing that a server says of itself: it adds every batch once, on its own, and compares with the
memory that lies on disk.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tests import tiny

from everlearn.inputs.front import to_pixels
from everlearn.runtime.session import TrunkSession
from everlearn.sums import Sums
from everlearn.values import Trunk
from everlearn_client import Client, events
from everlearn_client.errors import DataLoss, EverlearnClientError, Fenced, Held, SequenceGap, Unavailable
from everlearn_client.samples import Batch, Features
from everlearn_server.store.rows import StreamRow
from everlearn_server.store.store import Store

MODEL = "tiny"
CLASSES = 10


class Cut(Exception):  # noqa: N818  # no error: the learner's own decision
    """The learner has had enough of this connection."""


def make_batches(
    learner: int, count: int, trunk: Trunk, *, as_images: bool = False, samples: int = 4
) -> tuple[list[Batch], list[npt.NDArray[np.float32]]]:
    """`count` labelled batches, and the features of each as the server's trunk computes them."""
    session = TrunkSession(trunk.onnx)
    batches, features = [], []
    for index in range(count):
        labels = [(learner + index + sample) % CLASSES for sample in range(samples)]
        seed = learner * 1_000_000 + index
        if as_images:
            pictures = np.concatenate([tiny.images(1, label, seed=seed + row) for row, label in enumerate(labels)])
            # One by one, as a server without a GPU does.
            rows = [session.run(to_pixels(picture, trunk.front)[None]) for picture in pictures]
            batches.append(Batch(pictures, [str(label) for label in labels]))
            features.append(np.concatenate(rows))
        else:
            dim = trunk.feature_dim
            rows = [tiny.features(1, label, dim, seed=seed + row) for row, label in enumerate(labels)]
            features.append(np.concatenate(rows))
            batches.append(Batch(Features(features[-1]), [str(label) for label in labels]))
    return batches, features


@dataclass
class Learner:
    """One client. It deletes what it was told is durable, and resends only the rest."""

    client_id: str
    batches: list[Batch]
    features: list[npt.NDArray[np.float32]]
    feature_digest: str = ""
    cut_probability: float = 0.0
    """Of giving a connection up, after each answer."""
    allowance: threading.Semaphore | None = None
    """One permit a new batch, where the test decides how far all may come; resending is free."""
    timeline: str = ""
    """Of what it was told is durable; where that is void, it hears so."""
    taken: int = 0
    acknowledged: int = 0
    received: int = 0
    highest_received: int = 0
    received_here: int = 0
    """The highest of the present connection: the server that is there now has all up to it."""
    cuts: int = 0
    held: int = 0
    broken_promises: list[str] = field(default_factory=list)
    failure: BaseException | None = None

    def run(self, address: str) -> None:
        """Streams until all is durable, or the server has lost what it had promised to keep."""
        chance = random.Random(self.client_id)
        with Client(address, client_id=self.client_id) as client:
            while self.acknowledged < len(self.batches) and not self.broken_promises:
                try:
                    client.learn(
                        MODEL,
                        self._allowed(self.batches[self.acknowledged :]),
                        first_sequence=self.acknowledged + 1,
                        feature_digest=self.feature_digest,
                        timeline=self.timeline,
                        on_event=lambda event: self.hear(event, chance),
                        retry_for_s=1,
                    )
                except Cut:
                    self.cuts += 1
                except (Fenced, Unavailable):
                    pass  # an older connection of ours was still there; or down for long: begin with short waits again
                except Held:
                    self.held += 1  # and sent again, until others have sent enough
                except (DataLoss, SequenceGap) as error:
                    self.broken_promises.append(f"{self.client_id}: {error}")

    def _allowed(self, batches: list[Batch]) -> Iterator[Batch]:
        for sequence, batch in enumerate(batches, self.acknowledged + 1):
            if self.allowance is not None and sequence > self.taken:
                self.allowance.acquire()
                self.taken = sequence
            yield batch

    def hear(self, event: events.LearnEvent, chance: random.Random | None = None) -> None:
        """Notes what was promised; may give the connection up."""
        if isinstance(event, events.Opened) and event.durable_sequence < self.acknowledged:
            self.broken_promises.append(
                f"{self.client_id}: {self.acknowledged} was durable, {event.durable_sequence} is there"
            )
        if isinstance(event, events.Opened | events.Durable):
            self.timeline = event.timeline
        if isinstance(event, events.Opened):
            self.received_here = 0
        if isinstance(event, events.Durable):
            self.acknowledged = max(self.acknowledged, event.sequence)
        if isinstance(event, events.Received):
            self.received += 1
            self.highest_received = max(self.highest_received, event.sequence)
            self.received_here = max(self.received_here, event.sequence)
            if chance is not None and chance.random() < self.cut_probability:
                raise Cut


class Crowd:
    """Learners, each on a thread of its own."""

    def __init__(self, learners: Sequence[Learner], address: str) -> None:
        self.learners = learners
        self.address = address
        self._threads = [
            # A daemon: a test that has failed does not wait until they give up.
            threading.Thread(target=self._run, args=(learner,), name=learner.client_id, daemon=True)
            for learner in learners
        ]

    def start(self) -> None:
        """Begins to stream."""
        for thread in self._threads:
            thread.start()

    @property
    def received(self) -> int:
        """Answers to batches so far, resent ones included."""
        return sum(learner.received for learner in self.learners)

    @property
    def is_streaming(self) -> bool:
        """Whether any has not finished."""
        return any(thread.is_alive() for thread in self._threads)

    def join(self, timeout_s: float = 240.0) -> None:
        """Waits for all; raises what made one fail."""
        for thread in self._threads:
            thread.join(timeout_s)
            assert not thread.is_alive(), f"{thread.name} is still streaming after {timeout_s} s"
        for learner in self.learners:
            if learner.failure is not None:
                raise learner.failure

    def _run(self, learner: Learner) -> None:
        try:
            learner.run(self.address)
        except EverlearnClientError as error:
            learner.failure = error


@dataclass(frozen=True)
class AtRest:
    """What lies in a data folder whose server has ended."""

    sums: Sums
    streams: dict[str, StreamRow]
    tested: int
    """Samples in the prequential record."""


def at_rest(folder: Path, *, dim: int = 1) -> AtRest:
    """Reads the last commit of the model; before the first, there are no sums of `dim` values."""
    import json

    async def read(store: Store) -> AtRest:
        data, state = await store.ledger.memory(MODEL), await store.ledger.state(MODEL)
        streams = await store.ledger.streams(MODEL)
        if data is None or state is None:
            return AtRest(sums=Sums(dim), streams=streams, tested=0)
        tested = sum(count for count, _ in json.loads(state.prequential_json)["clients"].values())
        return AtRest(sums=Sums.from_bytes(data), streams=streams, tested=tested)

    with Store.open(folder, check=True) as store:
        return asyncio.run(read(store))


def expected_sums(learners: Sequence[Learner], trunk: Trunk) -> Sums:
    """Every batch of every learner, once."""
    sums = Sums(trunk.feature_dim)
    for learner in learners:
        for batch, features_Bd in zip(learner.batches, learner.features, strict=True):
            sums.add(trunk.scale.quantise(features_Bd), list(batch.labels))
    return sums


def violations(learners: Sequence[Learner], found: AtRest, expected: Sums) -> list[str]:
    """The oracle: which promises a data folder breaks. Empty for a server that keeps them."""
    broken = [promise for learner in learners for promise in learner.broken_promises]
    for learner in learners:
        durable = found.streams[learner.client_id].durable_sequence
        if durable != len(learner.batches):
            broken.append(f"{learner.client_id}: {len(learner.batches)} batches, the ledger says {durable}")
    order = [found.sums.labels.index(label) for label in expected.labels if label in found.sums.labels]
    comparisons: dict[str, Callable[[], bool]] = {
        "labels": lambda: sorted(found.sums.labels) == sorted(expected.labels),
        "n": lambda: np.array_equal(found.sums.count_C[order], expected.count_C),
        "S": lambda: np.array_equal(found.sums.sum_Cd[order], expected.sum_Cd),
        "G": lambda: np.array_equal(found.sums.gram_dd, expected.gram_dd),
        "digest": lambda: found.sums.digest() == expected.digest(),
        "prequential record": lambda: found.tested == expected.samples,
    }
    broken += [f"{name} differs" for name, same in comparisons.items() if not same()]
    return broken
