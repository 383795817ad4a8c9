"""Trunk sessions: what they run on, what they refuse, and that they keep no memory."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import psutil
import pytest
from tests.unit.backbone_files import small_onnx

from everlearn.backbones.onnx_graph import trunk_graph
from everlearn.errors import BackboneError, UnavailableError
from everlearn.runtime.malloc import tune_malloc
from everlearn.runtime.process import _ENVIRONMENT
from everlearn.runtime.session import CUDA, TrunkSession, first_line


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


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, *, used: str) -> list[dict[str, object]]:
    """A machine whose ONNX Runtime is built for CUDA; it says that it runs on `used`. What sessions are asked for."""
    asked: list[dict[str, object]] = []
    original = ort.InferenceSession.__init__

    def made(self, data, options, **kwargs):  # type: ignore[no-untyped-def]
        asked.append(kwargs)
        original(self, data, options)

    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(ort.InferenceSession, "get_providers", lambda self: [used, "CPUExecutionProvider"])
    monkeypatch.setattr(ort.InferenceSession, "__init__", made)
    monkeypatch.setattr("everlearn.runtime.session.load_cuda_libraries", lambda: None)
    return asked


def test_a_silent_fallback_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # onnxruntime-gpu lists CUDA on a machine without one, and runs on the CPU with no more than a log line.
    on_a_gpu(monkeypatch, used="CPUExecutionProvider")
    with pytest.raises(UnavailableError, match="fell back to CPUExecutionProvider"):
        TrunkSession(graph(), providers=[CUDA])


def test_a_session_on_a_gpu_computes_in_full_precision_and_never_changes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = on_a_gpu(monkeypatch, used=CUDA)
    assert TrunkSession(graph(), providers=[CUDA, "CPUExecutionProvider"]).providers[0] == CUDA
    (only,) = asked
    assert only["enable_fallback"] == 0, "else one failed run moves the session to the CPU for good"
    cuda, cpu = only["providers"]  # type: ignore[misc]
    assert cuda[0] == CUDA
    assert cuda[1]["use_tf32"] == "0"
    assert cpu == ("CPUExecutionProvider", {})


def test_of_what_cuda_says_the_reason_is_told() -> None:
    # As onnxruntime-gpu 1.31 says it where the driver is too old.
    said = "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:154 std::conditional_t<THRW, void> " * 5
    told = first_line(RuntimeError(f"{said}CUDA failure 35: CUDA driver version is insufficient ; GPU=-1\n"))
    assert told == "CUDA failure 35: CUDA driver version is insufficient ; GPU=-1"
    assert first_line(ValueError("another\nline")) == "another"


def test_libraries_that_are_missing_are_named_before_a_session_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = on_a_gpu(monkeypatch, used=CUDA)

    def missing() -> None:
        raise UnavailableError("libcuda.so.1 cannot be loaded")

    monkeypatch.setattr("everlearn.runtime.session.load_cuda_libraries", missing)
    with pytest.raises(UnavailableError, match=r"libcuda\.so\.1"):
        TrunkSession(graph(), providers=[CUDA])
    assert not asked
    monkeypatch.setattr(ort.InferenceSession, "get_providers", lambda self: ["CPUExecutionProvider"])
    assert TrunkSession(graph()).run(pixels(1)).shape == (1, 8), "who asks for the CPU needs none of them"


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

    many(400)
    # Other threads of this process may take some meanwhile: what leaks, grows in each of the windows.
    assert any(many(4_000) - before < 4 << 20 for before in (many(1) for _ in range(3)))


def test_the_server_and_its_children_report_nothing_to_who_made_onnx_runtime(tmp_path: Path) -> None:
    # Official builds from 1.31 on keep a database of events in the user's cache, to be sent.
    found = {}
    ours = {"server": "import everlearn_server.cli", "edge": "import everlearn_client.edge"}
    for name, first in {**ours, "control": "pass"}.items():
        home = tmp_path / name
        home.mkdir()
        code = f"{first}\nimport onnxruntime"
        # Nothing else of ours: where CI or one of its kin is set, ONNX Runtime is silent by itself.
        paths = {key: os.environ[key] for key in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH") if key in os.environ}
        environment = {**paths, "HOME": str(home), "XDG_CACHE_HOME": str(home)}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=240, capture_output=True)
        found[name] = [path for path in home.rglob("*") if "onnxruntime" in path.name]
    assert not found["server"]
    assert not found["edge"]
    assert found["control"] or ort.__version__ != "1.31.1", "what this version does where nobody tells it not to"
    assert _ENVIRONMENT["ORT_DISABLE_TELEMETRY"] == "1"


def test_malloc_is_tuned_on_glibc() -> None:
    # In a process of its own: it would change this one for good.
    code = "from everlearn.runtime.malloc import tune_malloc; print(tune_malloc())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240)
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
