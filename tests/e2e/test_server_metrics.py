"""What an operator scrapes."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import grpc
import pytest
from tests import tiny
from tests.ports import free_port
from tests.real_server import RealServer


def test_metrics_tell_each_model_and_no_client_or_label(tmp_path: Path) -> None:
    listen = f"127.0.0.1:{free_port()}"
    with RealServer(tmp_path / "data", arguments=["--metrics-listen", listen]) as server, server.client() as client:
        client.models.apply(tiny.declaration(tiny.write_backbone(tmp_path)))
        client.learn("tiny", [(tiny.images(8, 0), ["secret-label"] * 8)], client_id="secret-client")
        client.predict("tiny", tiny.images(1, 0))
        for made_up in range(20):  # each would be a series of its own
            with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError):
                channel.unary_unary(f"/secret.{made_up}/Method")(b"", timeout=120)
        with urllib.request.urlopen(f"http://{listen}/metrics") as answer:
            text = answer.read().decode()
    assert 'everlearn_model_samples{model="tiny"} 8.0' in text
    assert 'everlearn_model_commits_total{model="tiny"} 1.0' in text
    assert 'everlearn_rpc_seconds_count{code="OK",method="/everlearn.v1.PredictService/Predict"} 1.0' in text
    assert 'everlearn_waiting_images{lane="predict"} 0.0' in text
    assert "secret" not in text
