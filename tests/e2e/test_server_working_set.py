"""Models at rest are set down, and nobody can tell: real servers, one that keeps nothing of them in RAM."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests import tiny
from tests.ports import free_port
from tests.real_server import RealServer

from everlearn_client import Client
from everlearn_client.samples import Features

MODELS = 3


class Watched:
    """A server and its metrics."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._metrics = f"127.0.0.1:{free_port()}"
        self.server = RealServer(folder, arguments=["--metrics-listen", self._metrics, *arguments])

    def held_bytes(self) -> dict[str, float]:
        """Of each model."""
        with urllib.request.urlopen(f"http://{self._metrics}/metrics", timeout=120) as answer:
            told = re.findall(r'^everlearn_model_held_bytes{model="(.+)"} (.+)$', answer.read().decode(), re.MULTILINE)
        return {name: float(value) for name, value in told}

    def until(self, right: Callable[[dict[str, float]], bool]) -> None:
        """Waits for it."""
        give_up_s = time.monotonic() + 240
        while not right(held := self.held_bytes()):
            assert time.monotonic() < give_up_s, held
            time.sleep(0.1)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture
def resting(tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(tmp_path / "resting", "--working-set-bytes", "0")
    with watched.server:
        yield watched


@pytest.fixture
def keeping(tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(tmp_path / "keeping")
    with watched.server:
        yield watched


def declare(server: RealServer, backbone: Path) -> None:
    for number in range(MODELS):
        server.declare(tiny.declaration(backbone, name=f"m{number}"))


def teach(client: Client, number: int, seed: int) -> None:
    model, labels = f"m{number}", [row % 4 for row in range(16)]
    digest = client.models.get(model).status.input.feature_digest
    rows = np.concatenate([tiny.features(1, label, 16, seed=seed * 100 + row) for row, label in enumerate(labels)])
    client.learn(model, [(Features(rows), [f"kind {label}" for label in labels])], feature_digest=digest)


def digests(client: Client) -> list[str]:
    return [client.models.get(f"m{number}").status.memory_digest for number in range(MODELS)]


def test_a_server_that_sets_everything_down_learns_bit_for_bit_what_one_that_keeps_it_does(
    resting: Watched, keeping: Watched, backbone: Path
) -> None:
    for watched in (resting, keeping):
        declare(watched.server, backbone)
    with resting.server.client(client_id="a") as one, keeping.server.client(client_id="a") as other:
        for seed in range(3):
            for number in range(MODELS):
                teach(one, number, seed)
                teach(other, number, seed)
            resting.until(lambda held: not any(held.values()))
            assert min(keeping.held_bytes().values()) > 0
        assert digests(one) == digests(other)
        resting.until(lambda held: not any(held.values()))
        assert one.predict("m1", tiny.images(1, 2)).version


def test_what_is_set_down_outlives_a_kill_an_erasure_and_a_new_head(resting: Watched, backbone: Path) -> None:
    declare(resting.server, backbone)
    with resting.server.client(client_id="a") as client:
        for number in range(MODELS):
            teach(client, number, 1)
        resting.until(lambda held: not any(held.values()))
        before = digests(client)
    resting.server.kill()
    resting.server.start()
    with resting.server.client(client_id="b") as client:
        assert digests(client) == before
        resting.until(lambda held: not any(held.values()))
        other_head = tiny.declaration(backbone, name="m0", head={"kind": "ncm"})
        client.models.apply(other_head)
        assert client.predict("m0", tiny.images(1, 2)).top[0]
        teach(client, 0, 2)
        assert digests(client)[1:] == before[1:]
        assert digests(client)[0] != before[0]
