"""Inputs of a network on a GPU, overwritten there before their memory is given back.

ONNX Runtime gives nothing that it frees back to the driver: its allocator keeps it for the next who asks, as it was. So
the input is put on the device by ourselves, and zeros are put over it when the network has run. What layers make of it
between, and the driver's own buffers on the way, are out of reach.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

DEVICES: Final = {"CUDAExecutionProvider": "cuda"}
"""Execution providers whose memory is another than ours, and what ONNX Runtime calls it."""


def run_wiped(
    session: ort.InferenceSession, name: str, values: npt.NDArray[np.generic], output: str, *, device: str
) -> npt.NDArray[np.float32]:
    """Output `output` of the session for its one input, of which nothing stays on the device. `values` is not changed.

    Raises what ONNX Runtime raises; the input is overwritten all the same.
    """
    given = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values), device, 0)
    try:
        binding = session.io_binding()
        binding.bind_ortvalue_input(name, given)
        binding.bind_output(output, "cpu")
        session.run_with_iobinding(binding)
        scores: npt.NDArray[np.float32] = binding.copy_outputs_to_cpu()[0]
        return scores
    finally:
        given.update_inplace(np.zeros(values.shape, values.dtype))
