"""What the tests of this folder run on, and how far from a CPU a GPU may be: stated here, and used by each of them.

    pip install -r requirements/dev.txt; pip uninstall onnxruntime; pip install 'onnxruntime-gpu[cuda,cudnn]'
    pytest tests/gpu                                 on a machine with an NVIDIA GPU
    EVERLEARN_GPU_TESTS_ON=cpu pytest tests/gpu      the same tests on the CPU, to try the tests themselves

Trunks, and tails as they serve, compute in float32 with TF32 off: what differs from a CPU is the order of sums
alone (`FLOAT32`). Tails compute in bfloat16 while they learn, which has eight bits of mantissa (`BFLOAT16`), and steps
carry differences on: after tens of them weights are compared by what they give (`AFTER_STEPS`, `AFTER_STEPS_BFLOAT16`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
import torch

from everlearn.runtime.session import CPU, CUDA

FLOAT32: Final = 1e-3
"""Largest difference of features or scores between CPU and GPU, relative to their largest magnitude. A trunk may differ
as much from torch before it is refused."""
BFLOAT16: Final = 2e-2
"""The same, of one pass of a tail as it learns: some 2^-8 a layer, over a few layers."""
AFTER_STEPS: Final = 1e-2
"""Mean difference of logits relative to their mean magnitude, of a head after tens of steps."""
AFTER_STEPS_BFLOAT16: Final = 0.5
"""The same, of a head over a tail that learned with it. Weak on purpose: accuracy is held by each test beside it."""
SCORES: Final = 0.05
"""Largest difference of a server's scores from those of the file that it exports, in logits, as on a CPU."""

DEVICE: Final = os.environ.get("EVERLEARN_GPU_TESTS_ON", "cuda")
PROVIDER: Final = CUDA if DEVICE == "cuda" else CPU

ON_TORCH: Final = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device"),
]
"""For what needs torch's CUDA alone."""
ON_ALL: Final = [
    *ON_TORCH,
    pytest.mark.skipif(
        DEVICE == "cuda" and CUDA not in ort.get_available_providers(),
        reason="this ONNX Runtime is the CPU's; install onnxruntime-gpu[cuda,cudnn] in its place",
    ),
]
"""For what needs ONNX Runtime's too."""


def relative(found: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]) -> float:
    """Largest difference, relative to the largest magnitude that is wanted."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Every operation through which the host would wait for the GPU is an error. On a CPU nothing is watched."""
    if DEVICE != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
