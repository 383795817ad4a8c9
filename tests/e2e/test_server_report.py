"""What was learned, as a caller of the real server reads it: over gRPC and with the command line."""

from __future__ import annotations

import json
from pathlib import Path

from tests import tiny
from tests.real_server import RealServer
from typer.testing import CliRunner

from everlearn_client import Client
from everlearn_client.cli.app import app


def test_the_report_is_in_the_status_and_survives_a_restart(server: RealServer, client: Client, backbone: Path) -> None:
    server.declare(tiny.declaration(backbone, name="told"))
    for turn in range(12):
        labels = [("red", "green", "blue")[(turn + index) % 3] for index in range(24)]
        images = tiny.images(8, turn % 3, seed=turn)
        batches = [(images, labels[at : at + 8]) for at in (0, 8, 16)]
        assert not client.learn("told", batches, client_id=f"site-{turn % 2}").rejected
    report = client.models.get("told").status.report
    assert report.total.samples == sum(row.samples for row in report.classes) == 288
    assert {row.label for row in report.classes} == {"red", "green", "blue"}
    assert report.total.HasField("temperature")
    assert report.total.announced > 0
    assert {row.client for row in report.clients} == {"site-0", "site-1"}
    assert report.curve[-1].samples == 288
    newest = next(iter(client.models.versions("told")))
    assert newest.report.total.samples > 0
    assert not newest.report.classes
    (listed,) = [model for model in client.models.list() if model.name == "models/told"]
    assert not listed.status.HasField("report")
    server.restart()
    with server.client(client_id="tester") as again:
        assert again.models.get("told").status.report == report


def test_describe_shows_it_to_people_and_json_all_of_it(server: RealServer) -> None:
    runner = CliRunner()
    shown = runner.invoke(app, ["describe", "told", "--server", server.address])
    assert shown.exit_code == 0, shown.output
    for text in ("worst class", "temperature", "calibration", "PRECISION", "RECALL", "F1"):
        assert text in shown.stdout
    data = json.loads(runner.invoke(app, ["describe", "told", "--server", server.address, "-o", "json"]).stdout)
    assert data["status"]["report"]["total"]["samples"] == 288
    assert data["status"]["report"]["curve"][-1]["samples"] == 288
