"""Differences in TypeScript: what Python made of two files is applied byte for byte, and what is damaged is refused."""

from __future__ import annotations

import base64
import json
import random
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import helper, numpy_helper
from tests import tiny
from tests.e2e.typescript import ROOT, built

from everlearn.export.compose import Composer
from everlearn.heads import head_for
from everlearn.learners import ClosedForm
from everlearn.memories import memory_for
from everlearn_protos.delta import DeltaError, apply
from everlearn_protos.delta.encoding import encode

DIM = 512


@pytest.fixture
def node() -> str:
    return built()


def in_node(node: str, cases: list[tuple[bytes, bytes, int]]) -> list[dict[str, Any]]:
    """Of each (base, delta, most bytes) the result or the error."""
    asked = [{"base": _text(base), "delta": _text(delta), "maxBytes": most} for base, delta, most in cases]
    done = subprocess.run(
        [node, str(ROOT / "test" / "apply.mjs")],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: list[dict[str, Any]] = json.loads(done.stdout)
    return told


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def weights_of(*arrays: npt.NDArray[Any], named: str = "w") -> bytes:
    """An ONNX file that holds them."""
    tensors = [numpy_helper.from_array(array, f"{named}{index}") for index, array in enumerate(arrays)]
    return bytes(helper.make_model(helper.make_graph([], "g", [], [], tensors)).SerializeToString())


def versions(folder: Path) -> tuple[bytes, bytes]:
    """Two exports, between which a head learned 20 samples."""
    trunk = tiny.trunk_of(tiny.write_backbone(folder, DIM))
    learner = ClosedForm(memory_for("statistics").create(DIM, ()), head_for("balanced_ridge"), trunk.scale)
    composer, files = Composer(trunk), []
    for version, count in ((1, 100), (2, 2)):
        for label in range(10):
            learner.learn(tiny.features(count, label, DIM, seed=version) / 8, [f"class {label}"] * count)
        files.append(composer.compose(learner.head(), {"model": "tiny", "version": str(version)}))
    return files[0], files[1]


def pairs() -> list[tuple[bytes, bytes]]:
    """Of every kind of segment and size of number; with literals that resemble the base; of no numbers at all."""
    rng = np.random.default_rng(1)
    olds = rng.normal(0, 20, (300, 30))
    news = olds + rng.normal(0, 0.4, olds.shape)
    found = []
    for dtype in (np.int8, np.uint8, np.float16, np.int16, np.float32, np.float64, np.int64):
        found.append(tuple(weights_of(values.clip(-100, 120).astype(dtype)) for values in (olds, news)))
    bound = [values.astype(np.float32) for values in (olds, news)]
    for values in bound:
        values[:, -1] = -values[:, :-1].sum(axis=1)
    found.append((weights_of(bound[0]), weights_of(bound[1])))
    odd = bound[1].copy()
    odd[0, :3] = (np.inf, -0.0, 3e38)
    found += [(weights_of(odd), weights_of(bound[1])), (weights_of(bound[1]), weights_of(odd))]
    found.append((weights_of(bound[0]), weights_of(bound[1], named="another")))
    text, more = random.Random(3).randbytes(200_000), random.Random(4).randbytes(70_000)
    found += [(text, text[:90_000] + more + text[60_000:]), (b"", text), (text, b""), (text, text), (b"abc", b"abcabc")]
    shuffled = b"".join(text[at : at + 1000] for at in random.Random(5).sample(range(0, 200_000, 1000), 200))
    found += [(text, shuffled), (text, b"\0" * 400_000)]
    return found  # type: ignore[return-value]  # pairs


def test_every_kind_of_difference_arrives_byte_for_byte(node: str, tmp_path: Path) -> None:
    cases = [*pairs(), versions(tmp_path), tuple(reversed(versions(tmp_path)))]
    asked = [(base, encode(base, target, level=level), len(target)) for base, target in cases for level in (1, 12, 19)]
    for (base, delta, most), told in zip(asked, in_node(node, asked), strict=True):
        assert base64.b64decode(told.get("result", "")) == apply(base, delta, max_bytes=most), told


def test_a_new_head_is_a_fraction_of_the_file(tmp_path: Path) -> None:
    base, target = versions(tmp_path)
    assert len(encode(base, target)) < 0.3 * len(target)


def test_what_is_damaged_cut_off_too_large_or_for_another_base_is_refused(node: str, tmp_path: Path) -> None:
    base, target = versions(tmp_path)
    delta, drawn = encode(base, target), random.Random(0)
    cases = []
    for at in sorted({*range(0, 110), *drawn.sample(range(len(delta)), 60)}):
        flipped = bytearray(delta)
        flipped[at] ^= 1 << drawn.randrange(8)
        cases.append((base, bytes(flipped), len(target)))
        if at >= 16:  # as a sender would who means harm: with a checksum that fits
            cases.append((base, _sealed(bytes(flipped)), len(target)))
    cases += [(base, delta[:end], len(target)) for end in (0, 10, 103, len(delta) - 1)]
    cases += [(base, delta + b"x", len(target)), (base, _sealed(delta + b"x"), len(target))]
    for (_, damaged, most), told in zip(cases, in_node(node, cases), strict=True):
        with pytest.raises(DeltaError):
            apply(base, damaged, max_bytes=most)
        assert told.get("error") in ("DataLoss", "WrongBase"), told
    other = bytes(reversed(base))
    wrong, large, right = in_node(node, [(other, delta, len(target)), (base, delta, 99), (base, delta, len(target))])
    assert wrong["error"] == "WrongBase"
    assert (large["error"], "at most 99 are allowed" in large["message"]) == ("DataLoss", True)
    assert base64.b64decode(right["result"]) == target


def _sealed(delta: bytes) -> bytes:
    return delta[:12] + struct.pack("<I", zlib.crc32(delta[16:])) + delta[16:]
