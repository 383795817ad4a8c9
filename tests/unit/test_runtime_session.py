"""Trunk sessions: what they run on, what they refuse, and that they keep no memory."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
import psutil
import pytest
from tests.unit.backbone_files import small_onnx

from everlearn.backbones.onnx_graph import trunk_graph
from everlearn.errors import BackboneError, UnavailableError
from everlearn.runtime.malloc import tune_malloc
from everlearn.runtime.session import CUDA, TrunkSession


def graph(**options: int) -> bytes:
    return trunk_graph(small_onnx(**options), "image", "flat", 32, 32, flatten=False).SerializeToString()


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, 32, 32)).astype(np.float32)


def test_features_come_out_row_by_row() -> None:
    session = TrunkSession(graph())
    features_Bd = session.run(pixels(3))
    assert features_Bd.shape == (3, 8)
    assert features_Bd.dtype == np.float32
    assert session.run(pixels(0)).shape == (0, 8)
    assert session.providers == ("CPUExecutionProvider",)


def test_threads_share_a_session_and_get_what_one_thread_gets() -> None:
    session = TrunkSession(graph())
    inputs = [pixels(1, seed) for seed in range(64)]
    expected = [session.run(one) for one in inputs]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(np.array_equal, pool.map(session.run, inputs), expected))


def test_a_provider_that_is_not_there_is_refused() -> None:
    if CUDA in ort.get_available_providers():
        pytest.skip("this ONNX Runtime is built for CUDA")
    with pytest.raises(UnavailableError, match="CUDAExecutionProvider"):
        TrunkSession(graph(), providers=[CUDA])


def test_a_silent_fallback_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # onnxruntime-gpu lists CUDA on a machine without one, and runs on the CPU with no more than a log line.
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(ort.InferenceSession, "get_providers", lambda self: ["CPUExecutionProvider"])
    original = ort.InferenceSession.__init__
    monkeypatch.setattr(
        ort.InferenceSession, "__init__", lambda self, data, options, providers: original(self, data, options)
    )
    with pytest.raises(UnavailableError, match="fell back to CPUExecutionProvider"):
        TrunkSession(graph(), providers=[CUDA])


def test_bytes_that_are_no_graph_are_refused() -> None:
    with pytest.raises(BackboneError, match="cannot load"):
        TrunkSession(b"not onnx")


def test_pixels_of_another_size_are_refused() -> None:
    with pytest.raises(BackboneError, match=r"failed on \[1, 3, 32, 31\]"):
        TrunkSession(graph()).run(pixels(1)[..., :31])


def test_memory_stays_flat_over_many_runs() -> None:
    session = TrunkSession(graph())
    process = psutil.Process()
    batches = [pixels(count) for count in (1, 2, 7, 16)]

    def many(rounds: int) -> int:
        for index in range(rounds):
            session.run(batches[index % len(batches)])
        return int(process.memory_info().rss)

    warm = many(400)
    assert many(4_000) - warm < 4 << 20


def test_malloc_is_tuned_on_glibc() -> None:
    # In a process of its own: it would change this one for good.
    code = "from everlearn.runtime.malloc import tune_malloc; print(tune_malloc())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    is_glibc = sys.platform == "linux" and "glibc" in __import__("platform").libc_ver()[0]
    assert told.stdout.strip() == str(is_glibc)
    assert callable(tune_malloc)


def test_what_stays_is_out_of_the_collector_s_sight_and_a_full_collection_leaves_it_alone() -> None:
    # In a process of its own: this one must go on collecting its cycles.
    code = """
import gc, weakref
from everlearn.runtime.garbage import freeze_what_stays

class Node:
    def __init__(self):
        self.me = self

kept, dropped_before = Node(), weakref.ref(Node())
assert freeze_what_stays() > 1000
assert dropped_before() is None and kept not in gc.get_objects()
dropped_later = weakref.ref(Node())
gc.collect()
assert dropped_later() is None
print("ok")
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "ok\n"
