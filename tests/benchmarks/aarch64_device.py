"""A device for `tests.benchmarks.aarch64`: only what `everlearn[edge]` installs is here, on whatever machine.

    python aarch64_device.py ADDRESS MODEL VERSION PRECISION FOLDER IMAGES.npz ID (teach | ask)

Pulls, tries the version on its probes, answers, teaches what it was asked about, and prints one line of JSON.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from pathlib import Path

import numpy as np

from everlearn_client import Client
from everlearn_client._download import PartFile
from everlearn_client.edge import EdgeModel, EdgeSettings
from everlearn_client.edge.session import PROBES_FILE, EdgeSession

import onnxruntime  # isort: skip  # everlearn_client.edge turns its telemetry off first


def main() -> None:
    """See above."""
    address, model, version, precision, folder, images, name, what = sys.argv[1:]
    with np.load(images, allow_pickle=False) as archive:
        images_NHWC, labels_N = archive["images"], archive["labels"]
    received = _counted()
    settings = EdgeSettings(precision=precision)
    with Client(address, client_id=name, timeout_s=300) as client:
        device = EdgeModel(model, folder=folder, client=client, version=int(version), settings=settings)
        device.pull()
        device.predict(images_NHWC[0])
        begun_s = time.perf_counter()
        answers = [device.predict(image, scores=True) for image in images_NHWC]
        answered_s = time.perf_counter() - begun_s
        if what == "teach":
            for image, label in zip(images_NHWC, labels_N, strict=True):
                device.observe(image, str(label))
            device.flush()
        told = {
            "machine": platform.machine(),
            "onnxruntime": onnxruntime.__version__,
            "version": device.version,
            "downloaded": received,
            "scores": [answer.scores_NC[0].tolist() for answer in answers if answer.scores_NC is not None],
            "waiting": device.spool.samples,
            "durable": device.spool.counts.get("durable", (0, 0))[1],
            **_self_test(Path(folder), device.version),
            "answer_s": answered_s / len(images_NHWC),
        }
        device.close()
    sys.stdout.write(json.dumps(told) + "\n")


def _counted() -> dict[str, int]:
    """Bytes that arrive, by file, from now on."""
    counts: dict[str, int] = {}
    append = PartFile.append

    def counting(self: PartFile, chunk: object) -> None:
        name = self.progress.file_name
        counts[name] = counts.get(name, 0) + len(chunk.data)  # type: ignore[attr-defined]  # a chunk
        append(self, chunk)  # type: ignore[arg-type]  # the same

    PartFile.append = counting  # type: ignore[method-assign]  # on purpose
    return counts


def _self_test(folder: Path, version: str) -> dict[str, float]:
    """How far off the version is on its probes, and what they allow."""
    for path in (folder / "model").rglob("model.onnx"):
        session = EdgeSession(path)
        if version.endswith(f"/versions/{session.version}"):
            with np.load(path.parent / PROBES_FILE, allow_pickle=False) as archive:
                allowed = float(archive["tolerance"])
            return {"off": session.self_test(path.parent / PROBES_FILE), "allowed": allowed}
    raise RuntimeError(f"{version} is in none of the slots")


if __name__ == "__main__":
    main()
