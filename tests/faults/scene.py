"""A server, a model and clients that make one plain call each, for faults to happen to; and the judgement of it."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tests import tiny
from tests.faults.forked import ForkedServer
from tests.faults.learners import CLASSES, MODEL, Crowd, Learner, at_rest, expected_sums, violations

from everlearn.errors import EverlearnError
from everlearn.sums import Sums
from everlearn.values import Trunk
from everlearn_client import Client, events
from everlearn_client.errors import EverlearnClientError
from everlearn_client.samples import Batch, Features
from everlearn_server.store.store import Store

PATIENCE_S = 120.0
"""For what takes a second; far above it, so that a loaded machine fails no test."""
AHEAD = 32
"""Batches; half a client's window."""


class Plain(Learner):
    """One plain call. What goes wrong is the client library's to mend; this only listens."""

    sent = 0
    reconnects = 0
    first_sequence: int | None = None
    given = 0
    """Batches that it was allowed to send."""
    is_enough = False
    """Ends the batches, however many are left."""

    def __init__(self, client_id: str, batches: list[Batch], features: list[npt.NDArray[np.float32]], digest: str):
        super().__init__(client_id, batches, features, feature_digest=digest)
        self.heard: list[tuple[str, int]] = []
        self.events: list[events.Reconnecting | events.Rejected] = []

    def run(self, address: str) -> None:
        """`client.learn(model, batches)`, and no more."""
        with Client(address, client_id=self.client_id) as client:
            report = client.learn(
                MODEL,
                self._taken(),
                feature_digest=self.feature_digest,
                on_event=self.hear,
                first_sequence=self.first_sequence,
            )
        del self.batches[self.sent :], self.features[self.sent :]
        if (report.durable_batches + report.skipped_batches, report.rejected_batches) != (self.sent, 0):
            self.broken_promises.append(f"{self.client_id}: reported as {report}")
        self.reconnects = report.reconnects

    def _taken(self) -> Iterator[Batch]:
        for batch in self.batches:
            if self.allowance is not None:
                self.allowance.acquire()
            if self.is_enough:
                return
            self.sent += 1
            yield batch

    def hear(self, event: events.LearnEvent, chance: random.Random | None = None) -> None:
        """Keeps the history: nothing is durable that was not sent, nothing durable is taken back."""
        super().hear(event)
        if isinstance(event, events.Opened | events.Durable):
            sequence = event.durable_sequence if isinstance(event, events.Opened) else event.sequence
            self.heard.append((type(event).__name__, sequence))
            if sequence > self.sent and self.first_sequence is None:  # else another connection may have sent it
                self.broken_promises.append(f"{self.client_id}: {sequence} is durable, {self.sent} were sent")
        elif isinstance(event, events.Received):
            self.heard.append(("Received", event.sequence))
        elif isinstance(event, events.Reconnecting | events.Rejected):
            self.events.append(event)


def stream(
    learner: int, count: int, trunk: Trunk, *, samples: int = 4
) -> tuple[list[Batch], list[npt.NDArray[np.float32]]]:
    """`count` labelled batches of features, the same for the same arguments."""
    chance, dim = np.random.default_rng((learner, 20261121)), trunk.feature_dim
    centre_Cd = np.abs(np.random.default_rng(0).normal(0, 1, (CLASSES, dim)))
    label_NB = chance.integers(0, CLASSES, (count, samples))
    noise_NBd = chance.standard_normal((count, samples, dim), np.float32) / 2
    features_NBd = np.maximum(centre_Cd[label_NB] + noise_NBd, 0).astype(np.float32)
    batches = [
        Batch(Features(rows_Bd), [str(label) for label in labels])
        for rows_Bd, labels in zip(features_NBd, label_NB.tolist(), strict=True)
    ]
    return batches, list(features_NBd)


@cache
def _declared(dim: int, spec_json: str) -> tuple[Path, Path]:
    """A data folder with the model in it, and its backbone: made once, copied for each scene."""
    home = Path(tempfile.mkdtemp(prefix="everlearn-scene-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    backbone = tiny.write_backbone(home, dim)
    with ForkedServer(home / "data") as server:
        server.declare(tiny.declaration(backbone, **json.loads(spec_json)))
    return home / "data", backbone


class Scene:
    """Made with neither server nor clients running: `scene.go()`, let it suffer, `scene.calm_end()`."""

    def __init__(
        self,
        folder: Path,
        *,
        dim: int = 64,
        clients: int = 2,
        batches: int = 200,
        samples: int = 4,
        data: Path | None = None,
        learner: type[Plain] = Plain,
        address: str = "",
        **spec: object,
    ) -> None:
        """`data`: where the data folder lies, below `folder` by default; `address`: what the clients call, the server's
        own by default; `spec`: sections of the declaration."""
        self.folder = folder
        template, backbone = _declared(dim, json.dumps(spec, sort_keys=True))
        self.backbone, self.trunk = backbone, tiny.trunk_of(backbone)
        data = data or folder / "data"
        _copied(template, data)
        self.server = ForkedServer(data, beside=folder)
        self.learners: list[Plain] = []
        for index in range(clients):
            made, features = stream(index, batches, self.trunk, samples=samples)
            self.learners.append(learner(f"learner-{index}", made, features, self.trunk.feature_digest))
        self.ahead = 0
        """Batches that were durable and whose clients were not told so, when `at_rest` looked."""
        self.crowd = Crowd(self.learners, address or self.server.address)

    def go(self, *, freely: bool = True) -> None:
        """The clients begin; they wait for a server by themselves, and unless `freely` for what `feed` allows."""
        for learner in self.learners:
            learner.allowance = None if freely else threading.Semaphore(0)
        self.crowd.start()

    def feed(self, batches: int = 2) -> None:
        """So many more of each client may be sent."""
        for learner in self.learners:
            assert learner.allowance is not None
            learner.given += batches
            learner.allowance.release(batches)

    def trickle(self, batches: int = 1) -> None:
        """As `feed`, to those who have taken what they were given: however long a server takes to start or to answer,
        no client has a heap of batches to send at once, and none comes to its last one early."""
        for learner in self.learners:
            assert learner.allowance is not None
            if learner.sent - learner.given > -AHEAD:
                learner.given += batches
                learner.allowance.release(batches)

    def feed_until_dead(self, *, patience_s: float = PATIENCE_S, batches: int = 4) -> int:
        """Batches keep coming until the server ends; returns its exit status."""
        end_s = time.monotonic() + patience_s
        while self.server.process.poll() is None:
            assert time.monotonic() < end_s, f"the server lives\n{self.server.log[-2000:]}"
            self.trickle(batches)
            time.sleep(0.01)
        return self.server.wait()

    @property
    def durable(self) -> int:
        """Batches that clients were told to be durable."""
        return sum(learner.acknowledged for learner in self.learners)

    def calm_end(self, *, timeout_s: float = 240.0, all_of_them: bool = False) -> Sums:
        """Until the clients are done with a server that has no fault, where they are fed with what they have sent by
        now, or `all_of_them`; then that is held against what is there, through the API and on disk. Raises
        AssertionError with every promise that was broken."""
        if self.server._process is None or self.server.process.poll() is not None:
            self.server.fault = ""
            self.server.start()
        for learner in self.learners:
            if learner.allowance is not None:
                learner.is_enough = not all_of_them
                learner.allowance.release(len(learner.batches))
        self.crowd.join(timeout_s)
        expected = expected_sums(self.learners, self.trunk)
        broken = self.seen_from_outside(expected)
        assert self.server.terminate() == 0
        broken += violations(self.learners, at_rest(self.server.folder), expected) + rotten(self.server.folder)
        assert broken == [], "\n".join(broken)
        return expected

    def give_up(self, *, kill: bool = True) -> None:
        """The clients end, whatever became of their batches; so does the server, unless it is needed still."""
        for learner in self.learners:
            learner.is_enough = True
            if learner.allowance is not None:
                learner.allowance.release()
        if self.server.process.poll() is not None:
            self.server.fault = ""
            self.server.start()
        with contextlib.suppress(EverlearnClientError):
            self.crowd.join()
        if kill:
            self.server.kill()

    def seen_from_outside(self, expected: Sums) -> list[str]:
        """What a client can see: the model's digest and counts, and that each version it names answers."""
        broken, rows = [], next(learner.features[0] for learner in self.learners if learner.features)
        with self.server.client() as client:
            status = client.models.get(MODEL).status
            if (status.memory_digest, status.sample_count) != (expected.digest(), expected.samples):
                broken.append(f"the model says {status.sample_count} samples, digest {status.memory_digest[:12]}")
            for version in client.models.versions(MODEL):
                if version.trunk_digest != self.trunk.digest:
                    broken.append(f"version {version.number} names another trunk")
                if version.sample_count == expected.samples and version.memory_digest not in ("", expected.digest()):
                    broken.append(f"version {version.number} has all samples and another digest")
                if len(client.predict(MODEL, Features(rows), version=version.number).top) != len(rows):
                    broken.append(f"version {version.number} does not answer")
        return broken

    def at_rest(self) -> list[str]:
        """With no server running: is the state the one that the ledger's own watermarks say it is? Looks at a copy."""
        copy = self.folder / "at-rest"
        _copied(self.server.folder, copy)
        try:
            return self._judged(copy)
        except EverlearnError as error:
            return [f"what was stored cannot be read: {error}"]
        finally:
            shutil.rmtree(copy)

    def _judged(self, folder: Path) -> list[str]:
        found, sums, self.ahead = at_rest(folder, dim=self.trunk.feature_dim), Sums(self.trunk.feature_dim), 0
        broken = [promise for learner in self.learners for promise in learner.broken_promises]
        for learner in self.learners:
            row = found.streams.get(learner.client_id)
            durable = row.durable_sequence if row else 0
            self.ahead += durable - learner.acknowledged
            if not learner.acknowledged <= durable <= learner.sent:
                broken.append(f"{learner.client_id}: told {learner.acknowledged}, kept {durable}, sent {learner.sent}")
            for batch, features_Bd in list(zip(learner.batches, learner.features, strict=True))[:durable]:
                sums.add(self.trunk.scale.quantise(features_Bd), list(batch.labels))
        if found.sums.digest() != sums.digest():
            broken.append(f"the state has {found.sums.samples} samples, by its watermarks it has {sums.samples}")
        return broken + rotten(folder)


def _copied(source: Path, target: Path) -> None:
    """A data folder of which no server is alive: its socket is not worth a copy."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.sock"))


def rotten(folder: Path) -> list[str]:
    """Which versions of a data folder cannot be served as they were stored: their heads are read, digests checked."""

    async def read(store: Store) -> list[str]:
        broken = []
        for summary in await store.catalog.versions(MODEL):
            version = await store.catalog.version(MODEL, summary.number)  # raises DataLossError
            if not version.head:
                broken.append(f"version {summary.number} has no head")
        return broken

    with Store.open(folder) as store:
        return asyncio.run(read(store))
