"""From the last byte of a batch to the first prediction that knows it (d = 1280), through the server.

Each turn learns one batch of a class that no earlier batch had, from ten classes on, and asks for one of its samples
until the answer is that class. As features there is no forward pass; as images it is in the time, and is taken off by
the server's own clock.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue

import numpy as np
from tests.benchmarks.scene import DIM, Scene, ServerProcess, child, clustered_features
from tests.benchmarks.table import Row, quantiles

from everlearn_client import Client, Features
from everlearn_client.samples import SampleInput, to_message
from everlearn_protos.v1 import learn_pb2, learn_pb2_grpc

BATCH = 32
SIZE = 96
TARGET_MS = 300
GIVE_UP_S = 30


def measure(scene: Scene, *, quick: bool) -> list[Row]:
    """Features at rest, images at rest, features beside a stream of images."""
    turns = 5 if quick else 30
    random = np.random.default_rng(0)
    with scene.server("freshness") as server:
        with server.client() as client:
            client.models.apply(scene.declaration("lite0", SIZE))
            digest = client.models.get("lite0").status.input.feature_digest
            labels = [row % 10 for row in range(320)]
            ten = (Features(clustered_features(random, labels, DIM)), [f"class {label}" for label in labels])
            client.learn("lite0", [ten], feature_digest=digest)
        scene.tell("features, at rest")
        at_rest = _turns(server, digest, "rest", _feature_classes(turns, first=100))
        scene.tell("images, at rest")
        images = _turns(server, "", "images", _image_classes(scene, turns))
        scene.tell("features, beside a stream of images")
        with child("learn_load", server.address, "lite0", "images", str(SIZE), "100000", "0") as load:
            assert load.stdout is not None
            load.stdout.readline()
            beside = _turns(server, digest, "beside", _feature_classes(turns, first=1000))
    return [
        _row("features (no forward pass), server at rest", at_rest, aimed=True),
        _row(f"images at {SIZE} px, minus the forward pass, server at rest", images, aimed=True),
        _row("features (no forward pass), another stream learning images at full speed", beside, aimed=True),
    ]


Turn = tuple[str, SampleInput, SampleInput]
"""The new class, a batch of it, one sample of it."""
Timed = tuple[float, float]
"""Milliseconds from the last byte to the first prediction, and of them the forward pass."""


def _feature_classes(turns: int, *, first: int) -> Iterator[Turn]:
    random = np.random.default_rng(first)
    for label in range(first, first + turns):
        features_Bd = clustered_features(random, [label] * BATCH, DIM)
        yield f"class {label}", Features(features_Bd), Features(features_Bd[:1])


def _image_classes(scene: Scene, turns: int) -> Iterator[Turn]:
    """A digit in a colour of its own."""
    images_BHWC = scene.large_digits(SIZE, BATCH)
    random = np.random.default_rng(7)
    for turn in range(turns):
        tint_C = random.uniform(0.2, 1.0, 3)
        tinted_BHWC = (images_BHWC * tint_C + 255 * (1 - tint_C) * random.uniform(0.2, 0.8)).astype(np.uint8)
        yield f"colour {turn}", tinted_BHWC, tinted_BHWC[:1]


def _turns(server: ServerProcess, digest: str, client_id: str, classes: Iterator[Turn]) -> list[Timed]:
    """One open stream for all turns. On the bare stub: the SDK hears answers only between the batches it is given."""
    outbox: SimpleQueue[learn_pb2.LearnRequest | None] = SimpleQueue()
    inbox: SimpleQueue[learn_pb2.Received] = SimpleQueue()
    timed = []
    with server.client(client_id) as learner, server.client(f"{client_id}-asks") as asker:
        opening = learn_pb2.Open(model="models/lite0", client=client_id, feature_digest=digest)
        outbox.put(learn_pb2.LearnRequest(open=opening))
        answers = learn_pb2_grpc.LearnServiceStub(learner.channel).Learn(iter(outbox.get, None))
        listening = threading.Thread(target=_listen, args=(answers, inbox))
        listening.start()
        try:
            for sequence, (label, batch, sample) in enumerate(classes, 1):
                message = learn_pb2.Batch(sequence=sequence, labels=[label] * BATCH, samples=to_message(batch))
                begun_s = time.perf_counter()
                outbox.put(learn_pb2.LearnRequest(batch=message))
                known_s = _until_known(asker, sample, label)
                times = inbox.get(timeout=GIVE_UP_S).times
                workers = len(os.sched_getaffinity(0)) if times.trunk_ms else 1
                forward_ms = (times.decode_ms + times.trunk_ms) / workers
                timed.append(((known_s - begun_s) * 1e3, forward_ms))
                time.sleep(0.3)  # the exact solve and the commit end; at rest is at rest
        finally:
            outbox.put(None)
            listening.join()
    return timed


def _listen(answers: Iterator[learn_pb2.LearnResponse], inbox: SimpleQueue[learn_pb2.Received]) -> None:
    for answer in answers:
        if answer.WhichOneof("response") == "received":
            inbox.put(answer.received)


def _until_known(asker: Client, sample: SampleInput, label: str) -> float:
    give_up_s = time.perf_counter() + GIVE_UP_S
    while time.perf_counter() < give_up_s:
        answer = asker.predict("lite0", sample, version="latest")
        if answer.top[0][0].label == label:
            return time.perf_counter()
        time.sleep(0.002)
    raise RuntimeError(f"no prediction was {label!r} for {GIVE_UP_S} s; the last was {answer.top[0][0].label!r}")


def _row(what: str, timed: list[Timed], *, aimed: bool) -> Row:
    beyond = [total - forward for total, forward in timed]
    p50, p95, _, most = quantiles(beyond)
    forward = float(np.median([forward for _, forward in timed]))
    return Row(
        group="freshness",
        what=f"last byte of a batch -> a prediction that knows it: {what}",
        target=f"<= forward pass + {TARGET_MS} ms" if aimed else "",
        measured=f"{p50:.0f} ms",
        met=p50 <= TARGET_MS if aimed else None,
        detail=f"p95 {p95:.0f}, largest {most:.0f} ms over {len(timed)} batches of 32"
        + (f"; forward pass {forward:.0f} ms" if forward else ""),
    )
