"""A few tiny samples with the scores they must get, beside the file: a device tries a new version before it uses it.

An `.npz` of arrays, no pickle: `sample_0`, `sample_1`, ... as the file takes them, [1, ...] each; `expected` float32
[B, C], what the server gives; `novelty` float32 [B] where samples may be unknown; `tolerance`, relative to max(1,
largest expected score of a sample). About 3 KB and 4 C B bytes: an update of a head has a few KB, so the probes of the
parity check, half a megabyte of pixels, would not do.

Axes: B probes, C classes or outputs, d features.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from everlearn.export.front import front_graph
from everlearn.export.novelty import NOVELTY
from everlearn.export.probes import Probes, plain_session
from everlearn.values import FeaturesBd, FrontConfig, Trunk, TrunkInput

SIDES = ((16, 16), (20, 24))
"""Of images, in pixels: the file's own front enlarges them."""
COUNT = 3
"""Of other samples."""
SLACK = 20.0
LEAST_TOLERANCE = 0.02
"""A wrong trunk, head or label order is off by far more; another processor's arithmetic (ARM, int8, bfloat16), less."""


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """The samples, and what the server's trunk makes of them. Computed once per trunk."""

    samples: tuple[npt.NDArray[np.generic], ...]
    features_Bd: FeaturesBd

    @classmethod
    def of(cls, trunk: Trunk, run_trunk: Callable[[TrunkInput], FeaturesBd], probes: Probes) -> SelfTest:
        """`run_trunk`: the server's own, called with one sample at a time."""
        if not isinstance(trunk.front, FrontConfig):
            return cls(samples=probes.samples[:COUNT], features_Bd=probes.features_Bd[:COUNT])
        rng = np.random.Generator(np.random.PCG64(20240229))
        samples = tuple(rng.integers(0, 256, (1, *side, 3), np.uint8) for side in SIDES)
        front = plain_session(front_graph(trunk.front).SerializeToString())
        pixels = [front.run(["pixels"], {"image": sample})[0] for sample in samples]
        return cls(samples=samples, features_Bd=np.concatenate([run_trunk(each) for each in pixels]))

    def file(
        self,
        scores_of: Callable[[FeaturesBd], npt.NDArray[np.float32]],
        tolerance: float,
        novelty_of: Callable[[FeaturesBd], npt.NDArray[np.float32] | None] = lambda features_Bd: None,
    ) -> bytes:
        """For a version whose head gives `scores_of`, and `novelty_of` where samples may be unknown. `tolerance`: of
        its parity check. The same for the same."""
        return self._file(scores_of(self.features_Bd), novelty_of(self.features_Bd), tolerance)

    def file_of(self, onnx: bytes, output: str, tolerance: float, *, tells_novelty: bool = False) -> bytes:
        """For a file of another precision than the server's: held to what the file itself gives here in `output`, for
        its distance to the server is of its precision, and a wrong head would hide in it. `tolerance`: as `file`."""
        session = plain_session(onnx)
        name = session.get_inputs()[0].name
        outputs = [output, NOVELTY] if tells_novelty else [output]
        found = [session.run(outputs, {name: each}) for each in self.samples]
        novelty_B = np.concatenate([each[1] for each in found]) if tells_novelty else None
        return self._file(np.concatenate([each[0] for each in found]), novelty_B, tolerance)

    def _file(
        self, expected_BC: npt.NDArray[np.float32], novelty_B: npt.NDArray[np.float32] | None, tolerance: float
    ) -> bytes:
        arrays: dict[str, npt.NDArray[Any]] = {f"sample_{row}": each for row, each in enumerate(self.samples)}
        arrays["expected"] = np.asarray(expected_BC, np.float32)
        if novelty_B is not None:
            arrays["novelty"] = np.asarray(novelty_B, np.float32)
        arrays["tolerance"] = np.array(max(LEAST_TOLERANCE, SLACK * tolerance), np.float64)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()
