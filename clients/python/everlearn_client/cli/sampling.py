"""A labelled sample for commands that try something out: the same rows in the same order each time."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from everlearn_client.cli.datasets import Dataset, open_dataset
from everlearn_client.cli.output import say
from everlearn_client.errors import InvalidArgument
from everlearn_client.samples import Batch
from everlearn_protos.v1 import models_pb2

BATCH = 128
"""Samples a request; fewer where they are large."""
_SEED = 0

DataArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="Images: folder with one subfolder a class, .csv of path,label, or .npz with images and labels. Tensors: "
        ".csv of numbers and a label, or .npz with x and labels. Texts: .csv, .json or .jsonl of text and label, or "
        "folder of .txt.",
    ),
]
SamplesOption = Annotated[int, typer.Option("--samples", "-n", min=32, help="Largest sample to use, drawn at random.")]


@dataclass(frozen=True, eq=False)
class Sample:
    """Some rows of a dataset, in random order."""

    dataset: Dataset
    order: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.order)

    @property
    def labels(self) -> list[str]:
        """Of each sample, in order."""
        return [self.dataset.labels[row] for row in self.order]

    def batches(self, first: int = 0, last: int | None = None) -> Iterator[Batch]:
        """Batches of samples first..last-1, each small enough for a message."""
        return self.dataset.batches(self.order[first:last], batch=BATCH)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a model learns from."""

    modality: str = "image"
    shape: tuple[int, ...] = ()
    task: str = "classification"

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Kind:
        """Of a declaration's `spec`, complete or not."""
        declared = spec.get("input") or {}
        return cls(
            modality=str(declared.get("modality", "image")),
            shape=tuple(declared.get("shape") or ()),
            task=str(spec.get("task", "classification")),
        )


def draw(path: Path, samples: int, kind: Kind) -> Sample:
    """At most `samples` labelled samples at random. Raises InvalidArgument for what is no such data, for features, and
    for too few; and for another task than classification, whose answers are not right or wrong one by one.
    """
    if kind.task != "classification":
        raise InvalidArgument(f"the task is {kind.task}; this command judges classification only", field="spec.task")
    dataset = open_dataset(path, kind.modality, kind.shape)
    if dataset.is_features:
        raise InvalidArgument(f"{path} holds features of one backbone; give the samples themselves", field="DATA")
    sample = Sample(dataset, dataset.order(shuffle_seed=_SEED, limit=samples))
    if len(sample) < 2:
        raise InvalidArgument(f"{path} has {len(sample)} samples; at least 2 are needed", field="DATA")
    return sample


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does: what it has declared for the moment is deleted."""

    def on_terminate(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before: Any = signal.signal(signal.SIGTERM, on_terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Stages:
    """Says each stage of a preparation that takes time once, with whose it is."""

    def __init__(self, name: str) -> None:
        self._name, self._stage = name, ""

    def __call__(self, step: models_pb2.ApplyProgress) -> None:
        """Hears of a step."""
        if step.stage in ("download", "build") and step.stage != self._stage:
            say(f"{self._name}: {step.stage}")
        self._stage = step.stage
