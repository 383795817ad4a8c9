"""Tier `aggregate`: taking a client out is a step too, and what is left of older steps may not show others alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e import impatient_server
from tests.erasure_scene import KINDS, Scene, batches
from tests.real_server import RealServer

from everlearn_client.errors import FailedPrecondition, Held

LEAST = 20
WHOLE = 4
"""Batches of five that make one step of `LEAST`: one more may come after a step has gone, and would wait."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    KINDS["few"] = {"privacy": {"tier": "aggregate", "min_samples": LEAST, "min_class_samples": 2}}
    folder = tmp_path_factory.mktemp("minimum")
    with RealServer(folder / "data", program=[str(Path(impatient_server.__file__))]) as server:
        yield Scene(server, folder)


def hold(scene: Scene, name: str, client_id: str, seed: int, *, samples: int) -> None:
    """Sends what has to wait."""
    with pytest.raises(Held):
        scene.learn(name, client_id, batches(seed, 1, samples=samples), receipts=False)


def refused(scene: Scene, name: str, path: Path, *, match: str) -> None:
    before = scene.digest(name)
    with pytest.raises(FailedPrecondition, match=match) as caught:
        scene.erase(name, "ann", path)
    assert caught.value.reason == "BELOW_MINIMUM"
    assert scene.digest(name) == before


def test_fewer_samples_than_the_minimum_go_only_together_with_what_waits(scene: Scene) -> None:
    scene.declare("small", "few")
    scene.learn("small", "bob", batches(1, WHOLE), receipts=False)
    hold(scene, "small", "cyd", 2, samples=LEAST - 5)
    path = scene.learn("small", "ann", batches(3, 1))  # five samples, which complete the step
    refused(scene, "small", path, match="would change the model by 5 samples of 1 clients tells of them alone")
    hold(scene, "small", "bob", 4, samples=LEAST - 5)
    report = scene.erase("small", "ann", path)
    assert (report.how, report.samples) == ("subtracted", 5)


def test_what_others_sent_in_the_steps_of_a_client_does_not_show_when_it_goes(scene: Scene) -> None:
    """A step of 20 samples of ann's and one of bob's: without ann's, bob's would be all that the step is."""
    scene.declare("mixed", "few")
    hold(scene, "mixed", "bob", 1, samples=1)
    path = scene.learn("mixed", "ann", batches(2, WHOLE))
    refused(scene, "mixed", path, match="is 1 samples, and without this client that would show")
    hold(scene, "mixed", "bob", 3, samples=LEAST - 2)
    refused(scene, "mixed", path, match="ask again when 1 more have come")
    scene.learn("mixed", "bob", batches(4, 1, samples=2), receipts=False)
    report = scene.erase("mixed", "ann", path)
    assert (report.how, report.samples) == ("subtracted", 20)


def test_a_client_that_was_alone_in_its_steps_goes_without_a_trace(scene: Scene) -> None:
    scene.declare("alone", "few")
    scene.learn("alone", "bob", batches(1, WHOLE), receipts=False)
    before = scene.digest("alone")
    path = scene.learn("alone", "ann", batches(2, WHOLE))
    assert scene.erase("alone", "ann", path).exact
    assert scene.digest("alone") == before
