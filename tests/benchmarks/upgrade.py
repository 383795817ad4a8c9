"""What moving to another backbone costs: real digits through EfficientNet-Lite0 at one size, then at another.

Learned, calibration and test digits are disjoint; the calibration's labels are used by nobody.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
from tests.benchmarks.scene import Scene
from tests.benchmarks.table import Row

from everlearn_client import Client
from everlearn_protos.v1 import models_pb2

MOVES = ((96, 160), (48, 96))
LEARNED, CALIBRATION, TEST, MORE = 500, 840, 357, 100
BATCH = 32
Images = npt.NDArray[np.uint8]
Digits = tuple[Images, list[str]]


def measure(scene: Scene, *, quick: bool) -> list[Row]:
    """Accuracy on unseen digits before, after, after some more labels, and learned anew."""
    return [_move(scene, old, new, seed=seed) for seed, (old, new) in enumerate(MOVES[: 1 if quick else None])]


def _move(scene: Scene, old: int, new: int, *, seed: int) -> Row:
    learned, seen, test, more = _parts(scene, seed)
    with scene.server(f"upgrade-{old}-{new}") as server, server.client() as client:
        client.models.apply(scene.declaration("moved", old))
        scene.tell(f"{old} px: learning {LEARNED} digits")
        _learn(client, "moved", learned)
        before = _accuracy(client, "moved", test)
        scene.tell(f"{old} to {new} px: calibrating with {CALIBRATION} digits")
        report, seconds = _upgrade(client, scene.declaration("moved", new), seen[0])
        after = _accuracy(client, "moved", test)
        scene.tell(f"{new} px: {MORE} more labels, then all anew")
        _learn(client, "moved", more)
        later = _accuracy(client, "moved", test)
        client.models.apply(scene.declaration("anew", new))
        _learn(client, "anew", learned)
        anew = _accuracy(client, "anew", test)
    would = "passes" if report.agreement >= 0.8 and report.drop_bound <= 0.1 else "refuses it"
    return Row(
        group="upgrade",
        what=f"digits, {LEARNED} learned at {old} px, moved to {new} px by {CALIBRATION} unlabelled digits",
        measured=f"{100 * (after - before):+.1f} points ({100 * before:.1f} to {100 * after:.1f} %)",
        detail=f"test of {TEST}; learned anew with the labels {100 * anew:.1f} %; moved and {MORE} more labels "
        f"{100 * later:.1f} %; the default gate {would}: {100 * report.agreement:.1f} % decided alike, loss expected "
        f"{100 * report.expected_drop:.1f}, bounded by {100 * report.drop_bound:.1f} points; "
        f"{100 * report.unexplained:.0f} % of variance unexplained; {seconds:.1f} s from the last sample to live",
    )


def _parts(scene: Scene, seed: int) -> list[Digits]:
    """Learned, calibration, test, more."""
    images, labels = scene.digits
    order = np.random.default_rng(seed).permutation(len(labels))
    cuts = np.cumsum([LEARNED, CALIBRATION, TEST])
    return [
        (np.stack([images[row] for row in rows]), [str(labels[row]) for row in rows])
        for rows in np.split(order[: cuts[-1] + MORE], cuts)
    ]


def _upgrade(client: Client, declaration: str, images: Images) -> tuple[models_pb2.UpgradeReport, float]:
    last_s = time.monotonic()

    def fed(_: int) -> None:
        nonlocal last_s
        last_s = time.monotonic()

    batches = (images[at : at + BATCH] for at in range(0, len(images), BATCH))
    # Past the gate, to see what it would have kept away; it is told of in words.
    report = client.models.upgrade_backbone("moved", declaration, batches, max_drop=1, min_agreement=0, on_fed=fed)
    return report, time.monotonic() - last_s


def _learn(client: Client, model: str, digits: Digits) -> None:
    images, labels = digits
    client.learn(model, [(images[at : at + BATCH], labels[at : at + BATCH]) for at in range(0, len(labels), BATCH)])


def _accuracy(client: Client, model: str, digits: Digits) -> float:
    images, labels = digits
    right = 0
    for at in range(0, len(labels), BATCH):
        found = client.predict(model, images[at : at + BATCH]).top
        right += sum(top[0].label == label for top, label in zip(found, labels[at : at + BATCH], strict=True))
    return right / len(labels)
