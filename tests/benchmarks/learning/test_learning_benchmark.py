"""The learning benchmark itself: it runs without peers, and its arithmetic is that of the papers. Nothing is ranked."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from tests.benchmarks.learning import environment, ours, streams, tables
from tests.benchmarks.learning.data import Dataset
from tests.benchmarks.learning.kept import kept
from tests.benchmarks.learning.peers.job import load
from tests.benchmarks.learning.plot import Curve, svg
from tests.benchmarks.learning.scores import Run, score
from tests.benchmarks.learning.streams import Stream

from everlearn.metrics.forgetting import average_incremental_accuracy, forgetting

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    labels = np.random.default_rng(0).integers(0, 10, 3000)
    return Dataset(
        name="made", features_Nd=np.zeros((3000, 2), np.float32), labels_N=labels, domain_N=np.arange(3000) // 1500
    )


@pytest.mark.slow
def test_a_quick_run_without_peers_writes_a_table_and_a_picture_a_stream(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.learning", "--quick", "--no-peers", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr
    (table,) = tmp_path.glob("*_quick.md")
    text = table.read_text()
    assert done.stdout == text
    assert re.match(r"# Learning benchmark, \d{4}-\d\d-\d\d \d\d:\d\d UTC\n", text)
    assert len(re.findall(r"^\| \*\*analytic\*\* \| \d", text, re.MULTILINE)) == 2
    assert "| digits | long tail 100: worst class of the default |" in text
    for picture in re.findall(r"\]\((.*?\.svg)\)", text):
        ET.fromstring((tmp_path / picture).read_text())


@pytest.mark.parametrize("name", list(streams.TITLES))
def test_no_stream_shows_a_test_sample_or_a_sample_twice(name: str, dataset: Dataset) -> None:
    stream = streams.build(name, dataset, 1)
    assert not np.isin(stream.test_T, stream.row_N).any()
    assert len(np.unique(stream.row_N)) == len(stream.row_N)
    assert stream.step_ends[-1] == len(stream.row_N) == len(stream.label_N)
    assert [end for _, end in stream.batches][-1] == len(stream.row_N)
    assert stream.looks[-1] == len(stream.batches)
    assert len(stream.step_looks) == len(stream.step_ends)
    assert stream.looks == sorted(set(stream.looks))


def test_a_domains_test_samples_are_seen_in_no_other_domain(dataset: Dataset) -> None:
    stream = streams.build("domain", dataset, 0)
    assert not np.isin(stream.test_T % 1500, stream.row_N % 1500).any()


def test_classes_come_in_pairs_and_what_has_not_come_does_not_count(dataset: Dataset) -> None:
    stream = streams.build("class", dataset, 0)
    labels = dataset.labels_N[stream.row_N]
    starts = (0, *stream.step_ends[:-1])
    pairs = [set(labels[start:end].tolist()) for start, end in zip(starts, stream.step_ends, strict=True)]
    assert [len(pair) for pair in pairs] == [2] * 5
    assert len(set.union(*pairs)) == 10
    first = stream.step_looks[0]
    assert set(stream.test_label_T[stream.seen_ET[first]].tolist()) == pairs[0]
    assert stream.seen_ET[-1].all()


def test_the_long_tail_is_a_hundred_to_one_and_noise_names_classes_that_have_come(dataset: Dataset) -> None:
    tail = streams.build("long_tail", dataset, 0)
    counts = np.bincount(dataset.labels_N[tail.row_N])
    assert counts.max() / counts.min() == pytest.approx(100, rel=0.5)
    noisy = streams.build("noise", dataset, 0)
    true_N = dataset.labels_N[noisy.row_N]
    assert np.mean(noisy.label_N != true_N) == pytest.approx(0.2, abs=0.03)
    for end in noisy.step_ends:
        assert set(noisy.label_N[:end].tolist()) <= set(true_N[:end].tolist())


def test_scores_are_those_of_the_papers_where_groups_are_domains_of_one_size(dataset: Dataset) -> None:
    stream = streams.build("domain", dataset, 0)
    random = np.random.default_rng(3)
    wrong_ET = random.random(stream.seen_ET.shape) < 0.3
    predicted_ET = np.where(wrong_ET, (stream.test_label_T + 1) % 10, stream.test_label_T)
    found = score(stream, _run(predicted_ET))
    right_ST = ~wrong_ET[stream.step_looks]
    accuracy_SS = np.array([[row[stream.group_T == group].mean() for group in range(2)] for row in right_ST])
    assert found.forgetting == pytest.approx(forgetting(accuracy_SS))
    assert found.average == pytest.approx(average_incremental_accuracy(accuracy_SS))
    assert found.final == pytest.approx(right_ST[-1].mean())
    assert found.worst <= found.macro


def test_a_learner_that_knows_only_the_last_pair_has_forgotten_all_else(dataset: Dataset) -> None:
    stream = streams.build("class", dataset, 0)
    found = score(stream, _only_the_newest(stream))
    assert found.forgetting == pytest.approx(1)
    assert found.final == pytest.approx(0.2, abs=0.05)
    assert found.worst == 0


def test_predictions_of_another_stream_are_refused(dataset: Dataset) -> None:
    stream = streams.build("class", dataset, 0)
    with pytest.raises(ValueError, match="the stream looks"):
        score(stream, _run(np.zeros((1, 1), np.int64)))


def test_peers_are_tuned_on_arriving_samples_that_they_then_do_not_learn(dataset: Dataset, tmp_path: Path) -> None:
    stream = streams.build("class", dataset, 0)
    rows = np.arange(3000)
    np.save(tmp_path / "features.npy", np.stack([rows, np.ones(3000)], axis=1).astype(np.float32))
    job = load(environment.write_job(tmp_path / "jobs", tmp_path / "features.npy", stream))
    tuning = job.tuning()
    # A row's number survives the scaling to one length as the ratio of its two features.
    shown, held_out = (
        set((part[:, 0] / part[:, 1]).round().int().tolist()) for part in (tuning.train_Nd, tuning.test_Td)
    )
    assert not shown & held_out
    assert shown | held_out == set(stream.row_N.tolist())
    assert not held_out & set(stream.test_T.tolist())
    assert tuning.step_ends[-1] == len(tuning.train_Nd)
    assert tuning.step_batches[-1] == sum(-(-size // 32) for size in np.diff([0, *tuning.step_ends]))


def test_a_kept_run_is_taken_while_its_digest_stays_and_computed_anew_after(tmp_path: Path) -> None:
    first, second = (_run(np.full((1, 3), value)) for value in (1, 2))
    assert kept(tmp_path, "a", "one", lambda: first) is first
    np.testing.assert_array_equal(kept(tmp_path, "a", "one", lambda: second).predicted_ET, first.predicted_ET)
    assert kept(tmp_path, "a", "two", lambda: second) is second


def test_every_recipe_on_features_is_a_declaration_that_the_server_would_read() -> None:
    found = {declared.name: declared.spec(3) for declared in ours.recipes()}
    assert found["analytic"].recipe == "analytic"
    assert found["latent_replay"].memory.capacity == 1000
    assert found["latent_replay"].train.seed == 3


def test_what_answers_a_question_of_its_own_learns_its_own_streams_and_all_else_learns_all() -> None:
    found = {declared.name: declared for declared in ours.recipes()}
    assert set(ours.ONLY_ON) <= set(found)
    assert found["latent_replay, ema 0.99"].spec(0).train.ema == 0.99
    assert (
        found["latent_replay"].spec(0).train.replay,
        found["latent_replay, 64 rows a step"].spec(0).train.replay,
    ) == (
        192,
        64,
    )
    for name, declared in found.items():
        learned = {stream for stream in streams.TITLES if declared.learns(stream, quick=False)}
        wanted = {"class"} if declared.spec(0).projection is not None else set(ours.ONLY_ON.get(name, streams.TITLES))
        assert learned == wanted


def test_rows_on_tables_are_of_what_is_held_out_and_name_the_default_rate() -> None:
    heads, values = tables.heads_on("iris", splits=2), tables.values_by_steps(1)
    shares = dict(re.findall(r"`(\w+)` ([\d.]+) %", heads.detail))
    assert list(shares) == list(tables.HEADS)
    assert all(60 < float(share) < 100 for share in shares.values())
    assert float(heads.measured.removesuffix(" points")) == pytest.approx(
        float(shares["balanced_lda"]) - float(shares["balanced_ridge"]), abs=0.11
    )
    explained = {name: float(share) for name, share in re.findall(r"(ridge|[a-z]+ [\d.]+):? (0\.\d+)", values.detail)}
    assert set(explained) == {"ridge", "huber 0.002", "huber 0.01", "mse 0.002", "mse 0.01"}
    assert all(0.2 < share < 0.7 for share in explained.values())
    assert values.measured == f"{explained['huber 0.002']:.3f} against {explained['ridge']:.3f}"


def test_a_picture_is_valid_svg_whatever_names_hold() -> None:
    curve = Curve(name="a<b & c", share_E=[0.5, 1.0], accuracy_E=[0.4, 0.9], is_peer=True)
    texts = [element.text for element in ET.fromstring(svg("x & y", [curve], [0.5, 1.0])).iter()]
    assert "a<b & c" in texts
    assert "40%" in texts


def _run(predicted_ET: np.ndarray) -> Run:
    return Run(predicted_ET=predicted_ET, learn_ms=1, solve_ms=1, state_bytes=1)


def _only_the_newest(stream: Stream) -> Run:
    label_N = stream.dataset.labels_N[stream.row_N]
    rows = []
    for look in stream.looks:
        end = stream.batches[look - 1][1]
        start = max(begin for begin in (0, *stream.step_ends) if begin < end)
        newest = np.isin(stream.test_label_T, label_N[start:end])
        rows.append(np.where(newest, stream.test_label_T, -1))
    return _run(np.stack(rows))
