"""What every peer serves: the trunk, one thread a call, two calls at once. Imported by the servers beside it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

WORKERS = 2


def open_session(path: str) -> ort.InferenceSession:
    """One thread a call."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def features_of(session: ort.InferenceSession, pixels_BCHW: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[B, d]."""
    features_Bd: npt.NDArray[np.float32] = session.run(["features"], {"pixels": pixels_BCHW})[0]
    return features_Bd
