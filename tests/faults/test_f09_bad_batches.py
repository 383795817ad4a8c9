"""Row F9: a batch that cannot be learned is refused in its turn, and those around it count as if it had not been."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests import tiny
from tests.faults.learners import MODEL, make_batches
from tests.faults.parts import bad_batches, memory_kills
from tests.faults.scene import Scene, stream

from everlearn.learners.trainer import Trainer, TrainerSettings
from everlearn.memories.base import Origin
from everlearn.spec.load import parse
from everlearn.sums import Sums
from everlearn_client.samples import Batch


def test_f09_ten_batches_with_nan_in_features_are_refused_and_the_others_count(tmp_path: Path) -> None:
    bad_batches.run(tmp_path, **bad_batches.SHORT)


def test_control_a_server_that_learns_what_is_no_number_as_zero_is_caught(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"^\[\]"):  # nothing was refused
        bad_batches.run(tmp_path, spoilt=2, batches=10, fault="any_value")


def test_f09_a_decoder_that_crashes_costs_its_batch_alone(tmp_path: Path) -> None:
    scene = Scene(tmp_path, clients=0)
    batches, features = make_batches(0, 12, scene.trunk, as_images=True)
    black = np.asarray(batches[5].samples).copy()
    black[2] = 0
    spoilt = [*batches[:5], Batch(black, batches[5].labels), *batches[6:]]
    scene.server.fault = "decoder"
    scene.server.start()
    with scene.server.client() as client:
        report = client.learn(MODEL, spoilt)
        found = client.models.get(MODEL).status.memory_digest
    assert [(each.sequence, each.code) for each in report.rejected] == [(6, "INVALID_ARGUMENT")]
    assert "a decoder's bug" not in scene.server.log
    assert found == sums_of(scene, batches, features, without=(5,))
    assert scene.server.terminate() == 0


def sums_of(scene: Scene, batches: list[Batch], features: list[np.ndarray], *, without: tuple[int, ...]) -> str:  # type: ignore[type-arg]
    """Digest."""
    sums = Sums(scene.trunk.feature_dim)
    for index, (batch, features_Bd) in enumerate(zip(batches, features, strict=True)):
        if index not in without:
            sums.add(scene.trunk.scale.quantise(features_Bd), list(batch.labels))
    return sums.digest()


@pytest.mark.slow
def test_f09_a_step_for_which_the_device_has_no_memory_is_made_as_two_or_refused(tmp_path: Path) -> None:
    scene = Scene(tmp_path, clients=0, recipe="latent_replay")
    batches, features = stream(0, 8, scene.trunk, samples=8)
    large, large_features = stream(1, 1, scene.trunk, samples=16)
    huge, _ = stream(2, 1, scene.trunk, samples=32)
    sent = [*batches[:4], *large, *huge, *batches[4:]]
    scene.server.fault = "greedy:8"
    scene.server.start()
    with scene.server.client() as client:
        report = client.learn(MODEL, sent, feature_digest=scene.trunk.feature_digest)
        found = client.models.get(MODEL).status
    assert [(each.sequence, each.code, each.field) for each in report.rejected] == [
        (6, "INVALID_ARGUMENT", "batch.samples")
    ]
    assert "no memory" in report.rejected[0].message
    assert found.sample_count == 8 * 8 + 16
    assert scene.server.terminate() == 0
    # As if the large one had been sent as two, and the huge one not at all.
    halves = [(rows, list(labels)) for rows, labels in in_two(large_features[0], list(large[0].labels))]
    order = [(each, list(batch.labels)) for each, batch in zip(features, batches, strict=True)]
    assert found.memory_digest == learned(scene, tmp_path, [*order[:4], *halves, *order[4:]])


def in_two(rows: np.ndarray, labels: list[str]) -> Iterator[tuple[np.ndarray, list[str]]]:  # type: ignore[type-arg]
    half = len(rows) // 2
    yield rows[:half], labels[:half]
    yield rows[half:], labels[half:]


def learned(scene: Scene, folder: Path, batches: list[tuple[np.ndarray, list[str]]]) -> str:  # type: ignore[type-arg]
    """Digest of a learner whose device has all the memory it wants."""
    spec = parse(tiny.declaration(tiny.write_backbone(folder, 64), recipe="latent_replay")).spec
    trainer = Trainer(spec, scene.trunk.scale, settings=replace(TrainerSettings(), device="cpu"))
    try:
        for rows_Bd, labels in batches:
            trainer.integrate(scene.trunk.scale.quantise(rows_Bd), labels, origin=Origin(client="a", time_s=0.0))
        return trainer.learned().digest()
    finally:
        trainer.close()


def test_f09_a_server_killed_ten_times_for_lack_of_memory_loses_nothing(tmp_path: Path) -> None:
    memory_kills.run(tmp_path, **memory_kills.SHORT)
