"""A file that does not predict what the server predicts is not released."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.unit.export_trunks import DIM, FRONT, Server, conv_trunk, random_head

from everlearn.errors import InputError, ParityError
from everlearn.export.compose import Composer
from everlearn.export.parity import check_export, check_release, head_parity
from everlearn.export.probes import Probes, probe_images
from everlearn.values import LinearHead

METADATA = {"model": "flowers", "version": "7"}


def _moved(head: LinearHead, by: float) -> LinearHead:
    return dataclasses.replace(
        head, bias_C=head.bias_C + np.eye(len(head.labels), dtype=np.float32)[0] * np.float32(by)
    )


@pytest.mark.parametrize("normalise", [False, True])
def test_exported_head_is_the_head_to_float_rounding(normalise: bool) -> None:
    features_Bd = np.random.default_rng(0).normal(size=(20, 1280)).astype(np.float32)
    assert head_parity(random_head(50, dim=1280, normalise=normalise), features_Bd) < 1e-5


def test_head_parity_refuses_features_of_another_dimension() -> None:
    with pytest.raises(InputError, match="16"):
        head_parity(random_head(2), np.zeros((3, DIM + 1), np.float32))


def test_release_reports_strict_parity_of_trunk_and_head_and_the_fronts_difference() -> None:
    trunk, head = conv_trunk(), random_head(10)
    probes = Probes.of(trunk, Server(trunk, head).session.run)
    report = check_release(Composer(trunk).compose(head, METADATA), head.scores, head.labels, probes, tolerance=1e-4)
    assert report.composed.max_rel_diff < 1e-5
    assert report.composed.label_agreement == 1
    assert report.front_grey_levels <= 3.01
    assert report.served.max_rel_diff < 0.05
    assert report.served.probes == len(probes.samples) == 6


def test_a_change_smaller_than_the_fronts_difference_is_still_caught() -> None:
    trunk, head = conv_trunk(), random_head(10)
    probes = Probes.of(trunk, Server(trunk, head).session.run)
    other = Composer(trunk).compose(_moved(head, 0.005), METADATA)
    with pytest.raises(ParityError, match="probe 0"):
        check_release(other, head.scores, head.labels, probes, tolerance=1e-4)


def test_another_trunk_is_caught() -> None:
    trunk, head = conv_trunk(), random_head(10)
    other = dataclasses.replace(trunk.front, mean=(0.5, 0.5, 0.5))
    file = Composer(conv_trunk(front=other)).compose(head, METADATA)
    probes = Probes.of(trunk, Server(trunk, head).session.run)
    with pytest.raises(ParityError):
        check_release(file, head.scores, head.labels, probes, tolerance=1e-3)


def test_scores_beyond_the_tolerance_are_refused_and_within_it_are_not() -> None:
    trunk, head = conv_trunk(), random_head(4)
    file = Composer(trunk).compose(head, METADATA)
    images = probe_images(FRONT)[:1]
    wrong = Server(trunk, _moved(head, 0.5))
    with pytest.raises(ParityError, match="differ by"):
        check_export(file, images, wrong, tolerance=0.01, labels=head.labels)
    assert check_export(file, images, wrong, tolerance=0.6, labels=head.labels).max_abs_diff == pytest.approx(
        0.5, abs=0.1
    )


def test_scores_that_are_no_numbers_are_refused() -> None:
    head = random_head(2)
    file = Composer(conv_trunk()).compose(head, METADATA)
    rows = [np.array([np.nan, 0], np.float32)]
    with pytest.raises(ParityError):
        check_export(file, probe_images(FRONT)[:1], rows, tolerance=1.0, labels=head.labels)


def test_another_label_table_is_refused() -> None:
    trunk, head = conv_trunk(), random_head(3)
    file = Composer(trunk).compose(head, METADATA)
    with pytest.raises(ParityError, match="labels"):
        check_export(file, probe_images(FRONT), Server(trunk, head), tolerance=0.1, labels=head.labels[::-1])


def test_bytes_that_are_no_graph_are_refused() -> None:
    with pytest.raises(ParityError, match="does not load"):
        check_export(b"not a graph", probe_images(FRONT)[:1], [np.zeros(1, np.float32)], tolerance=1, labels=("a",))


def test_a_comparison_needs_images_and_a_row_for_each() -> None:
    with pytest.raises(InputError, match="at least one image"):
        check_export(b"", [], [], tolerance=1, labels=("a",))
    with pytest.raises(InputError, match="2 rows"):
        check_export(b"", probe_images(FRONT)[:1], [np.zeros(1, np.float32)] * 2, tolerance=1, labels=("a",))


def test_probe_images_are_the_same_every_time_and_of_many_shapes() -> None:
    first, second = probe_images(FRONT), probe_images(FRONT)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert len({image.shape for image in first}) == len(first)
    assert all(image.dtype == np.uint8 and image.std() > 5 for image in first)
