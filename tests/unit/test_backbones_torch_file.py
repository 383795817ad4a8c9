"""A pinned .pth, read once, apart, weights only."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import pytest
import safetensors
import torch

from everlearn.backbones.torch_file import ORDER, convert, single_dict
from everlearn.errors import BackboneError, IntegrityError


class Mark:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.write_text, (self.path, "ran"))


def saved(path: Path, value: object) -> tuple[Path, str]:
    torch.save(value, path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_tensors_keep_names_values_and_order_and_are_converted_once(tmp_path: Path) -> None:
    state = {
        "z.weight": torch.arange(6.0).reshape(2, 3),
        "a.bias": torch.ones(2, dtype=torch.float16),
        "b": torch.tensor(3),
    }
    state["tied"] = state["z.weight"]
    source, digest = saved(tmp_path / "w.pth", {"epoch": 3, "state_dict": state})
    converted = convert(source, digest, tmp_path / "cache")
    assert converted.name == f"{digest}.safetensors"
    with safetensors.safe_open(converted, "pt") as opened:
        assert json.loads(opened.metadata()[ORDER]) == ["z.weight", "a.bias", "b", "tied"]
        assert all(torch.equal(opened.get_tensor(name), tensor) for name, tensor in state.items())
    source.unlink()
    assert convert(source, digest, tmp_path / "cache") == converted
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"{digest}.safetensors"]


def test_code_in_a_pickle_never_runs(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    source = tmp_path / "evil.pth"
    source.write_bytes(pickle.dumps(Mark(marker)))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    with pytest.raises(BackboneError, match="cannot be read as weights only"):
        convert(source, digest, tmp_path / "cache")
    assert not marker.exists()
    assert not list((tmp_path / "cache").iterdir())
    # The control: an ordinary load runs it.
    pickle.loads(source.read_bytes())
    assert marker.exists()


def test_another_file_than_the_pinned_one_is_not_read(tmp_path: Path) -> None:
    source, _ = saved(tmp_path / "w.pth", {"a": torch.zeros(1)})
    with pytest.raises(IntegrityError, match="the pin says"):
        convert(source, "0" * 64, tmp_path / "cache")


def test_a_file_that_needs_more_memory_than_its_size_is_stopped(tmp_path: Path) -> None:
    # One float stored, 4 GiB seen: cloning it into a tensor of its own must hit the limit.
    source, digest = saved(tmp_path / "w.pth", {"bomb": torch.zeros(1).expand(1 << 30)})
    assert source.stat().st_size < 10_000
    with pytest.raises(BackboneError, match=r"reading the weights file w\.pth"):
        convert(source, digest, tmp_path / "cache")


def test_only_the_single_dict_of_tensors_is_taken() -> None:
    state = {"a": torch.zeros(1)}
    assert single_dict(state, torch.Tensor) == state
    assert single_dict({"model": state, "epoch": 1, "args": {}}, torch.Tensor) == state
    for value, message in [
        ([1, 2], "holds a list"),
        ({}, "holds 0 dicts"),
        ({"a": torch.zeros(1), "epoch": 3}, "holds 0 dicts"),
        (
            {"state_dict": state, "state_dict_ema": state},
            "holds 2 dicts of tensors ['state_dict', 'state_dict_ema']",
        ),
    ]:
        refusal = single_dict(value, torch.Tensor)
        assert isinstance(refusal, str)
        assert message in refusal
