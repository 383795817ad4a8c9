"""kill -9 while a model learns by gradient steps: the state is to the bit what a replay in the ledger's order gives.

The faulty server notes the order in which it learns, over its lives. What was durable is replayed in this process:
weights, optimizer, schedule, random state and latents have to be the same bytes.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.faults.disk import Disk
from tests.faults.learners import MODEL
from tests.faults.scene import PATIENCE_S, Scene

from everlearn.learners.gradient import layout
from everlearn.learners.trainer import Trainer
from everlearn.memories.base import Origin
from everlearn.memories.sealing import unseal
from everlearn.spec.load import parse
from everlearn_server.store.store import Store

SHORT: Mapping[str, int] = {"kills": 2}
LONG: Mapping[str, int] = {"kills": 100}


@dataclass(frozen=True)
class Learned:
    """A batch that was learned, as the journal has it."""

    client: str
    sequence: int
    time_s: float


def run(folder: Path, *, kills: int, fault: str = "", disk: Disk | None = None) -> Mapping[str, object]:
    """Two clients; every other kill hits a step of the commit, the others come at any time; where there is a `disk`,
    the power fails with each. `fault`: of a control."""
    folder.mkdir(exist_ok=True)
    data, chance = disk.folder / "data" if disk else None, random.Random(3)
    scene = Scene(folder, batches=60 * kills + 400, samples=8, data=data, recipe="latent_replay")
    if disk:
        disk.settle()
    journal, lives = folder / "journal", list[dict[str, int]]()
    scene.go(freely=False)
    for kill in range(kills):
        point = ("", "committed", "", "before_commit")[kill % 4]
        faults = [fault, f"journal:{journal}", f"kill:{point}:2" * bool(point)]
        scene.server.fault = "+".join(each for each in faults if each)
        scene.server.start()
        if point:
            assert scene.feed_until_dead(batches=1) == -signal.SIGKILL
        else:
            _feed_for_a_while(scene, chance)
            scene.server.kill()
        if disk:
            disk.cut(survives=(0.0, 0.0, 0.5)[kill % 3], seed=kill)
        lives.append(durable(scene.server.folder))
        for learner in scene.learners:
            kept = lives[-1].get(learner.client_id, 0)
            assert learner.acknowledged <= kept, f"{learner.client_id}: told {learner.acknowledged}, kept {kept}"
    scene.server.fault = "+".join(each for each in (fault, f"journal:{journal}") if each)
    scene.server.start()
    _feed_for_a_while(scene, chance)
    scene.give_up(kill=False)
    with scene.server.client() as client:
        digest = client.models.get(MODEL).status.memory_digest
    assert scene.server.terminate() == 0
    lives.append(durable(scene.server.folder))
    replayed = replay(scene, in_order(journal, lives))
    assert [promise for learner in scene.learners for promise in learner.broken_promises] == []
    assert {learner.client_id: learner.sent for learner in scene.learners} == lives[-1]
    assert replayed == (digest, stored(scene.server.folder)), "the state is not what a replay in order gives"
    return {"kills": kills, "batches": sum(lives[-1].values()), "bytes that differ": 0}


def _feed_for_a_while(scene: Scene, chance: random.Random) -> None:
    before, end_s = scene.durable, time.monotonic() + PATIENCE_S
    while scene.durable == before:
        assert time.monotonic() < end_s, "nothing becomes durable"
        scene.trickle()
        time.sleep(0.02)
    time.sleep(chance.uniform(0, 0.3))


def durable(folder: Path) -> dict[str, int]:
    """Client -> last durable sequence."""
    with Store.open(folder) as store:
        return {client: row.durable_sequence for client, row in asyncio.run(store.ledger.streams(MODEL)).items()}


def stored(folder: Path) -> bytes:
    """The checkpoint, its latents opened: sealed they are other bytes each time."""

    async def read(store: Store) -> bytes:
        data = await store.ledger.memory(MODEL)
        assert data is not None
        parts = layout.split(data)
        return layout.join(parts.header, parts.tensors, unseal(parts.memory, await store.client_keys.sealer(MODEL)))

    with Store.open(folder) as store:
        return asyncio.run(read(store))


def in_order(journal: Path, lives: list[dict[str, int]]) -> list[Learned]:
    """What was learned and became durable, in the order in which it was; the rest died with its process."""
    texts, order = journal.read_text().split("life\n")[1:], list[Learned]()
    assert len(texts) == len(lives)
    for text, kept in zip(texts, lives, strict=True):
        for line in text.splitlines():
            client, sequence, time_s = line.split()
            if int(sequence) <= kept[client]:
                order.append(Learned(client, int(sequence), float(time_s)))
    assert len({(each.client, each.sequence) for each in order}) == len(order) == sum(lives[-1].values())
    return order


def replay(scene: Scene, order: list[Learned]) -> tuple[str, bytes]:
    """Digest and checkpoint of a learner that never died."""
    with Store.open(scene.server.folder) as store:
        (row,) = asyncio.run(store.catalog.models())
    learners = {learner.client_id: learner for learner in scene.learners}
    trainer = Trainer(parse(row.declaration).spec, scene.trunk.scale)
    try:
        for each in order:
            features_Bd = learners[each.client].features[each.sequence - 1]
            labels = list(learners[each.client].batches[each.sequence - 1].labels)
            origin = Origin(client=each.client, time_s=each.time_s)
            trainer.integrate(scene.trunk.scale.quantise(features_Bd), labels, origin=origin)
        return trainer.learned().digest(), trainer.to_bytes()
    finally:
        trainer.close()
