"""A declaration names where weights come from; it is no way to make the server open a connection or a file."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from everlearn.errors import SpecError
from everlearn.spec.load import parse

HOSTILE = [
    "http://127.0.0.1/m.safetensors",
    "https://127.0.0.1/m.safetensors",
    "http://2130706433/m.safetensors",
    "http://0x7f000001/m.safetensors",
    "http://0177.0.0.1/m.safetensors",
    "http://127.1/m.safetensors",
    "http://[::1]/m.safetensors",
    "http://[::ffff:169.254.169.254]/latest/meta-data",
    "http://169.254.169.254/latest/meta-data/iam",
    "http://metadata.google.internal/computeMetadata/v1",
    "HTTP://localhost/m.safetensors",
    "//127.0.0.1/m.safetensors",
    "ftp://127.0.0.1/m.safetensors",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "file:///etc/passwd",
    "FILE:/etc/passwd",
    "s3://bucket/m.safetensors",
    "git+https://127.0.0.1/a/b",
    "data:application/octet-stream;base64,AAAA",
    "unix:///var/run/docker.sock",
    "/etc/passwd",
    "../../etc/passwd",
    "folder:etc/passwd",
    "folder:/models/../etc/m.safetensors",
    "hf://127.0.0.1:80/a/b",
    "hf://a",
    "hf://a/b/../../c",
    "hf://a/b?x=http://127.0.0.1",
    "hf://user:secret@127.0.0.1/b",
    "hf://a/b#c",
    "hf://a%2f..%2fb/c",
    "wheel://dist/../../etc/passwd",
    "wheel:///m.safetensors",
    "pip://torch",
    "hf://a/b\nhttp://127.0.0.1/",
    "\x00hf://a/b",
    "model.tar.gz",
]


@pytest.mark.parametrize("source", HOSTILE)
def test_no_other_form_of_source_is_taken_and_none_is_looked_up(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*anything: Any, **named: Any) -> None:
        raise AssertionError("a name was looked up or an address called")

    monkeypatch.setattr(socket, "getaddrinfo", reached)
    monkeypatch.setattr(socket.socket, "connect", reached)
    backbone = {"source": source, "revision": "1.0.0"} if source.startswith("wheel") else {"source": source}
    with pytest.raises(SpecError) as caught:
        parse(json.dumps({"metadata": {"name": "a"}, "spec": {"backbone": backbone}}))
    assert "spec.backbone" in str(caught.value)
