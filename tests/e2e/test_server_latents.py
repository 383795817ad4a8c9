"""Latents at rest, through the real server: sealed under a key for each client, in closed form and by steps alike."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from tests.e2e import open_latents_server
from tests.real_server import RealServer
from typer.testing import CliRunner

from everlearn.memories.latents import Latents
from everlearn_client import Client, Tensors
from everlearn_client.cli.app import app

KEPT = {"retention": {"features": "latents"}, "memory": {"kind": "latents", "capacity": 400}}
HEADS = {"nearest": {"head": {"kind": "ncm"}}, "steps": {"head": {"kind": "linear"}}}
PIXELS, DIGITS = load_digits(return_X_y=True)
CLIENTS = ("anna", "ben", "cleo")


def declaration(name: str) -> str:
    read = {"modality": "tensor", "shape": [64], "range": [0.0, 16.0]}
    return json.dumps(
        {"metadata": {"name": name}, "spec": {"backbone": {"source": "identity"}, "input": read, **KEPT, **HEADS[name]}}
    )


def teach(client: Client, name: str) -> None:
    for index, who in enumerate(CLIENTS):
        rows = slice(100 * index, 100 * index + 100)
        labels = [f"digit {digit}" for digit in DIGITS[rows]]
        client.learn(name, [(Tensors(PIXELS[rows].astype(np.float32)), labels)], client_id=who)


def found(folder: Path, rows: list[bytes]) -> int:
    """How many of some rows stand in some file of a data folder."""
    data = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    return sum(any(row in each for each in data) for row in rows)


def memory_of(folder: Path, name: str) -> bytes:
    """The bytes of the last commit's memory, of a server that does not run."""
    with closing(sqlite3.connect(folder / "everlearn.sqlite")) as database:
        content = database.execute("SELECT content FROM memory WHERE model = ?", (name,)).fetchone()[0]
    return bytes(content[content.index(b"EVLMEMO1") : len(content) - (32 if content.startswith(b"EVLGRAD1") else 0)])


def header_of(memory: bytes) -> dict[str, Any]:
    """What can be read of it without keys."""
    size = int.from_bytes(memory[8:12], "little")
    header: dict[str, Any] = json.loads(memory[12 : 12 + size])
    return header


@pytest.fixture(scope="module")
def open_rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    """The rows that a server which seals nothing keeps of the same stream; it is the control, and they are found."""
    folder = tmp_path_factory.mktemp("open") / "data"
    with RealServer(folder, program=[str(Path(open_latents_server.__file__))]) as server:
        with server.client() as client:
            for name in HEADS:
                server.declare(declaration(name))
                teach(client, name)
        server.kill()
    rows = {
        name: [row.tobytes() for row in Latents.from_bytes(memory_of(folder, name))._rows.code_Nd] for name in HEADS
    }
    for name in HEADS:
        assert len(rows[name]) == 300
        assert found(folder, rows[name]) > 290  # some lie across two pages
    return rows


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    with RealServer(tmp_path_factory.mktemp("sealed") / "data") as server:
        with server.client() as client:
            for name in HEADS:
                server.declare(declaration(name))
                teach(client, name)
        yield server


def test_no_row_is_found_in_the_data_folder_and_all_are_where_nothing_is_sealed(
    sealed: RealServer, open_rows: dict[str, list[bytes]]
) -> None:
    for name in HEADS:
        assert found(sealed.folder, open_rows[name]) == 0, name


def test_describe_calls_them_personal_data_that_is_sealed(sealed: RealServer) -> None:
    with sealed.client() as client:
        for name in HEADS:
            told = "\n".join(client.models.get(name).status.privacy)
            assert "personal data: up to 400 features of single samples are kept" in told
            assert "sealed (AES-256-GCM)" in told
            shown = CliRunner().invoke(app, ["describe", name, "--server", sealed.address]).stdout
            assert "privacy, tier: no_raw" in shown
            assert "privacy, personal data: up to 400 features of single samples are kept" in shown


def test_a_client_whose_key_is_destroyed_has_no_rows_any_more_and_the_others_keep_theirs(sealed: RealServer) -> None:
    sealed.kill()
    for name in HEADS:
        header = header_of(memory_of(sealed.folder, name))
        assert header["kind"] == "sealed_latents"
        assert [part[1] for part in header["state"]["parts"]] == list(CLIENTS)
    with closing(sqlite3.connect(sealed.folder / "everlearn.sqlite")) as database:
        assert database.execute("DELETE FROM client_key WHERE client = 'ben'").rowcount == len(HEADS)
        database.commit()
    sealed.start()
    assert sealed.log.count("what was sealed is gone with the key of its client") == len(HEADS)
    with sealed.client() as client:
        for name in HEADS:
            assert client.models.get(name).status.sample_count == 300  # learned, whether or not they are still kept
            client.learn(
                name, [(Tensors(PIXELS[300:301].astype(np.float32)), [f"digit {DIGITS[300]}"])], client_id="dora"
            )
            predicted = client.predict(name, Tensors(PIXELS[:100].astype(np.float32))).top
            right = [top[0].label == f"digit {digit}" for top, digit in zip(predicted, DIGITS[:100], strict=True)]
            assert np.mean(right) > 0.7
    sealed.kill()
    for name in HEADS:
        state = header_of(memory_of(sealed.folder, name))["state"]
        rows = {part[1]: part[2] for part in state["parts"]}
        assert set(rows) == {"anna", "cleo", "dora"}
        assert rows["anna"] == rows["cleo"] > 90 * rows["dora"] / 2
