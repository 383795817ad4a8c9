"""The process in which a student learns: `python -m everlearn.learners.gradient.imitation_child`, one for a model.

It answers `everlearn.learners.student` as `everlearn.learners.gradient.child` answers a trainer.
"""

from __future__ import annotations

import numpy as np
import torch

from everlearn.backbones.tail_manifest import load_tail
from everlearn.errors import PreconditionError
from everlearn.learners._child import Asked, serve
from everlearn.learners._frames import Frame
from everlearn.learners.gradient.imitation import Imitation
from everlearn.spec.model import DistillTo


class Child:
    """One student behind a pipe."""

    def __init__(self) -> None:
        self._student: Imitation | None = None
        self._sizes = (0, 0)
        self.asked: Asked = {
            "open": self._open,
            "learn": self._learn,
            "weights": self._weights,
            "state": self._state,
        }

    def _open(self, question: Frame) -> Frame:
        told, parts = question.told, question.parts
        torch.set_num_threads(told["threads"])
        tail = load_tail(parts["tail_graph"], parts["tail_weights"], parts["tail_manifest"])
        # Not strict: in JSON a tuple is a list.
        declared = DistillTo.model_validate(told["declared"], strict=False)
        self._sizes = (tail.input_dim, told["dim"])
        self._student = Imitation(tail, told["dim"], declared, device=told["device"])
        if "state" in parts:
            self._student.restore(parts["state"])
        return self._progress()

    def _learn(self, question: Frame) -> Frame:
        values, dim = self._sizes
        # Copies: torch does not like what it may not write to.
        pixels_Nn = np.frombuffer(question.parts["pixels"], "<f4").reshape(-1, values).copy()
        features_Nd = np.frombuffer(question.parts["features"], "<f4").reshape(-1, dim)
        imitated = self._present.learn(pixels_Nn, features_Nd, steps=question.told["steps"])
        told = {**self._progress().told, "loss": imitated.loss}
        return Frame(told=told, parts={"predicted": imitated.predicted_Nd.astype("<f4").tobytes()})

    def _weights(self, _: Frame) -> Frame:
        tail, weight_sd, bias_d = self._present.weights()
        parts = {"tail": tail, "weight": weight_sd.astype("<f4").tobytes("C"), "bias": bias_d.astype("<f4").tobytes()}
        return Frame(told=self._progress().told, parts=parts)

    def _state(self, _: Frame) -> Frame:
        return Frame(told=self._progress().told, parts={"state": self._present.to_bytes()})

    def _progress(self) -> Frame:
        return Frame(told={"steps": self._present.steps, "samples": self._present.samples})

    @property
    def _present(self) -> Imitation:
        if self._student is None:
            raise PreconditionError("no student is open in this process; ask for that first", reason="NOT_OPEN")
        return self._student


if __name__ == "__main__":
    serve(Child().asked)
