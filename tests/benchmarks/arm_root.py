"""A Debian for aarch64 with Python and the device's wheels, run by QEMU program by program: no container, no boot.

    .cache/aarch64/root       Debian's packages, unpacked (debootstrap --foreign: nothing in it is run)
    .cache/aarch64/site       the wheels of requirements/edge.txt for aarch64, by their hashes

QEMU finds files below `root` first, so that libraries, and /proc/cpuinfo, are those of an ARM machine.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

from everlearn.errors import UnavailableError

ROOT: Final = Path(__file__).parents[2]
CACHE: Final = ROOT / ".cache" / "aarch64"
QEMU: Final = "qemu-aarch64-static"
DEBIAN, PYTHON = "bookworm", "3.11"
CPUS: Final = {"cortex-a72": 0xD08, "neoverse-n1": 0xD0C}
"""QEMU's name -> part number. The first is a Raspberry Pi 4's, ARMv8.0; the second has dot products of 8 bits."""
_PLATFORMS: Final = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64")
_FEATURES: Final = {"cortex-a72": "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"}
_MORE: Final = " atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp ssbs"
_TIMEOUT_S: Final = 900


def arm_root() -> Path:
    """Made where it is missing: some 60 MB of packages, 60 MB of wheels. Raises UnavailableError, saying what lacks."""
    for program, package in ((QEMU, "qemu-user-static"), ("debootstrap", "debootstrap"), ("dpkg-deb", "dpkg")):
        if shutil.which(program) is None:
            raise UnavailableError(f"there is no {program} here; `apt-get install {package}` brings it")
    if not (CACHE / "ready").exists():
        shutil.rmtree(CACHE, ignore_errors=True)
        CACHE.mkdir(parents=True)
        _unpack_debian(CACHE / "root")
        _unpack_wheels(CACHE / "wheels", CACHE / "site")
        (CACHE / "ready").touch()
    return CACHE


def arm_python(cpu: str, script: Path, *arguments: str, path: tuple[Path, ...]) -> subprocess.CompletedProcess[str]:
    """A script under Debian's Python on an emulated `cpu`. `path`: of modules beside the wheels."""
    root = arm_root() / "root"
    (root / "proc").mkdir(exist_ok=True)
    # Without it ONNX Runtime's cpuinfo reads the host's, finds no ARM processor in it, and crashes.
    (root / "proc" / "cpuinfo").write_text(_cpuinfo(cpu))
    modules = ":".join(str(each) for each in (CACHE / "site", *path))
    command = [QEMU, "-cpu", cpu, "-L", str(root), "-E", f"PYTHONPATH={modules}", "-E", "OMP_NUM_THREADS=1"]
    command += [str(root / "usr" / "bin" / f"python{PYTHON}"), str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)


def _unpack_debian(root: Path) -> None:
    _run(
        "debootstrap",
        "--arch=arm64",
        "--foreign",
        "--variant=minbase",
        f"--include=python{PYTHON},libpython{PYTHON}-stdlib",
        DEBIAN,
        str(root),
        needs="Debian's packages for arm64",
    )
    for package in sorted((root / "var" / "cache" / "apt" / "archives").glob("*.deb")):
        _run("dpkg-deb", "-x", str(package), str(root), needs=package.name)


def _unpack_wheels(wheels: Path, site: Path) -> None:
    platforms = [word for each in _PLATFORMS for word in ("--platform", each)]
    _run(
        sys.executable,
        *("-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"),
        *("--implementation", "cp", "--python-version", PYTHON, "--abi", "cp311", "--abi", "abi3", "--abi", "none"),
        *platforms,
        *("--require-hashes", "-r", str(ROOT / "requirements" / "edge.txt"), "-d", str(wheels)),
        needs="wheels for aarch64",
    )
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    shutil.rmtree(wheels)


def _run(*command: str, needs: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{needs}: {command[0]} took longer than {_TIMEOUT_S} s") from None
    if done.returncode:
        raise UnavailableError(f"{needs} cannot be had: {(done.stderr or done.stdout).strip()[-500:]}")


def _cpuinfo(cpu: str) -> str:
    features = _FEATURES.get(cpu, _FEATURES["cortex-a72"] + _MORE)
    lines = "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU revision\t: 3\n"
    one = f"BogoMIPS\t: 108.00\nFeatures\t: {features}\n{lines}CPU part\t: {CPUS[cpu]:#x}\n\n"
    return "".join(f"processor\t: {number}\n{one}" for number in range(2))
