"""Models of a real server, clients with receipts, and what lies on disk: for tests of erasure."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
from tests.real_server import RealServer

from everlearn_client import Tensors
from everlearn_client.receipts import ReceiptFile
from everlearn_client.samples import Batch
from everlearn_protos.v1 import erasure_pb2
from everlearn_server.store.store import Store

DIM = 24
KINDS: dict[str, dict[str, Any]] = {
    "sums": {},
    "split": {"memory": {"kind": "per_class_statistics"}},
    "tags": {"task": "multilabel"},
    "own": {"privacy": {"client_sums": True}},
    "own-split": {"privacy": {"client_sums": True}, "memory": {"kind": "per_class_statistics"}},
    "own-tags": {"privacy": {"client_sums": True}, "task": "multilabel"},
    "rows": {
        "memory": {"kind": "latents", "capacity": 60},
        "head": {"kind": "ncm"},
        "retention": {"features": "latents"},
    },
    "steps": {
        "head": {"kind": "linear"},
        "memory": {"kind": "latents", "capacity": 200},
        "retention": {"features": "latents"},
    },
    "drawn": {"head": {"kind": "linear"}, "memory": {"kind": "statistics"}},
    "fading": {"memory": {"kind": "statistics", "decay": 0.99}},
}


def declaration(name: str, kind: str) -> str:
    read = {"modality": "tensor", "shape": [DIM], "range": [-4.0, 4.0]}
    spec = {"backbone": {"source": "identity"}, "input": read, **KINDS[kind]}
    return json.dumps({"metadata": {"name": name}, "spec": spec})


def batches(seed: int, count: int, kind: str = "sums", *, samples: int = 5) -> list[Batch]:
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        labels: list[Any] = [f"c{n}" for n in random.integers(0, 4, samples)]
        values = random.normal(0, 1, (samples, DIM)).astype(np.float32)
        values[:, 0] += [float(label[1]) for label in labels]
        made.append(Batch(Tensors(values), [[label] for label in labels] if kind.endswith("tags") else labels))
    return made


class Scene:
    """Models of a server, and files of receipts."""

    def __init__(self, server: RealServer, folder: Path) -> None:
        self.server = server
        self.folder = folder

    def declare(self, name: str, kind: str = "sums") -> None:
        self.server.declare(declaration(name, kind))

    def learn(self, name: str, client_id: str, made: list[Batch], *, receipts: bool = True, **options: Any) -> Path:
        path = self.folder / f"{name}-{client_id}.receipts"
        with self.server.client(client_id=client_id) as client:
            if not receipts:
                client.learn(name, made, **options)
                return path
            with ReceiptFile(path) as kept:
                client.learn(name, made, receipts=kept, **options)
        return path

    def erase(self, name: str, client_id: str, path: Path | None, **options: Any) -> erasure_pb2.EraseReport:
        with self.server.client() as client:
            return client.erase(name, client_id=client_id, receipts=path, **options)

    def erasures(self, name: str) -> list[str]:
        """Receipts."""
        with self.server.client() as client:
            return [each.receipt for each in client.erasures(name)]

    def digest(self, name: str) -> str:
        """Of the memory."""
        with self.server.client() as client:
            return client.models.get(name).status.memory_digest

    def predictions(self, name: str) -> list[list[tuple[str, float]]]:
        values = Tensors(np.random.default_rng(99).normal(0, 1, (20, DIM)).astype(np.float32))
        with self.server.client() as client:
            return [[(each.label, each.score) for each in top] for top in client.predict(name, values).top]


def at_rest(folder: Path, name: str) -> dict[str, Any]:
    """What lies in a data folder whose server has ended."""

    async def read(store: Store) -> dict[str, Any]:
        data = await store.ledger.memory(name)
        streams = await store.ledger.streams(name)
        return {
            "memory": data,
            "erasures": await store.ledger.erasures(name),
            "samples": streams["ann"].sample_count,
            "durable": streams["ann"].durable_sequence,
            "versions": [row.number for row in await store.catalog.versions(name)],
        }

    with Store.open(folder, check=True) as store:
        return asyncio.run(read(store))
