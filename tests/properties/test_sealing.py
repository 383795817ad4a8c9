"""Latents at rest are sealed by client: none of them is found, all come back bit for bit, a lost key loses its own."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from everlearn.errors import DataLossError
from everlearn.memories.base import Origin
from everlearn.memories.latents import Latents
from everlearn.memories.sealing import counts, seal, unseal
from everlearn.memories.statistics import Statistics
from everlearn.spec.model import Memory as Declared

DIM = 24


class Box:
    """Keys in RAM."""

    def __init__(self) -> None:
        self.keys: dict[str, AESGCM] = {}
        self.gone: set[str] = set()

    def seal(self, client: str, plain: bytes) -> bytes | None:
        if client in self.gone:
            return None
        key = self.keys.setdefault(client, AESGCM(secrets.token_bytes(32)))
        nonce = secrets.token_bytes(12)
        return nonce + key.encrypt(nonce, plain, client.encode())

    def unseal(self, client: str, sealed: bytes) -> bytes | None:
        if client in self.gone:
            return None
        return self.keys[client].decrypt(sealed[:12], sealed[12:], client.encode())


def filled(declared: dict[str, Any], batches: list[tuple[int, int]], seed: int = 0) -> Latents:
    """Of (client, rows) batches."""
    random = np.random.default_rng(seed)
    memory = Latents.create(DIM, ["declared"], Declared(kind="latents", **declared))
    for time_s, (client, rows) in enumerate(batches):
        features = random.integers(-2000, 2000, (rows, DIM)).astype(np.int16)
        labels = [f"class {label}" for label in random.integers(0, 4, rows)]
        logits = random.normal(size=(rows, len(memory.labels))).astype(np.float32) if declared.get("logits") else None
        origin = Origin(client=f"client-{client}", time_s=float(time_s))
        memory.integrate(features, labels, origin=origin, logits_BC=logits)
    return memory


OPTIONS = st.fixed_dictionaries(
    {
        "capacity": st.sampled_from([5, 40, 500]),
        "precision": st.sampled_from(["int8", "fp16"]),
        "selection": st.sampled_from(["reservoir", "herding"]),
    },
    optional={"logits": st.just(True)},
)
BATCHES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(declared=OPTIONS, batches=BATCHES)
def test_what_was_sealed_comes_back_bit_for_bit(declared: dict[str, Any], batches: list[tuple[int, int]]) -> None:
    data, box = filled(declared, batches).to_bytes(), Box()
    sealed = seal(data, box)
    assert unseal(sealed, box) == data
    memory = Latents.from_bytes(data)
    assert counts(sealed) == dict(zip(memory.labels, memory.seen_C.tolist(), strict=True))


def rows_found(memory: Latents, data: bytes) -> int:
    """Rows of a memory whose codes stand in some bytes."""
    return sum(row.tobytes() in data for row in memory._rows.code_Nd)


@pytest.mark.parametrize("selection", ["reservoir", "herding"])
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_no_row_is_found_in_sealed_bytes_and_every_one_in_open_ones(selection: str, precision: str) -> None:
    memory = filled({"capacity": 60, "selection": selection, "precision": precision}, [(n % 3, 20) for n in range(9)])
    data, box = memory.to_bytes(), Box()
    assert rows_found(memory, data) == len(memory._rows) == 60  # the control
    sealed = seal(data, box)
    assert rows_found(memory, sealed) == 0
    if memory._means is not None:
        assert memory._means.sum_Cd.tobytes() in data
        assert all(row.tobytes() not in sealed for row in memory._means.sum_Cd if row.any())
    assert seal(data, box) != sealed  # each time with another nonce


@settings(max_examples=30, deadline=None)
@given(batches=BATCHES, gone=st.integers(0, 4), selection=st.sampled_from(["reservoir", "herding"]))
def test_without_its_key_a_clients_rows_are_gone_and_all_others_stay_in_order(
    batches: list[tuple[int, int]], gone: int, selection: str
) -> None:
    memory, box = filled({"capacity": 500, "selection": selection}, batches), Box()
    sealed = seal(memory.to_bytes(), box)
    box.gone.add(f"client-{gone}")
    left = Latents.from_bytes(unseal(sealed, box))
    names = list(memory._arrivals.number_of)
    stay_N = np.array([names[number] != f"client-{gone}" for number in memory._rows.client_N], bool)
    for name, column in memory._rows.columns.items():
        if name != "client":
            assert np.array_equal(left._rows.columns[name], column[stay_N])
    assert left.seen_C.tolist() == memory.seen_C.tolist()
    left.integrate(np.ones((3, DIM), np.int16), ["class 0"] * 3, origin=Origin(client="client-9", time_s=99.0))
    assert seal(left.to_bytes(), box)


def test_sealed_bytes_of_others_damaged_ones_and_ones_without_keys_are_told() -> None:
    data, box = filled({"capacity": 20}, [(0, 9), (1, 9)]).to_bytes(), Box()
    sealed = seal(data, box)
    with pytest.raises(DataLossError, match="nobody here has the keys"):
        unseal(sealed, None)
    with pytest.raises(DataLossError, match="it is of kind"):
        Latents.from_bytes(sealed)
    with pytest.raises(DataLossError, match="sha256"):
        unseal(sealed[:-40] + bytes(8) + sealed[-32:], box)


def test_sums_pass_as_they_are_and_bytes_of_before_open_without_keys() -> None:
    box = Box()
    sums = Statistics.create(DIM, ["a"]).to_bytes()
    assert seal(sums, box) == unseal(sums, box) == sums
    before = filled({"capacity": 20}, [(0, 9)]).to_bytes()
    assert unseal(before, box) == unseal(before, None) == seal(before, None) == before
    assert counts(before) is None
    assert not box.keys
