"""The process in which a gradient learner lives: `python -m everlearn.learners.gradient.child`, one for a model.

It answers `everlearn.learners.trainer`, question by question, over stdin and stdout. It is niced, sees nothing of the
server's environment, and dies with it; whatever it knows can be asked for (`state`) and given to the next one (`open`).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import safetensors.numpy
import torch

from everlearn.backbones.tail import Tail
from everlearn.backbones.tail_manifest import load_tail
from everlearn.errors import PreconditionError
from everlearn.learners import _frames
from everlearn.learners._child import Asked, serve
from everlearn.learners._frames import Frame
from everlearn.learners.gradient.again import Again
from everlearn.learners.gradient.learner import GradientLearner
from everlearn.learners.gradient.recipe import Recipe
from everlearn.learners.gradient.session import adapted, fitted
from everlearn.memories.base import Origin
from everlearn.spec.defaults import front_of
from everlearn.spec.model import ModelSpec
from everlearn.spec.recipe import Loss, Training
from everlearn.spec.rules import IDENTITY
from everlearn.values import FeatureScale

Answer = Frame


class Child:
    """One learner behind a pipe."""

    def __init__(self) -> None:
        self._learner: GradientLearner | None = None
        self._tail: Tail | None = None
        self._shell: torch.nn.Module | None = None
        """Another tail of the same shape: what is served is read from it, averages and adapters folded in."""
        self._figures: dict[str, Any] = {}
        self._common: dict[str, Any] = {}
        self._again: Again | None = None
        self._spec: ModelSpec
        self.asked: Asked = {
            "open": self._open,
            "learn": self._learn,
            "declare": self._declare,
            "expire": self._expire,
            "forget_client": self._forget_client,
            "relearn": self._relearn,
            "solve": self._solve,
            "state": self._state,
            "fit": self._fit,
        }

    def _open(self, question: Frame) -> Answer:
        told, parts = question.told, question.parts
        # Not strict: in JSON a tuple is a list.
        spec = ModelSpec.model_validate(told["spec"], strict=False)
        scale = FeatureScale(step_d=np.frombuffer(parts["step_d"], np.float32).copy(), bits=told["bits"])
        torch.set_num_threads(told["threads"])
        recipe = recipe_of(spec)
        module = None
        if "tail_graph" in parts:
            self._tail = load_tail(parts["tail_graph"], parts["tail_weights"], parts["tail_manifest"])
            module, self._shell = (adapted(self._tail, spec) for _ in range(2))
        common: dict[str, Any] = {"scale": scale, "recipe": recipe, "tail": module, "device": told["device"]}
        if recipe.train.augment is not None:
            common["front"] = front_of(spec.input)
        self._spec, self._common = spec, common
        if "state" in parts:
            self._learner = GradientLearner.from_bytes(parts["state"], **common)
        else:
            dim = self._tail.feature_dim if self._tail else scale.step_d.size
            self._learner = GradientLearner.create(dim=dim, labels=spec.labels, **common)
        return self._progress()

    def _learn(self, question: Frame) -> Answer:
        told, learner = question.told, self._present
        dim = learner.scale.step_d.size
        quantised_Bd = np.frombuffer(question.parts["quantised"], np.int16).reshape(-1, dim)
        truth = _frames.truth_of(question)
        origin = Origin(client=told["client"], time_s=told["time_s"]) if "client" in told else None
        report = learner.learn(quantised_Bd, truth, origin=origin)
        if report.steps:
            self._figures = {name: value for name, value in asdict(report).items() if value is not None}
        return self._progress()

    def _declare(self, question: Frame) -> Answer:
        self._present.declare(question.told["labels"])
        return self._progress()

    def _expire(self, question: Frame) -> Answer:
        gone = self._present.memory.expire(question.told["now_s"])
        return Frame(told={**self._progress().told, "gone": gone})

    def _forget_client(self, question: Frame) -> Answer:
        """Goes back, and is to be asked to `relearn` until nothing is left of that."""
        module = adapted(self._tail, self._spec) if self._tail is not None else None
        dim = self._tail.feature_dim if self._tail else self._present.scale.step_d.size
        again = Again(
            self._present,
            question.told["client"],
            question.parts.get("before"),
            begin=lambda labels: GradientLearner.create(dim=dim, labels=labels, **(self._common | {"tail": module})),
            restore=lambda data: GradientLearner.from_bytes(data, **(self._common | {"tail": module})),
        )
        self._learner, self._again, self._figures = again.learner, again, {}
        return self._told_again()

    def _relearn(self, question: Frame) -> Answer:
        assert self._again is not None, "it is asked after forget_client alone"
        self._again.relearn(question.told["batches"])
        return self._told_again()

    def _told_again(self) -> Answer:
        assert self._again is not None, "it is told of that alone"
        return Frame(told={**self._progress().told, "gone": self._again.gone, "left": self._again.left})

    def _solve(self, _: Frame) -> Answer:
        head = self._present.head()
        told = {"labels": list(head.labels), "normalise": head.normalise, "task": head.task, "figures": self._figures}
        parts = {"weight": head.weight_dC.astype("<f4").tobytes("C"), "bias": head.bias_C.astype("<f4").tobytes()}
        state = self._present.tail_state()
        if state is not None and self._shell is not None and self._tail is not None:
            from everlearn.backbones.tail_torch import weights_of

            self._shell.load_state_dict(state)
            found, wanted = weights_of(self._shell), sorted(self._tail.arrays)
            parts["tail"] = safetensors.numpy.save({name: np.ascontiguousarray(found[name]) for name in wanted})
        return Frame(told=told, parts=parts)

    def _state(self, _: Frame) -> Answer:
        return Frame(told={}, parts={"state": self._present.to_bytes()})

    def _fit(self, question: Frame) -> Answer:
        told, parts = question.told, question.parts
        spec = ModelSpec.model_validate(told["spec"], strict=False)
        torch.set_num_threads(told["threads"])
        tail = load_tail(parts["tail_graph"], parts["tail_weights"], parts["tail_manifest"])
        values_Nn = np.frombuffer(parts["values"], np.float32).reshape(-1, tail.input_dim)
        weights = fitted(tail, spec, values_Nn, told["labels"], device=told["device"])
        return Frame(told={}, parts={"tail": weights})

    def _progress(self) -> Answer:
        learner = self._present
        counts = {"counts": learner.count_C.tolist(), "samples": learner.samples}
        return Frame(told={"labels": learner.labels, **counts, "steps": learner.steps})

    @property
    def _present(self) -> GradientLearner:
        if self._learner is None:
            raise PreconditionError("no learner is open in this process; ask for that first", reason="NOT_OPEN")
        return self._learner


def recipe_of(spec: ModelSpec) -> Recipe:
    """What of a declaration moves weights."""
    return Recipe(
        head=spec.head.kind,
        memory=spec.memory,
        regularize=spec.regularize,
        loss=spec.loss or Loss(),
        train=spec.train or Training(),
        task=spec.task,
        outputs=spec.declared_outputs,
        noise=spec.privacy.sample_noise if spec.privacy.tier == "dp" else 0.0,
        by_range=spec.task != "classification" and spec.backbone.source == IDENTITY,
    )


if __name__ == "__main__":
    serve(Child().asked)
