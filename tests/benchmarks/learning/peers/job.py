"""What a peer gets of a stream: `environment.write_job` writes it, this reads it. NumPy and torch alone.

Axes: N samples in order of arrival, d features, E looks, T test samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

BATCH = 32
CLASSES = 10
LENGTH = 10.0
"""Features are scaled to it: softmax regression by SGD is at a loss on raw ones."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One stream over one set of features."""

    key: str
    """dataset-stream-seed."""
    digest: str
    """Of all that a peer gets."""
    train_Nd: torch.Tensor
    label_N: torch.Tensor
    test_Td: torch.Tensor
    test_label_T: npt.NDArray[np.int64]
    is_held_out_N: npt.NDArray[np.bool_]
    """Arriving samples that tuning does not learn but tests on."""
    step_ends: list[int]
    """Samples that have arrived when each step ends."""
    step_batches: list[int]
    """Batches learned when each step ends."""
    looks: list[int]
    """Batches learned at each look."""
    batch_ends: list[int]
    """Samples that have arrived when each batch ends."""

    @property
    def dataset(self) -> str:
        """First part of the key."""
        return self.key.split("-")[0]

    @property
    def stream(self) -> str:
        """Middle part of the key."""
        return self.key.split("-")[1]

    def tuning(self) -> Job:
        """The stream without what is held out of it, tested once at the end on that: never on the test samples."""
        kept = ~self.is_held_out_N
        step_ends = [int(kept[:end].sum()) for end in self.step_ends]
        sizes = np.diff([0, *step_ends])
        step_batches = np.cumsum(-(-sizes // BATCH)).tolist()
        held_out = torch.from_numpy(self.is_held_out_N)
        return replace(
            self,
            train_Nd=self.train_Nd[~held_out],
            label_N=self.label_N[~held_out],
            test_Td=self.train_Nd[held_out],
            test_label_T=self.label_N[held_out].numpy(),
            step_ends=step_ends,
            step_batches=step_batches,
            looks=[step_batches[-1]],
            batch_ends=[step_ends[-1]] * step_batches[-1],
        )


def load(path: Path) -> Job:
    """Reads a job and the features that it names."""
    with np.load(path) as stored:
        values = {name: stored[name] for name in stored.files}
    features_Nd = np.load(str(values["features"]), mmap_mode="r")
    parts = {}
    for part, rows in (("train_Nd", values["row_N"]), ("test_Td", values["test_T"])):
        chosen = np.asarray(features_Nd[rows], np.float32)
        parts[part] = torch.from_numpy(LENGTH * chosen / np.linalg.norm(chosen, axis=1, keepdims=True))
    lists = {name: values[name].tolist() for name in ("looks", "step_ends", "step_batches", "batch_ends")}
    return Job(
        key=path.stem,
        digest=str(values["digest"]),
        label_N=torch.from_numpy(values["label_N"]),
        test_label_T=values["test_label_T"],
        is_held_out_N=values["is_held_out_N"],
        **parts,
        **lists,
    )
