"""A trunk, ready to run: one ONNX Runtime session, shared by every model whose trunk has the same digest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import onnxruntime as ort

from everlearn.errors import BackboneError, UnavailableError
from everlearn.runtime.cuda_libraries import load_cuda_libraries
from everlearn.runtime.staging import DEVICES, run_wiped
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
_SMALL_BYTES = 2**20
NO_TOKEN = -1
"""What a text's row is filled up with: an id of no token, so that no text can contain it."""


class TrunkSession:
    """Runs prepared samples to features. Thread-safe: threads share one session and one copy of the weights.

    Raises UnavailableError at creation if the first provider asked for is not the one in use (ONNX Runtime falls back
    to the CPU without a word), BackboneError for bytes that are not a graph it can run.
    """

    def __init__(
        self, onnx: bytes, *, providers: Sequence[str] = (CPU,), intra_threads: int = 1, arena: bool = True
    ) -> None:
        options = session_options(intra_threads)
        # The arena keeps what it frees, unwiped: of a network that is activations, of a trunk that hands its input on
        # it is the input, and of one in 8 bits (`arena` False) the input in 8 bits. Small trunks gain nothing by one.
        options.enable_cpu_mem_arena = arena and len(onnx) > _SMALL_BYTES
        self._session = open_session(onnx, options, providers, what="the trunk")
        self._input = self._session.get_inputs()[0].name
        self._device = DEVICES.get(self.providers[0])

    @property
    def providers(self) -> tuple[str, ...]:
        """Execution providers actually in use, first choice first."""
        return tuple(self._session.get_providers())

    def run(self, samples: TrunkInput) -> FeaturesBd:
        """float32 [B, d] of prepared samples [B, ...]. Raises BackboneError if the graph refuses them."""
        try:
            if self._device is not None:
                return run_wiped(self._session, self._input, samples, "features", device=self._device)
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
    """The first line of ONNX Runtime's message, where its lines are traces of C++; of CUDA's from where it says why."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line[max(line.find("CUDA failure"), 0) :][:300]


def open_session(
    onnx: bytes, options: ort.SessionOptions, providers: Sequence[str], *, what: str
) -> ort.InferenceSession:
    """A session on the first of these providers, or none.

    Raises UnavailableError where that provider cannot be had, BackboneError where it cannot load `what`.
    """
    missing = set(providers) - set(ort.get_available_providers())
    if missing or not providers:
        raise UnavailableError(
            f"this ONNX Runtime has no {', '.join(sorted(missing)) or 'provider to run on'}; it has "
            f"{', '.join(ort.get_available_providers())}"
        )
    if CUDA in providers:
        load_cuda_libraries()
    chosen = [(name, _OPTIONS.get(name, {})) for name in providers]
    try:
        # Without its fallback, which would take up the CPU for good when a GPU fails once, and only print that.
        session = ort.InferenceSession(onnx, options, providers=chosen, enable_fallback=0)
    # ONNX Runtime's exceptions share no base of their own.
    except Exception as error:
        raise BackboneError(f"ONNX Runtime cannot load {what}: {first_line(error)}") from error
    used = session.get_providers()[0]
    if used != providers[0]:
        raise UnavailableError(
            f"{providers[0]} was asked for and ONNX Runtime fell back to {used}; install the GPU's libraries (CUDA, "
            "cuDNN) or ask for the CPU"
        )
    return session


def session_options(intra_threads: int) -> ort.SessionOptions:
    """Of every session that serves."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    options.use_deterministic_compute = True
    # A spinning pool steals the cores that decode and answer.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Memory patterns stay on: without one, threads that share a session queue up for every buffer in its arena.
    return options
