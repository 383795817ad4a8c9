"""A trunk, ready to run: one ONNX Runtime session, shared by every model whose trunk has the same digest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import onnxruntime as ort

from everlearn.errors import BackboneError, UnavailableError
from everlearn.values import FeaturesBd, TrunkInput

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

_OPTIONS: dict[str, dict[str, str]] = {
    CUDA: {
        # The default tries every algorithm anew for each batch size, and batches come in all sizes.
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        # TF32 keeps 10 bits of the mantissa: the features would not be the ones that the exported trunk gives.
        "use_tf32": "0",
    }
}
_ERRORS_ONLY = 3
NO_TOKEN = -1
"""What a text's row is filled up with: an id of no token, so that no text can contain it."""


class TrunkSession:
    """Runs prepared samples to features. Thread-safe: threads share one session and one copy of the weights.

    Raises UnavailableError at creation if the first provider asked for is not the one in use (ONNX Runtime falls back
    to the CPU without a word), BackboneError for bytes that are not a graph it can run.
    """

    def __init__(self, onnx: bytes, *, providers: Sequence[str] = (CPU,), intra_threads: int = 1) -> None:
        missing = set(providers) - set(ort.get_available_providers())
        if missing or not providers:
            raise UnavailableError(
                f"this ONNX Runtime has no {', '.join(sorted(missing)) or 'provider to run on'}; it has "
                f"{', '.join(ort.get_available_providers())}"
            )
        try:
            self._session = ort.InferenceSession(
                onnx, _options(intra_threads), providers=[(name, _OPTIONS.get(name, {})) for name in providers]
            )
        # ONNX Runtime's exceptions share no base of their own.
        except Exception as error:
            raise BackboneError(f"ONNX Runtime cannot load the trunk: {first_line(error)}") from error
        self._input = self._session.get_inputs()[0].name
        if self.providers[0] != providers[0]:
            raise UnavailableError(
                f"{providers[0]} was asked for and ONNX Runtime fell back to {self.providers[0]}; install the GPU's "
                "libraries (CUDA, cuDNN) or ask for the CPU"
            )

    @property
    def providers(self) -> tuple[str, ...]:
        """Execution providers actually in use, first choice first."""
        return tuple(self._session.get_providers())

    def run(self, samples: TrunkInput) -> FeaturesBd:
        """float32 [B, d] of prepared samples [B, ...]. Raises BackboneError if the graph refuses them."""
        try:
            return cast(FeaturesBd, self._session.run(["features"], {self._input: samples})[0])
        except Exception as error:
            raise BackboneError(f"the trunk failed on {list(samples.shape)}: {first_line(error)}") from error


def join(samples: Sequence[TrunkInput]) -> TrunkInput:
    """One batch [B, ...] of samples [1, ...] that were prepared one by one; token ids are filled up with -1."""
    if len(samples) == 1:
        return samples[0]
    if samples[0].dtype != np.int64:
        return np.concatenate(samples)
    rows_BL = np.full((len(samples), max(each.shape[1] for each in samples)), NO_TOKEN, np.int64)
    for row_L, each in zip(rows_BL, samples, strict=True):
        row_L[: each.shape[1]] = each[0]
    return rows_BL


def first_line(error: Exception) -> str:
    """The first line of ONNX Runtime's message, where its lines are traces of C++."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _options(intra_threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    options.use_deterministic_compute = True
    # A spinning pool steals the cores that decode and answer.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Memory patterns stay on: without one, threads that share a session queue up for every buffer in its arena, and two
    # of them take half as long again for an image (EfficientNet-Lite0, 224 px: 10.8 ms of CPU, 16.7 without).
    return options
