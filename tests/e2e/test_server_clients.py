"""Who a model learns from, on a real server: limits refuse in words, `clients` shows who moves it, quarantine holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.attacks import digits
from tests.real_server import RealServer
from typer.testing import CliRunner

from everlearn_client import Batch, Client, Features, NotFound, Rejected
from everlearn_client.cli.app import app
from everlearn_client.receipts import ReceiptFile

LIMITS = {"norm": 1, "client_share": 0.3, "client_floor": 200, "client_gate": 0.5, "client_labels": 10}


def declaration(name: str, **limits: object) -> str:
    spec = {
        "backbone": {"source": "identity"},
        "input": {"modality": "tensor", "shape": [64], "range": [-1, 1]},
        "limits": limits,
    }
    return json.dumps({"metadata": {"name": name}, "spec": spec})


def teach(
    server: RealServer,
    model: str,
    client_id: str,
    *,
    wrong: bool = False,
    part: int = 0,
    receipts: Path | None = None,
) -> list[str]:
    """Sends 72 samples of the digits in six batches; returns the reasons of those that were refused."""
    features_Bd, labels = digits()[0][f"c{part:02}"]
    if wrong:
        labels = [str((int(label) + 1) % 10) for label in labels]
    reasons: list[str] = []

    def heard(event: object) -> None:
        if isinstance(event, Rejected):
            reasons.append(event.reason)

    with server.client(client_id=client_id) as client:
        digest = client.models.get(model).status.input.feature_digest
        sent = [
            Batch(Features(np.ascontiguousarray(features_Bd[at : at + 12])), labels[at : at + 12])
            for at in range(0, 72, 12)
        ]
        if receipts is None:
            client.learn(model, sent, feature_digest=digest, on_event=heard)
        else:
            with ReceiptFile(receipts) as kept:
                client.learn(model, sent, feature_digest=digest, on_event=heard, receipts=kept)
    return reasons


@pytest.fixture(scope="module")
def taught(server: RealServer) -> RealServer:
    server.declare(declaration("fleet", **LIMITS))
    for n in range(4):
        assert teach(server, "fleet", f"honest-{n}", part=n) == []
    return server


def test_a_batch_beyond_a_limit_is_refused_with_its_reason_and_the_stream_goes_on(server: RealServer) -> None:
    server.declare(declaration("capped", client_share=0.3, client_floor=24))
    reasons = teach(server, "capped", "loud")
    assert reasons == ["CLIENT_SHARE"] * 4
    with server.client() as client:
        assert client.models.get("capped").status.sample_count == 24
        (loud,) = client.models.clients("capped")
    assert (loud.samples, loud.rejected_batches, loud.last_sequence, loud.durable_sequence) == (24, 4, 6, 6)


def test_clients_shows_who_moves_the_model_and_whose_labels_are_unlike_the_others(taught: RealServer) -> None:
    # Fifty samples have to be compared first, and which the head could test depends on how fast heads come.
    assert teach(taught, "fleet", "liar", wrong=True, part=5) in ([], ["CLIENT_GATE"], ["CLIENT_GATE"] * 2)
    assert set(teach(taught, "fleet", "liar", wrong=True, part=6)) == {"CLIENT_GATE"}
    with taught.client() as client:
        found = {each.client: each for each in client.models.clients("fleet")}
    assert sum(each.samples for each in found.values()) == client_samples(taught, "fleet")
    assert sum(each.share for each in found.values()) == pytest.approx(1)
    liar = found["liar"]
    assert liar.recent_accuracy < 0.3 < 0.6 < liar.others_accuracy
    assert liar.rejected_batches >= 4, "after fifty samples that can be compared"
    assert found["honest-3"].recent_accuracy > 0.6


def test_a_client_in_quarantine_is_refused_over_a_restart_until_it_is_released(taught: RealServer) -> None:
    run = CliRunner()
    at = ["--server", taught.address]
    before = client_samples(taught, "fleet")
    told = run.invoke(app, ["quarantine", "fleet", "honest-0", *at])
    assert told.exit_code == 0, told.output
    assert "honest-0 is in quarantine" in told.output
    assert teach(taught, "fleet", "honest-0", part=6) == ["QUARANTINED"] * 6
    taught.restart()
    assert teach(taught, "fleet", "honest-0", part=6) == ["QUARANTINED"] * 6
    assert client_samples(taught, "fleet") == before
    shown = json.loads(run.invoke(app, ["clients", "fleet", "-o", "json", *at]).output)
    assert [each["client"] for each in shown if each["quarantined"]] == ["honest-0"]
    table = run.invoke(app, ["clients", "fleet", *at]).output
    assert "quarantined" in next(line for line in table.splitlines() if line.startswith("honest-0"))
    released = run.invoke(app, ["quarantine", "fleet", "honest-0", "--undo", *at])
    assert "learned from again" in released.output
    assert teach(taught, "fleet", "honest-0", part=7) == []


def test_a_client_that_never_came_is_named(taught: RealServer, client: Client) -> None:
    with pytest.raises(NotFound, match="has no client 'nobody'") as caught:
        client.models.quarantine("fleet", "nobody")
    assert caught.value.field == "client"
    with pytest.raises(NotFound, match="no model 'none'"):
        list(client.models.clients("none"))


def client_samples(server: RealServer, model: str) -> int:
    with server.client() as client:
        return client.models.get(model).status.sample_count


def test_quarantine_and_exact_removal_are_one_command(
    server: RealServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the command writes the receipt where it is called
    at = ["--server", server.address]
    kept = tmp_path / "bad.receipts"
    for name in ("spoilt", "never"):
        server.declare(declaration(name))
        teach(server, name, "honest", part=1)
    teach(server, "spoilt", "bad", wrong=True, part=2, receipts=kept)
    remove = ["quarantine", "spoilt", "bad", "--remove", "--yes", *at]
    without = CliRunner().invoke(app, remove)
    assert without.exit_code == 6, "nothing proves what was learned of it"
    assert sorted(states(server, "spoilt")) == [(72, False), (72, True)], "it is in quarantine all the same"
    done = CliRunner().invoke(app, [*remove, "--receipts", str(kept)])
    assert done.exit_code == 0, done.output
    assert states(server, "spoilt") == [(72, False), (0, True)]
    with server.client() as client:
        assert client.models.get("spoilt").status.memory_digest == client.models.get("never").status.memory_digest
    assert teach(server, "spoilt", "bad", part=3) == ["QUARANTINED"] * 6


def states(server: RealServer, model: str) -> list[tuple[int, bool]]:
    with server.client() as client:
        return [(each.samples, each.quarantined) for each in client.models.clients(model)]
