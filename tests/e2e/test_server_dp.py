"""Tier `dp` through the real server: noise on what is persisted and served, the account, and who hears what."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats
from sklearn.datasets import load_digits
from tests.e2e import impatient_server
from tests.real_server import RealServer
from typer.testing import CliRunner

from everlearn.backbones._scaled import scaled
from everlearn.backbones.identity import IdentityLoader
from everlearn.privacy.accountant import epsilon_of, noise_within, rho_of
from everlearn.privacy.mechanism import SumsMechanism
from everlearn.privacy.noised_sums import NoisedSums
from everlearn.spec.model import Backbone
from everlearn.sums import Sums
from everlearn.values import BackboneFiles, TensorFront
from everlearn_client import Client, InvalidArgument, Tensors, events
from everlearn_client.cli.app import app
from everlearn_server.check.folder import check
from everlearn_server.store.rows import SpendRow
from everlearn_server.store.store import Store

PIXELS, DIGITS = load_digits(return_X_y=True)
LABELS = [str(digit) for digit in range(10)]
PRIVACY: dict[str, Any] = {"tier": "dp", "min_samples": 64, "epsilon": 8.0, "delta": 1e-5, "noise": 1.0}
FRONT = TensorFront(shape=(64,), low=(0.0,), high=(16.0,))
NO_FILES = BackboneFiles(source="identity", revision="", paths={}, sha256={})
SCALE = IdentityLoader().build(Backbone(source="identity"), NO_FILES, FRONT, bits=12).scale
OF_CLIENTS: dict[str, Any] = {**PRIVACY, "unit": "client", "client_samples": 64, "min_samples": 64}


def declaration(name: str, **changes: Any) -> str:
    read = {"modality": "tensor", "shape": [64], "range": [0.0, 16.0]}
    spec = {"backbone": {"source": "identity"}, "input": read, "labels": LABELS, "privacy": PRIVACY, **changes}
    return json.dumps({"metadata": {"name": name}, "spec": spec})


def batch(at: int, count: int = 64) -> tuple[Tensors, list[str]]:
    return Tensors(PIXELS[at : at + count].astype(np.float32)), [str(digit) for digit in DIGITS[at : at + count]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("server") / "data"
    with RealServer(folder, program=[str(Path(impatient_server.__file__))]) as running:
        yield running


@pytest.fixture
def name(server: RealServer, request: pytest.FixtureRequest) -> str:
    chosen = f"m{zlib.crc32(request.node.name.encode())}"
    server.declare(declaration(chosen))
    return chosen


def macs(folder: Path, name: str) -> set[bytes | None]:
    """What is kept of each client's batches to check receipts by."""

    async def read(store: Store) -> set[bytes | None]:
        return {row.learned_mac for row in (await store.ledger.streams(name)).values()}

    with Store.open(folder, check=True) as store:
        return asyncio.run(read(store))


def stored(folder: Path, name: str) -> tuple[NoisedSums, tuple[SpendRow, ...]]:
    """What lies in the folder of a server that has ended."""

    async def read(store: Store) -> tuple[NoisedSums, tuple[SpendRow, ...]]:
        data = await store.ledger.memory(name)
        assert data is not None
        return NoisedSums.from_bytes(data, SCALE), await store.ledger.spends(name)

    with Store.open(folder, check=True) as store:
        return asyncio.run(read(store))


def test_digits_are_learned_within_a_declared_budget_and_describe_shows_it(server: RealServer, client: Client) -> None:
    noise = noise_within(8.0, 1e-5)
    server.declare(declaration("digits", privacy={**PRIVACY, "noise": round(noise + 0.001, 3), "min_samples": 1280}))
    client.learn("digits", [batch(at) for at in range(0, 1280, 64)])
    labels = [top[0].label for top in client.predict("digits", Tensors(PIXELS[1280:].astype(np.float32))).top]
    assert np.mean([label == str(digit) for label, digit in zip(labels, DIGITS[1280:], strict=True)]) > 0.86
    told = client.models.get("digits").status
    assert (told.budget.unit, told.budget.epsilon, told.budget.delta, told.budget.releases) == ("sample", 8, 1e-5, 1)
    assert 7.9 < told.budget.epsilon_spent <= 8
    assert 0 < told.budget.noise_share < 0.2
    assert any("epsilon 8 at delta 1e-05" in line for line in told.privacy)
    shown = CliRunner().invoke(app, ["describe", "digits", "--server", server.address]).stdout
    assert f"privacy: epsilon {told.budget.epsilon_spent:.3g} of 8 spent at delta 1e-05 for each sample, in 1" in shown
    assert "privacy, tier: dp (min_samples 1280" in shown


def test_nothing_that_samples_showed_is_told_or_kept(client: Client, server: RealServer, name: str) -> None:
    heard: list[events.LearnEvent] = []
    client.learn(name, [batch(at) for at in range(0, 640, 64)], on_event=heard.append)
    answers = [event for event in heard if isinstance(event, events.Received)]
    assert len(answers) == 10
    assert {(each.correct, each.prequential.tested, each.tested_by_version) for each in answers} == {(0, 0, 0)}
    told = client.models.get(name).status
    assert told.prequential.tested == 0
    assert not told.report.classes
    assert not told.report.clients
    exact = np.bincount(DIGITS[:640], minlength=10).tolist()
    assert list(told.samples_per_class) != exact
    assert told.sample_count == 640


def test_a_label_that_was_not_declared_is_refused_with_its_place_and_learned_by_nobody(
    client: Client, name: str
) -> None:
    values, labels = batch(0)
    rejected: list[events.LearnEvent] = []
    client.learn(name, [(values, [*labels[:-1], "unicorn"]), batch(64)], on_event=rejected.append)
    [refusal] = [event for event in rejected if isinstance(event, events.Rejected)]
    assert refusal.field == "batch.labels[63]"
    assert "not declared" in refusal.message
    assert client.models.get(name).status.sample_count == 64


def noises(server: RealServer, models: int, noise: float) -> npt.NDArray[np.float64]:
    """The noise that the writers of so many models really added, in units of its standard deviation."""
    names = [f"noise{round(noise * 10)}x{index}" for index in range(models)]
    with server.client(client_id="noisy") as client:
        for each in names:
            server.declare(declaration(each, privacy={**PRIVACY, "noise": noise}))
            client.learn(each, [batch(0)])
    server.terminate()
    mechanism, exact = SumsMechanism(scale=SCALE), Sums(64, LABELS)
    exact.add(mechanism.bounded(SCALE.quantise(scaled(FRONT, PIXELS[:64]))), [str(digit) for digit in DIGITS[:64]])
    _, sum_Cd, lower_dd = mechanism.stds(1.0, 10)
    at, found = np.tril_indices(64), []
    for each in names:
        sums, _ = stored(server.folder, each)
        found.append(((sums.sum_Cd - exact.sum_Cd) / sum_Cd).ravel())
        found.append((sums.lower_dd - exact.gram_lower_dd)[at] / lower_dd[at])
    server.start()
    return np.concatenate(found)


@pytest.fixture(scope="module")
def on_disk(server: RealServer) -> npt.NDArray[np.float64]:
    return noises(server, 4, 2.0)


def chi_square_tail(standard: npt.NDArray[np.float64]) -> float:
    return float(stats.chi2.cdf(np.sum(standard**2), standard.size))


def test_the_noise_that_the_writer_persisted_is_what_was_declared(on_disk: npt.NDArray[np.float64]) -> None:
    assert 1e-5 < chi_square_tail(on_disk / 2.0) < 1 - 1e-5
    assert stats.kstest(on_disk / 2.0, "norm").pvalue > 1e-5


def test_control_five_percent_less_noise_than_declared_is_noticed(on_disk: npt.NDArray[np.float64]) -> None:
    assert chi_square_tail(0.95 * on_disk / 2.0) < 1e-5


def test_a_client_is_refused_past_its_budget_also_after_a_crash_and_others_are_not(server: RealServer) -> None:
    noise = 1.2
    server.declare(declaration("people", privacy={**OF_CLIENTS, "noise": noise}))
    steps = 0
    while epsilon_of(rho_of(noise, releases=steps + 1), 1e-5) <= 8:
        steps += 1
    refused: list[events.LearnEvent] = []

    def learn(person: str, at: int) -> Any:
        with server.client(client_id=person) as client:
            return client.learn("people", [batch(at)], on_event=refused.append)

    for step in range(steps):
        assert learn("ann", 64 * step).rejected_batches == 0
    assert learn("ann", 64 * steps).rejected_batches == 1
    with server.client(client_id="reader") as client:
        before = client.models.get("people").status
    server.kill()
    server.start()
    with server.client(client_id="reader") as client:  # the very state and account: no noise is drawn anew
        after = client.models.get("people").status
        assert (after.memory_digest, after.budget) == (before.memory_digest, before.budget)
        assert after.samples_per_class == before.samples_per_class
    assert learn("ann", 0).rejected_batches == 1
    assert learn("bob", 0).rejected_batches == 0
    found = [event for event in refused if isinstance(event, events.Rejected)]
    assert all(
        event.code == "FAILED_PRECONDITION" and "its budget is 8 at delta 1e-05" in event.message for event in found
    )
    with server.client(client_id="reader") as client:
        told = client.models.get("people").status
    assert (told.budget.unit, told.budget.clients_at_end, told.budget.releases) == ("client", 1, steps + 1)
    assert told.budget.epsilon_spent == pytest.approx(epsilon_of(rho_of(noise, releases=steps), 1e-5))
    server.terminate()
    rows = {row.client: row for row in stored(server.folder, "people")[1]}
    assert (rows["ann"].releases, rows["bob"].releases, rows[""].releases) == (steps, 1, steps + 1)
    assert check(server.folder).damaged == []
    assert macs(server.folder, "people") <= {None, bytes(32)}  # an exact hash would confirm a guess
    server.start()


def test_a_client_that_sends_twice_as_much_into_a_step_spends_four_times_as_much(server: RealServer) -> None:
    server.declare(declaration("twice", privacy={**OF_CLIENTS, "noise": 4.0, "min_samples": 192, "min_clients": 2}))
    with server.client(client_id="little") as little, server.client(client_id="much") as much:
        with pytest.raises(Exception, match="held"):
            little.learn("twice", [batch(0)])
        much.learn("twice", [batch(64), batch(128)])
    server.terminate()
    rows = {row.client: row.rho for row in stored(server.folder, "twice")[1]}
    assert rows["little"] == pytest.approx(rho_of(4.0))
    assert rows["much"] == pytest.approx(4 * rho_of(4.0))
    server.start()


def test_a_card_says_what_was_spent(client: Client, name: str, tmp_path: Path) -> None:
    client.learn(name, [batch(at) for at in range(0, 640, 64)])
    client.download(client.export(name), tmp_path)
    card = next(path for path in tmp_path.rglob("*.md")).read_text()
    assert "Differential privacy: epsilon 4.38 at delta 1e-05 for each sample, of a budget of 8" in card


def test_what_the_noise_would_not_cover_is_refused_in_words(server: RealServer, client: Client) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"labels": []}, "needs declared labels"),
        ({"gate": {"min_accuracy": 0.5}}, "gate.min_accuracy goes by what samples showed"),
        ({"head": {"kind": "lda"}}, "knows nothing of the noise"),
        ({"privacy": {**PRIVACY, "noise": 0.5}}, "spends epsilon .* write noise: 0.6"),
        ({"privacy": {**PRIVACY, "client_samples": 4}}, "option of unit client"),
        ({"memory": {"kind": "statistics", "decay": 0.9}}, "memory.decay"),
    ]
    for changes, words in wrong:
        with pytest.raises(InvalidArgument, match=words):
            client.models.plan(declaration("wrong", **changes))
