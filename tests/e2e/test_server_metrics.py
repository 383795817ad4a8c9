"""What an operator scrapes."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path

from tests import tiny
from tests.real_server import RealServer


def test_metrics_tell_each_model_and_no_client_or_label(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    with RealServer(tmp_path / "data", arguments=["--metrics-listen", listen]) as server, server.client() as client:
        client.models.apply(tiny.declaration(tiny.write_backbone(tmp_path)))
        client.learn("tiny", [(tiny.images(8, 0), ["secret-label"] * 8)], client_id="secret-client")
        client.predict("tiny", tiny.images(1, 0))
        with urllib.request.urlopen(f"http://{listen}/metrics") as answer:
            text = answer.read().decode()
    assert 'everlearn_model_samples{model="tiny"} 8.0' in text
    assert 'everlearn_model_commits_total{model="tiny"} 1.0' in text
    assert 'everlearn_rpc_seconds_count{code="OK",method="/everlearn.v1.PredictService/Predict"} 1.0' in text
    assert 'everlearn_waiting_images{lane="predict"} 0.0' in text
    assert "secret" not in text
