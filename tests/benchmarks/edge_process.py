"""A process whose memory is looked at: a model on a device, or ONNX Runtime alone with the same file.

    python -m tests.benchmarks.edge_process raw MODEL.onnx IMAGES.npz
    python -m tests.benchmarks.edge_process edge FOLDER IMAGES.npz ADDRESS MODEL
    python -m tests.benchmarks.edge_process late_labels (quick | full)

The first two predict every image three times, `edge` follows and teaches besides, and print one line of JSON:
resident_bytes. The third one measures the group late_labels where no memory of others is free to be used again, and
prints its rows as a list.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

PASSES = 3


def resident_bytes(pid: int | str = "self") -> int:
    """Of a process, pages that it shares with others included."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss:"))


def raw_session(path: str | Path) -> onnxruntime.InferenceSession:
    """As a device opens it: one thread, on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _raw(model: str, images: str) -> None:
    session = raw_session(model)
    images_NHWC, _ = _images(images)
    for _ in range(PASSES):
        for image in images_NHWC:
            session.run(["scores"], {"image": image[None]})


def _edge(folder: str, images: str, address: str, model: str) -> None:
    from everlearn_client import Client
    from everlearn_client.edge import EdgeModel

    images_NHWC, jpegs = _images(images)
    with Client(address, client_id="bench-device") as client, EdgeModel(model, folder=folder, client=client) as device:
        device.pull()
        for _ in range(PASSES):
            for image in images_NHWC:
                device.predict(image)
        for image, jpeg in zip(images_NHWC, jpegs, strict=True):
            device.observe(image, "7", send=[jpeg.tobytes()])
        device.flush()
        _tell()


def _images(path: str) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint8]], list[np.ndarray]]:  # type: ignore[type-arg]  # bytes
    with np.load(path, allow_pickle=False) as archive:
        images_NHWC = archive["images"]
        return images_NHWC, [archive[f"jpeg_{row}"] for row in range(len(images_NHWC))]


def _tell() -> None:
    sys.stdout.write(json.dumps({"resident_bytes": resident_bytes()}) + "\n")
    sys.stdout.flush()


def _late_labels(how: str) -> None:
    from tests.benchmarks import late_labels
    from tests.benchmarks.scene import Scene

    rows = late_labels.measure(Scene(Path()), quick=how == "quick")
    sys.stdout.write(json.dumps([dataclasses.asdict(row) for row in rows]) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "raw":
        _raw(*sys.argv[2:])
        _tell()
    else:
        {"edge": _edge, "late_labels": _late_labels}[sys.argv[1]](*sys.argv[2:])
