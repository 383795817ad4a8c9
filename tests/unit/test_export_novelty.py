"""A file that knows what it does not know: the same figure as the server's, and a label only where there is one."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnxruntime
import pytest
from tests.unit.export_trunks import DIM, Server, conv_trunk, random_head

from everlearn.errors import DataLossError, ParityError
from everlearn.export.compose import Composer
from everlearn.export.parity import check_release, head_parity
from everlearn.export.probes import Probes, probe_images
from everlearn.heads._novelty import solve_novelty
from everlearn.learners.base import Solution
from everlearn.sums import Sums
from everlearn.values import FeaturesBd, LinearHead, Novelty
from everlearn_server.engine.head_file import dump_solution, load_solution

METADATA = {"model": "tiny", "version": "1"}
CLASSES = 4


def head_with_novelty(*, limit: float = 1.0) -> LinearHead:
    """Of classes around what the trunk makes of its probes, so that some are known; `limit` widens all classes."""
    trunk, head = conv_trunk(), random_head(CLASSES)
    probes = Probes.of(trunk, Server(trunk, head).session.run)
    rng = np.random.default_rng(0)
    sums = Sums(DIM, head.labels)
    for label, centre_d in zip(head.labels, probes.features_Bd, strict=False):
        near = centre_d + rng.normal(0, 0.02, (40, DIM)).astype(np.float32)
        sums.add(trunk.scale.quantise(near.astype(np.float32)), [label] * 40)
    novelty = solve_novelty(sums, trunk.scale, false_alarms=0.01)
    wider = {name: getattr(novelty, name) / np.float32(limit) for name in ("weight_kC", "bias_C", "scale_C")}
    return dataclasses.replace(head, novelty=dataclasses.replace(novelty, **wider))


def novelty_in(head: LinearHead) -> Novelty:
    assert head.novelty is not None
    return head.novelty


def released(head: LinearHead, served: LinearHead, *, tolerance: float = 1e-3) -> None:
    trunk = conv_trunk()
    probes = Probes.of(trunk, Server(trunk, head).session.run)
    file = Composer(trunk).compose(head, METADATA)
    check_release(
        file, served.scores, served.labels, probes, tolerance=tolerance, novelty_of=lambda f: novelty_in(served).of(f)
    )


def test_the_file_tells_the_servers_novelty_and_has_no_label_for_what_is_unknown() -> None:
    trunk, head = conv_trunk(), head_with_novelty()
    session = onnxruntime.InferenceSession(Composer(trunk).compose(head, METADATA))
    assert [output.name for output in session.get_outputs()] == ["scores", "label_index", "label", "labels", "novelty"]
    run = Server(trunk, head).session.run
    probes, known, unknown = Probes.of(trunk, run), 0, 0
    for sample, features_d in zip(probes.samples, probes.features_Bd, strict=True):
        names = ["novelty", "label_index", "label", "scores", "labels"]
        (told,), (index,), (label,), (scores_C,), table = session.run(names, {"image": sample})
        (expected,) = novelty_in(head).of(features_d[None])
        assert told == pytest.approx(expected, rel=1e-3, abs=1e-3)
        if expected > 1:
            assert (index, label) == (-1, "")
            unknown += 1
        else:
            assert index == scores_C.argmax()
            assert label == table[index]
            known += 1
        assert tuple(table) == head.labels
    assert known
    assert unknown


def test_a_release_with_the_servers_novelty_passes_and_with_another_does_not() -> None:
    head = head_with_novelty()
    released(head, head)
    with pytest.raises(ParityError, match="novelty of probe"):
        released(head_with_novelty(limit=1.05), head)


def test_a_head_without_novelty_makes_the_file_it_always_made() -> None:
    head = random_head(CLASSES)
    session = onnxruntime.InferenceSession(Composer(conv_trunk()).compose(head, METADATA))
    assert [output.name for output in session.get_outputs()] == ["scores", "label_index", "label", "labels"]


def test_head_parity_covers_the_novelty() -> None:
    head = head_with_novelty()
    rows = Probes.of(conv_trunk(), Server(conv_trunk(), head).session.run).features_Bd
    assert 0 <= head_parity(head, rows) < 1e-3

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Elsewhere(Novelty):
        def of(self, features_Bd: FeaturesBd) -> np.ndarray:  # type: ignore[type-arg]  # a wrong server
            return super().of(features_Bd) * np.float32(1.1)

    wrong = Elsewhere(**{field.name: getattr(novelty_in(head), field.name) for field in dataclasses.fields(Novelty)})
    assert head_parity(dataclasses.replace(head, novelty=wrong), rows) > 0.05


def test_a_version_is_stored_with_it_and_one_without_as_ever() -> None:
    head = head_with_novelty()
    stored = load_solution(dump_solution(Solution(head=head)), None).head
    images = probe_images(conv_trunk().front)
    assert len(images)
    rows = np.abs(np.random.default_rng(0).normal(size=(5, DIM))).astype(np.float32)
    assert np.array_equal(novelty_in(stored).of(rows), novelty_in(head).of(rows))
    assert load_solution(dump_solution(Solution(head=random_head(3))), None).head.novelty is None
    with pytest.raises(DataLossError, match="not a head"):
        load_solution(dump_solution(Solution(head=head))[:-4], None)
