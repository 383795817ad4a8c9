"""CUDA's libraries are loaded where NVIDIA's wheels put them, without torch; what is missing is named."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import onnxruntime as ort
import pytest

from everlearn.errors import UnavailableError
from everlearn.runtime import cuda_libraries
from everlearn.runtime.cuda_libraries import CUDNN, DRIVER, load_cuda_libraries

NVIDIA = Path(ort.__file__).parents[1] / "nvidia"


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    load_cuda_libraries.cache_clear()
    yield
    load_cuda_libraries.cache_clear()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """ONNX Runtime that says what it could not load, on a machine where all can be loaded but what is `missing`."""

    def made(*said: str, missing: tuple[str, ...] = ()) -> list[str]:
        calls: list[str] = []

        def preload_dlls() -> None:
            calls.append("preload")
            for line in said:
                print(line)

        def load(name: str) -> None:
            calls.append(name)
            if name in missing:
                raise OSError(f"{name}: cannot open shared object file")

        monkeypatch.setattr(ort, "preload_dlls", preload_dlls)
        monkeypatch.setattr(ctypes, "CDLL", load)
        return calls

    return made


def test_where_all_is_there_it_is_loaded_once_and_nothing_is_printed(
    machine: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    calls = machine("Failed to load /x/nvidia/cu13/lib/libcurand.so.10: not there, but where the loader looks")
    load_cuda_libraries()
    load_cuda_libraries()
    assert calls == ["preload", DRIVER, "libcurand.so.10", CUDNN]
    assert capsys.readouterr().out == ""


def test_a_machine_without_a_driver_is_told_so_and_no_more(machine: Callable[..., list[str]]) -> None:
    machine(missing=(DRIVER,))
    with pytest.raises(UnavailableError, match=r"cannot be loaded: libcuda\.so\.1; .* --gpus all") as raised:
        load_cuda_libraries()
    assert "server-gpu" not in raised.value.message


def test_every_missing_library_is_named_with_what_brings_it(machine: Callable[..., list[str]]) -> None:
    machine(
        "Failed to load libcublas.so.13: libcublas.so.13: cannot open shared object file",
        "Failed to load libcurand.so.10: libcurand.so.10: cannot open shared object file",
        "Please follow the instructions",
        missing=("libcurand.so.10", CUDNN),
    )
    with pytest.raises(
        UnavailableError, match=r"cannot be loaded: libcurand\.so\.10, libcudnn\.so\.9; they come with"
    ) as raised:
        load_cuda_libraries()
    assert "everlearn[server-gpu]" in raised.value.message
    assert "driver" not in raised.value.message


def test_a_failure_is_tried_again(machine: Callable[..., list[str]]) -> None:
    machine(missing=(CUDNN,))
    with pytest.raises(UnavailableError):
        load_cuda_libraries()
    machine()
    load_cuda_libraries()


@pytest.mark.skipif(not (NVIDIA / "cudnn" / "lib" / CUDNN).exists(), reason="torch's CUDA wheels are not installed")
def test_onnx_runtime_s_own_preload_finds_torch_s_wheels_and_torch_stays_out() -> None:
    # In a process of its own, by the real function, told that this build is for the CUDA of the wheels that are here.
    code = f"""
import sys
import onnxruntime as ort
from everlearn.errors import UnavailableError
from everlearn.runtime import cuda_libraries
ort.cuda_version = "{next(NVIDIA.glob("cu[0-9]*")).name.removeprefix("cu")}.0"
try:
    cuda_libraries.load_cuda_libraries()
except UnavailableError as error:
    print(error.message)
print(sorted({{line.split("/")[-1].strip() for line in open("/proc/self/maps") if "/nvidia/" in line}}))
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    told, loaded = done.stdout.splitlines()[:-1], done.stdout.splitlines()[-1]
    assert CUDNN in loaded
    assert "libcublasLt.so" in loaded
    assert CUDNN not in "".join(told), "what was loaded by its path is found by its name"


def test_the_cpu_s_own_onnx_runtime_preloads_nothing() -> None:
    if cuda_libraries.ort.cuda_version:
        pytest.skip("this ONNX Runtime is built for CUDA")
    code = """
import onnxruntime as ort
ort.preload_dlls()
assert "nvidia" not in open("/proc/self/maps").read()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240, capture_output=True)
