"""What a device sends of a camera's picture, in bytes, and what a model learns from it: digits at a camera's size.

Each model is taught with one form and asked with whole pictures, as a device asks; all on EfficientNet-Lite0 at 96 px.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import numpy.typing as npt
from PIL import Image
from tests.benchmarks.scene import Scene, front
from tests.benchmarks.table import Row

from everlearn.heads import head_for
from everlearn.inputs.front import to_pixels
from everlearn.learners import ClosedForm
from everlearn.memories import memory_for
from everlearn.values import FeaturesBd, ImageHWC
from everlearn_client.edge.thumbnails import Resized, longest_side, png, reduced
from everlearn_client.samples import Features, to_rows

GROUP = "edge"
SIZE, CAMERA, NOISE = 96, 480, 6.0
"""Pixels of the model and of the camera, each side; grey levels of the camera's noise."""
TAUGHT, TEST = 600, 397


def measure(scene: Scene, *, quick: bool) -> list[Row]:
    """Each form in turn."""
    taught, test = (40, 20) if quick else (TAUGHT, TEST)
    images, labels_B = scene.digits
    order = np.random.default_rng(0).permutation(len(images))[: taught + test]
    pictures, labels = [_picture(images[row], int(row)) for row in order], [str(labels_B[row]) for row in order]
    session, told = scene.session(SIZE), front(SIZE)

    def features_of(some: list[ImageHWC]) -> FeaturesBd:
        return np.concatenate([session.run(to_pixels(image, told)[None]) for image in some])

    scene.tell(f"features of {len(pictures)} pictures of {CAMERA} px")
    whole_Bd = features_of(pictures)
    rows, asked_Bd = [], whole_Bd[taught:]
    size = Resized(height=SIZE, width=SIZE, squash=told.resize == "squash").of(CAMERA, CAMERA)
    forms: dict[str, Callable[[ImageHWC], bytes]] = {
        "image, as PNG": _pillow("PNG"),
        "image, as JPEG (quality 90)": _pillow("JPEG"),
        f"thumbnail, as the model resizes ({size[1]} x {size[0]})": lambda image: png(reduced(image, *size)),
        "thumbnail of 64 px": lambda image: png(reduced(image, *longest_side(CAMERA, CAMERA, 64))),
    }
    for what, form in forms.items():
        scene.tell(what)
        sizes, taken_ms, seen = [], [], []
        for picture in pictures[:taught]:
            begun_s = time.process_time()
            data = form(picture)
            taken_ms.append(1e3 * (time.process_time() - begun_s))
            sizes.append(len(data))
            seen.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
        head_Bd = whole_Bd[:taught] if "PNG" in what else features_of(seen)
        right = _accuracy(scene, head_Bd, labels, asked_Bd)
        rows.append(_row(what, median(sizes), right, test, f"{median(taken_ms):.1f} ms of processor time each"))
    one = to_rows(Features(whole_Bd[:1])).size_bytes(0)
    right = _accuracy(scene, whole_Bd[:taught], labels, asked_Bd)
    rows.append(_row("features", one, right, test, "no picture can be seen in them, though parts can be guessed"))
    return rows


def _picture(digit: ImageHWC, seed: int) -> ImageHWC:
    """As a camera sees it: large, smooth, noisy."""
    large = Image.fromarray(digit).resize((CAMERA, CAMERA), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(seed).normal(0, NOISE, (CAMERA, CAMERA, 3))
    return (np.asarray(large) + noise).clip(0, 255).astype(np.uint8)


def _pillow(kind: str) -> Callable[[ImageHWC], bytes]:
    def encoded(image: ImageHWC) -> bytes:
        out = io.BytesIO()
        Image.fromarray(image).save(out, kind, **({"quality": 90} if kind == "JPEG" else {}))
        return out.getvalue()

    return encoded


def _accuracy(
    scene: Scene, taught_Bd: npt.NDArray[np.float32], labels: list[str], asked_Bd: npt.NDArray[np.float32]
) -> float:
    trunk = scene.trunk(SIZE)
    memory = memory_for("statistics").create(trunk.feature_dim, ())
    learner = ClosedForm(memory, head_for("balanced_ridge"), trunk.scale)
    learner.learn(taught_Bd, labels[: len(taught_Bd)])
    head = learner.head()
    best = [head.labels[index] for index in head.scores(asked_Bd).argmax(axis=1)]
    return float(np.mean([a == b for a, b in zip(best, labels[len(taught_Bd) :], strict=True)]))


def _row(what: str, size: float, right: float, test: int, detail: str) -> Row:
    return Row(
        group=GROUP,
        what=f"a sample of {CAMERA} x {CAMERA} px sent as {what}",
        measured=f"{size / 1e3:.1f} KB, {100 * right:.1f} %",
        detail=f"median; accuracy on {test} whole pictures that were not taught; {detail}",
    )
