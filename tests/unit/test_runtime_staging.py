"""Inputs that are put on a device are overwritten there: the same code as on a GPU, with the CPU for the device.

What a GPU's allocators hand out afterwards is looked at in tests/gpu/test_staging_gpu.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from tests import tiny

from everlearn.errors import BackboneError
from everlearn.learners.gradient.batches import Table, moved
from everlearn.learners.gradient.targets import Told
from everlearn.memories import memory_for
from everlearn.runtime.session import TrunkSession
from everlearn.runtime.staging import run_wiped


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is put on the device, in order."""
    original, seen = ort.OrtValue.ortvalue_from_numpy, []

    def stage(values: Any, *where: Any) -> Any:
        seen.append(original(values.copy(), *where))
        return seen[-1]

    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", stage)
    return seen


def session() -> ort.InferenceSession:
    return ort.InferenceSession(tiny.backbone_onnx(), providers=["CPUExecutionProvider"])


def test_the_input_is_overwritten_on_the_device_and_the_answer_is_the_same(staged: list[Any]) -> None:
    pixels = np.random.default_rng(0).normal(size=(3, 3, 16, 16)).astype(np.float32)
    before = pixels.copy()
    (wanted,) = session().run(["vector"], {"image": pixels})
    found = run_wiped(session(), "image", pixels, "vector", device="cpu")
    assert np.array_equal(found, wanted)
    assert not staged[0].numpy().any()
    assert np.array_equal(pixels, before), "the caller's own stay"


def test_so_it_is_where_the_network_fails(staged: list[Any]) -> None:
    wrong = np.ones((1, 3, 16, 17), np.float32)
    with pytest.raises(Exception, match=r"(?i)invalid"):
        run_wiped(session(), "image", wrong, "vector", device="cpu")
    assert not staged[0].numpy().any()


def test_a_trunk_takes_that_way_where_its_memory_is_another(staged: list[Any], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    trunk = TrunkSession(tiny.trunk_of(tiny.write_backbone(tmp_path)).onnx)
    wanted = trunk.run(pixels)
    assert not staged, "in our own memory nothing is put anywhere"
    trunk._device = "cpu"
    assert np.array_equal(trunk.run(pixels), wanted)
    assert len(staged) == 1
    assert not staged[0].numpy().any()
    with pytest.raises(BackboneError, match=r"failed on \[2, 3, 16, 15\]"):
        trunk.run(pixels[..., :15])


def test_what_was_pinned_is_overwritten_after_its_copy() -> None:
    pinned = torch.arange(1, 9)
    there = moved(pinned, torch.device("cpu"))
    assert there.tolist() == list(range(1, 9))
    assert not pinned.any()


@pytest.mark.parametrize("wipes", [True, False])
def test_rows_are_overwritten_after_their_step_where_the_device_keeps_what_is_freed(wipes: bool) -> None:
    told = Told(class_B=np.array([0, 1]), filed_B=np.array([0, 1]), count_C=np.array([1, 1]))
    memory, random = memory_for("latents").create(4, ["a", "b"]), np.random.default_rng(0)
    memory.integrate(np.full((4, 4), 7, np.int16), ["a", "b"] * 2)
    table = Table(np.full((2, 4), 5, np.int16), told, torch.ones(4), 2, wipes=wipes)
    seen = []
    for rows in table.steps(memory, random, replay=2, steps=2):
        assert rows.inputs_Nn.shape == (4, 4)
        assert bool((rows.inputs_Nn[:2] == 5).all() and (rows.inputs_Nn[2:] > 5).all())
        seen.append(rows.inputs_Nn)
    table.close()
    for each in (*seen, table.new_Bn):
        assert bool(each.any()) is not wipes
