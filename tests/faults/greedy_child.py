"""A trainer's process whose device has no memory for a step on more than $GREEDY_ROWS samples."""

from __future__ import annotations

import os

import numpy as np
import torch

from everlearn.learners._child import serve
from everlearn.learners._frames import Frame
from everlearn.learners.gradient.child import Child


class GreedyChild(Child):
    """Fails as torch does where CUDA has no memory left: in the middle of a step."""

    def _learn(self, question: Frame) -> Frame:
        rows = len(np.frombuffer(question.parts["quantised"], np.int16)) // self._present.scale.step_d.size
        answer = super()._learn(question)
        if rows > int(os.environ["GREEDY_ROWS"]):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return answer


if __name__ == "__main__":
    serve(GreedyChild().asked)
