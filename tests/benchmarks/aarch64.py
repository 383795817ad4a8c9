"""An ARM device: pulls, tries, answers, follows by differences and teaches under QEMU, beside the same on this machine.

EfficientNet-Lite0 at 96 px with a head of ten digits, from a real server on this machine. Answers are held to those of
the same files here: how fast an ARM processor would be, emulation does not say.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tests.benchmarks.arm_root import CPUS, PYTHON, ROOT, arm_python, arm_root
from tests.benchmarks.scene import Scene, ServerProcess, jpeg_files
from tests.benchmarks.table import Row

from everlearn.errors import UnavailableError
from everlearn_client import Client
from everlearn_client.errors import FailedPrecondition

GROUP = "aarch64"
SIZE, MODEL = 96, "arm"
TAUGHT, MORE = 300, 32
"""Digits, before the first version and the second."""
HERE = "this machine"
PRECISIONS = ("fp32", "int8")
"""Half precision computes as fp32 does once its weights are read."""
_DEVICE = Path(__file__).with_name("aarch64_device.py")
_MODULES = (ROOT / "clients" / "python", ROOT / "protos")
_WAIT_S = 600.0


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One machine with one precision, on both versions."""

    first: dict[str, Any]
    second: dict[str, Any]

    @property
    def scores_NC(self) -> np.ndarray[Any, np.dtype[np.float64]]:  # noqa: N802  # axes
        """Of both versions, one behind the other."""
        return np.array([*self.first["scores"], *self.second["scores"]])


def measure(scene: Scene, *, quick: bool) -> list[Row]:
    """Raises UnavailableError without QEMU, Debian or wheels; and on ARM, where there is nothing to emulate."""
    if platform.machine() != "x86_64":
        raise UnavailableError(f"this machine is {platform.machine()}: what is emulated is held to x86_64")
    scene.tell("Debian and wheels for aarch64")
    arm_root()
    images, asked = scene.folder / "asked.npz", 4 if quick else 20
    rows = slice(TAUGHT + MORE, TAUGHT + MORE + asked)
    np.savez(images, images=scene.large_digits(SIZE, TAUGHT + MORE + asked)[rows], labels=scene.digits[1][rows])
    with scene.server("aarch64") as server, server.client("teacher") as client:
        versions = _versions(scene, client)
        cpus = list(CPUS)[:1] if quick else list(CPUS)
        found = {
            (machine, precision): _device(scene, server, machine, precision, versions, images)
            for precision in PRECISIONS
            for machine in (HERE, *cpus)
        }
    labels_N = [int(label) for label in scene.digits[1][rows]]
    return [_row(found, key, [*labels_N, *labels_N]) for key in found if key[0] != HERE]


def _versions(scene: Scene, client: Client) -> tuple[int, int]:
    """Two, exported in every precision before any device teaches."""
    scene.tell("declaring and teaching")
    declared = json.loads(scene.declaration(MODEL, SIZE))
    declared["spec"]["int8_export"] = {"max_drop": 0.2}
    client.models.apply(json.dumps(declared))
    _teach(scene, client, range(0, TAUGHT, 20), 20)
    give_up_s = time.monotonic() + _WAIT_S
    while True:  # a busy server looks at fewer images
        try:
            first = client.export(MODEL, precision="int8").version
            break
        except FailedPrecondition as error:
            if time.monotonic() > give_up_s:
                raise UnavailableError(f"no export in int8: {error.message}") from error
            _teach(scene, client, range(0, TAUGHT, 20), 20)
    numbers = [_exported(client, first)]
    _teach(scene, client, range(TAUGHT, TAUGHT + MORE, MORE), MORE)
    numbers.append(_exported(client, client.export(MODEL, precision="int8").version))
    return numbers[0], numbers[1]


def _exported(client: Client, version: str) -> int:
    number = int(version.rpartition("/")[2])
    for precision in PRECISIONS:
        client.export(MODEL, number, precision=precision)
    return number


def _teach(scene: Scene, client: Client, begins: range, count: int) -> None:
    jpegs, labels = jpeg_files(scene, SIZE, begins.stop), [str(label) for label in scene.digits[1]]
    client.learn(MODEL, [(jpegs[row : row + count], labels[row : row + count]) for row in begins])


def _device(
    scene: Scene, server: ServerProcess, machine: str, precision: str, versions: tuple[int, int], images: Path
) -> _Run:
    name = f"{machine.replace(' ', '-')}-{precision}"
    told = []
    for version, what in zip(versions, ("ask", "teach"), strict=True):
        scene.tell(f"{machine}, {precision}, version {version}")
        words = [server.address, MODEL, str(version), precision, str(scene.folder / name), str(images), name, what]
        if machine == HERE:
            command = [sys.executable, str(_DEVICE), *words]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_WAIT_S)
        else:
            done = arm_python(machine, _DEVICE, *words, path=_MODULES)
        if done.returncode:
            raise RuntimeError(f"{machine} with {precision} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        told.append(json.loads(done.stdout.splitlines()[-1]))
    return _Run(first=told[0], second=told[1])


def _row(found: dict[tuple[str, str], _Run], key: tuple[str, str], truth_N: list[int]) -> Row:
    (cpu, precision), arm, here = key, found[key], found[HERE, key[1]]
    largest = max(1.0, float(np.abs(here.scores_NC).max()))
    apart = float(np.abs(arm.scores_NC - here.scores_NC).max()) / largest
    same = float(np.mean(arm.scores_NC.argmax(axis=1) == here.scores_NC.argmax(axis=1)))
    right = [float(np.mean(each.scores_NC.argmax(axis=1) == truth_N)) for each in (arm, here)]
    delta, whole = (sum(each["downloaded"].values()) for each in (arm.second, arm.first))
    taught, asked, allowed = arm.second["durable"], len(arm.second["scores"]), arm.first["allowed"]
    met = apart <= allowed and taught == asked and arm.second["waiting"] == 0 and delta < whole
    return Row(
        group=GROUP,
        what=f"{precision} on {cpu} (QEMU): largest difference of a score to the same file's on this machine",
        target=f"<= {allowed:g}, as its probes",
        measured=f"{apart:.1e}",
        met=met,
        detail=f"{2 * asked} digits at {SIZE} px, two versions; best label the same for {same:.1%}, right for "
        f"{right[0]:.1%}, here {right[1]:.1%}; self-test off by {arm.first['off']:.1e} and {arm.second['off']:.1e} "
        f"(here {here.first['off']:.1e}, {here.second['off']:.1e}); installed with {whole / 1e6:.2f} MB, the next head "
        f"with {delta / 1e3:.1f} KB; {taught} samples spooled, sent and durable; Debian's Python {PYTHON}, "
        f"ONNX Runtime {arm.first['onnxruntime']}, {arm.first['machine']}; {arm.first['answer_s']:.2f} s an image, "
        "emulated",
    )
