"""Learning through the real server: what may be taught, in which forms, and what is the same whatever the way."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import tiny
from tests.e2e.server_calls import Stubs, encoded, refused
from tests.real_server import RealServer

from everlearn_client import Client, Features, LearnReport, Pixels
from everlearn_client.events import LearnEvent, Received
from everlearn_protos.v1 import models_pb2

DIM = 16


@pytest.fixture(scope="module", autouse=True)
def declared(server: RealServer, backbone: Path) -> None:
    """Models of these tests, each with a name of its own, on one trunk."""
    names = "open", "form-a", "form-b", "form-c", "form-d", "feat", "order-a", "order-b", "many", "empty", "quiet"
    for name in names:
        server.declare(tiny.declaration(backbone, name=name))
    server.declare(tiny.declaration(backbone, name="ahead", labels=["zebra", "ant"]))


def status(client: Client, model: str) -> models_pb2.ModelStatus:
    return client.models.get(model).status


def teach(client: Client, model: str, *batches: tuple[Any, list[str]], learner: str = "tester") -> LearnReport:
    report = client.learn(model, batches, client_id=learner)
    assert not report.rejected
    return report


def test_a_label_may_appear_at_any_time_and_keeps_its_index(client: Client) -> None:
    teach(client, "open", (tiny.images(6, 0), ["b"] * 6))
    teach(client, "open", (tiny.images(6, 1), ["a"] * 6), (tiny.images(1, 2), ["single"]))
    teach(client, "open", (tiny.images(3, 0, seed=1), ["b"] * 3))
    found = status(client, "open")
    assert list(found.labels) == ["b", "a", "single"]
    assert list(found.samples_per_class) == [9, 6, 1]
    assert client.predict("open", tiny.images(1, 2, seed=5)).top[0][0].label == "single"
    assert client.predict("open", tiny.images(1, 0, seed=5)).top[0][0].index == 0


def test_declared_labels_keep_their_indices_before_and_after_others_arrive(client: Client) -> None:
    assert list(status(client, "ahead").labels) == ["zebra", "ant"]
    teach(client, "ahead", (tiny.images(4, 3), ["newt"] * 4), (tiny.images(4, 1), ["ant"] * 4))
    found = status(client, "ahead")
    assert list(found.labels) == ["zebra", "ant", "newt"]
    assert list(found.samples_per_class) == [0, 4, 4]
    (best,) = client.predict("ahead", tiny.images(1, 3, seed=9), top_k=3).top
    assert next((scored.label, scored.index) for scored in best) == ("newt", 2)


def test_an_empty_batch_is_durable_at_once_and_changes_nothing(client: Client) -> None:
    begun_s = time.monotonic()
    report = teach(client, "empty", (np.zeros((0, 16, 16, 3), np.uint8), []))
    assert time.monotonic() - begun_s < 4.5, "draining waited for a head that cannot come"
    assert (report.durable_sequence, report.durable_samples) == (1, 0)
    assert status(client, "empty").sample_count == 0
    assert client.learn("empty", []).durable_sequence == 1


def test_every_form_of_the_same_images_teaches_the_same(client: Client) -> None:
    images = np.concatenate([tiny.images(5, label) for label in range(3)])
    labels = [f"c{label}" for label in range(3) for _ in range(5)]
    pixels = ((images.astype(np.float32) / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2)
    teach(client, "form-a", (images, labels))
    teach(client, "form-b", ([encoded(image) for image in images], labels))
    teach(client, "form-c", ([encoded(image, "WEBP") for image in images], labels))
    teach(client, "form-d", (Pixels(np.ascontiguousarray(pixels)), labels))
    digests = {status(client, f"form-{form}").memory_digest for form in "abc"}
    assert len(digests) == 1
    ours, served = (client.predict(f"form-{form}", images, scores=True).scores_NC for form in "ad")
    assert ours is not None
    assert served is not None
    np.testing.assert_allclose(ours, served, atol=2e-2)


def test_jpeg_and_images_of_other_sizes_are_learned_and_predicted(client: Client) -> None:
    for side in (7, 64):
        teach(client, "form-a", (tiny.images(4, 8, side=side), ["sized"] * 4))
    teach(client, "form-a", ([encoded(image, "JPEG") for image in tiny.images(4, 8, side=33)], ["sized"] * 4))
    wide = tiny.images(1, 8, side=40)[:, :, :24]
    assert client.predict("form-a", wide).top[0][0].label == "sized"


def test_features_of_the_same_trunk_teach_what_images_do(client: Client, backbone: Path) -> None:
    digest = status(client, "feat").input.feature_digest
    assert digest == tiny.trunk_of(backbone).feature_digest
    batches = [(Features(tiny.features(6, label, DIM)), [f"{label}"] * 6) for label in range(3)]
    client.learn("feat", batches, feature_digest=digest)
    learned = np.concatenate([tiny.features(6, label, DIM) for label in range(3)])
    predicted = [best[0].label for best in client.predict("feat", Features(learned)).top]
    assert sum(label == str(row // 6) for row, label in enumerate(predicted)) >= 16
    teach(client, "feat", (tiny.images(4, 1), ["image"] * 4))
    assert status(client, "feat").sample_count == 22


def test_two_thousand_classes_are_learned_told_and_predicted(client: Client) -> None:
    digest = status(client, "many").input.feature_digest
    rng = np.random.default_rng(0)
    features = np.abs(rng.normal(0, 1, (4000, DIM))).astype(np.float32)
    features[1::2] = features[::2]
    labels = [f"class {index // 2}" for index in range(4000)]
    batches = [(Features(features[at : at + 500]), labels[at : at + 500]) for at in range(0, 4000, 500)]
    report = client.learn("many", batches, feature_digest=digest)
    assert report.last is not None
    assert report.last.classes_seen == 2000
    found = status(client, "many")
    assert len(found.labels) == 2000
    assert set(found.samples_per_class) == {2}
    answer = client.predict("many", Features(features[:2]), scores=True, top_k=5)
    assert answer.scores_NC is not None
    assert answer.scores_NC.shape == (2, 2000)
    assert len(answer.top[0]) == 5


def test_a_reply_tells_accuracy_classes_regularization_and_the_time_of_each_stage(client: Client) -> None:
    heard: list[LearnEvent] = []
    batches = [(tiny.images(8, label, seed=7), [f"c{label}"] * 8) for label in (0, 1, 2, 0, 1, 2)]
    client.learn("form-b", batches, on_event=heard.append)
    received = [event for event in heard if isinstance(event, Received)]
    assert len(received) == 6
    last = received[-1]
    assert last.prequential.tested == 15 + 48
    assert last.prequential.accuracy == last.prequential.correct / last.prequential.tested
    assert sum(event.correct for event in received) <= last.prequential.correct
    assert last.prequential.windowed_accuracy > 0.5
    assert (last.classes_seen, last.samples) == (3, 8)
    assert last.regularization > 0
    assert last.tested_by_version > 0
    assert last.times.trunk_ms > 0
    assert last.times.decode_ms > 0
    assert last.times.integrate_ms > 0
    told = status(client, "form-b").prequential
    assert (told.tested, told.correct) == (last.prequential.tested, last.prequential.correct)


def test_who_wants_to_hear_what_is_durable_alone_learns_the_same_and_hears_of_refusals(
    client: Client, stubs: Stubs
) -> None:
    with stubs.learn("quiet", "few-words", durable_only=True) as stream:
        stream.batch(1, tiny.images(2, 0), ["a", "a"])
        stream.batch(2, tiny.images(2, 0), ["a"])
        stream.batch(3, tiny.images(3, 1), ["b", "b", "b"])
        answers = stream.finish()
    kinds = [answer.WhichOneof("response") for answer in answers]
    assert set(kinds) == {"rejected", "durable"}
    assert [answer.rejected.sequence for answer in answers if answer.HasField("rejected")] == [2]
    assert answers[-1].durable.sequence == 3
    assert list(status(client, "quiet").samples_per_class) == [2, 3]
    refused(
        lambda: stubs.learn("quiet", "few-words", durable_only=True, receipts=True),
        "INVALID_ARGUMENT",
        field="open.durable_only",
    )


def test_order_batching_and_learners_leave_no_trace_in_memory_or_predictions(
    server: RealServer, client: Client
) -> None:
    images = np.concatenate([tiny.images(12, label, seed=3) for label in range(4)])
    labels = np.array([f"c{label}" for label in range(4) for _ in range(12)])
    teach(client, "order-a", (images, list(labels)))
    shuffled = np.random.default_rng(1).permutation(len(images))
    shards = [shuffled[:5], shuffled[5:6], shuffled[6:30], shuffled[30:]]
    for number, rows in enumerate(shards):
        with server.client(client_id=f"site-{number % 2}") as site:
            site.learn("order-b", [(images[[row]], [labels[row]]) for row in rows])
    a, b = status(client, "order-a"), status(client, "order-b")
    assert a.memory_digest == b.memory_digest
    probe = tiny.images(3, 2, seed=8)
    scores = [client.predict(model, probe, scores=True) for model in ("order-a", "order-b")]
    columns = [dict(zip(answer.labels, np.transpose(answer.scores_NC), strict=True)) for answer in scores]
    for label, column in columns[0].items():
        np.testing.assert_array_equal(column, columns[1][label])
    teach(client, "order-b", (images[:1], [str(labels[0])]))
    assert status(client, "order-b").memory_digest != a.memory_digest


def test_a_restart_keeps_memory_version_record_and_predictions(server: RealServer, client: Client) -> None:
    names = ["open", "ahead", "form-a", "order-b", "many"]
    probe = tiny.images(4, 1, seed=2)
    before = {name: (status(client, name), client.predict(name, probe, scores=True)) for name in names}
    server.restart()
    for name, (told, predicted) in before.items():
        now, again = status(client, name), client.predict(name, probe, scores=True)
        assert again.version == predicted.version
        np.testing.assert_array_equal(again.scores_NC, predicted.scores_NC)
        assert (now.memory_digest, now.prequential, now.aliases) == (told.memory_digest, told.prequential, told.aliases)
        assert list(now.labels) == list(told.labels)


def test_learning_goes_on_after_a_restart_where_it_stopped(server: RealServer, client: Client) -> None:
    report = client.learn("open", [(tiny.images(2, 0), ["b"] * 2)] * 3, client_id="steady", first_sequence=1)
    server.restart()
    again = client.learn("open", [(tiny.images(2, 0), ["b"] * 2)] * 5, client_id="steady", first_sequence=1)
    assert report.durable_sequence == 3
    assert (again.skipped_batches, again.durable_batches, again.durable_sequence) == (3, 2, 5)


def test_models_on_one_backbone_share_one_trunk_session(client: Client, stubs: Stubs) -> None:
    models = list(client.models.list())
    assert len({model.status.trunk_digest for model in models}) == 1
    assert dict(client.info().trunks) == {models[0].status.trunk_digest: len(models)}
