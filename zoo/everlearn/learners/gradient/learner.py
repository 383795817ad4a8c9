"""Learns labels, sets of them or values from a stream by gradient steps on new and replayed features, and can stop and
go on anywhere.

Axes: B samples in a batch, C classes, n values at the cut, d features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from everlearn.errors import InputError, InvalidError, PreconditionError
from everlearn.labels import Labels
from everlearn.learners.gradient import checkpoint, state
from everlearn.learners.gradient.batches import Classes, Competing, Rows, Table, mixed, sent, steps_of
from everlearn.learners.gradient.compiled import compiled
from everlearn.learners.gradient.depth import Draws, leave_out
from everlearn.learners.gradient.guards import REASON, Figures, norm_of
from everlearn.learners.gradient.losses.base import Scored
from everlearn.learners.gradient.network import TOPS, Network
from everlearn.learners.gradient.optimizers import follow
from everlearn.learners.gradient.pixels import Pixels
from everlearn.learners.gradient.recipe import Recipe
from everlearn.learners.gradient.released import hidden, release
from everlearn.learners.gradient.serving import Served
from everlearn.learners.gradient.step import Stepper
from everlearn.learners.gradient.stopping import Patience
from everlearn.learners.gradient.targets import Told, Truths
from everlearn.memories import memory_for
from everlearn.memories.base import Memory, Origin
from everlearn.regularizers import regularizer_for
from everlearn.truth import Truth
from everlearn.values import FeatureScale, Front, LinearHead, QuantisedBd


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one call of `learn` did."""

    steps: int = 0
    """Taken; 0 for no rows, or where early stopping rests."""
    loss: float | None = None
    """Mean over the steps, penalties included."""
    first_loss: float | None = None
    """Of the first step, to be held against `log_classes`: far above it, a learner is confidently wrong."""
    log_classes: float = 0.0
    """ln of the number of classes seen: the loss of one who knows nothing; 0 where targets are dense."""
    gradient_norm: float | None = None
    """Largest of the steps, before clipping."""
    update_ratio: float | None = None
    """|change of weights| / |weights| a step, over the head's rows and the tail that were there before; about 1e-3 is
    healthy once training is under way, None where there were none."""
    learning_rate: float = 0.0
    """The head's, in the last step."""
    tested: int = 0
    """Rows that were predicted before they were learned; where early stopping or a soup asked for it."""
    correct: int = 0
    """Of these, predicted right; 0 where targets are dense."""
    prequential_loss: float | None = None
    """Of these, the mean loss over rows and over the labels known before; where targets are dense."""


class GradientLearner:
    """A head, a tail below it where there is one, and all that moving them takes. Owns the tail from here on.

    Every call is whole or not at all: a step with a loss or gradient that is not finite, or a memory that refuses, and
    the learner is as it was before. All that is random comes from generators of its own.
    """

    def __init__(
        self, *, recipe: Recipe, scale: FeatureScale, memory: Memory, network: Network, front: Front | None = None
    ) -> None:
        """Use `create` or `from_bytes`."""
        train = recipe.train
        self.recipe = recipe
        self.scale = scale
        self.scale_digest = scale.digest
        self.memory = memory
        self.network = network
        self.device = network.top.weight.device
        self.regularizers = [regularizer_for(declared, recipe.task) for declared in recipe.regularize]
        self.draws = Draws(torch.Generator(self.device).manual_seed(train.seed))
        self.pixels = Pixels.where_declared(front, train.augment, self.draws, values=scale.step_d.size)
        if train.freeze_blocks:
            network.freeze(train.freeze_blocks)
        if train.stochastic_depth:
            leave_out(network.tail, train.stochastic_depth, self.draws)
        self.stepper = Stepper(network, recipe, self.regularizers, self.draws)
        if train.compile:
            self.stepper.through = compiled(network, values=scale.step_d.size)
        self.served = Served(network, train)
        self.patience = Patience(train.early_stop)
        self.random = np.random.default_rng(train.seed)
        self.truths = Truths(recipe.task, recipe.outputs)
        self.table = Labels()
        self.count_C: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        """Samples learned of each class; those that have each label, or tell of each output."""
        self.samples = 0
        """Learned, of all classes."""
        self.refused = 0
        """Calls that were taken back because a step was not finite."""
        self.releases = 0
        """Calls of `learn` that were hidden in noise."""
        self.grid_n = steps_of(scale, self.device)
        """Size of an integer step of each value at the cut."""
        self.stepper.private = hidden(self)

    @classmethod
    def create(
        cls,
        *,
        dim: int,
        labels: Sequence[str],
        scale: FeatureScale,
        recipe: Recipe,
        tail: torch.nn.Module | None = None,
        device: str = "cpu",
        front: Front | None = None,
    ) -> Self:
        """One that has learned nothing. `dim`: features that the head sees; without a tail, the scale's. `front`: of
        the pixels, where they are what is learned from and are to be varied.

        Raises InvalidError where `dim` is not the scale's and there is no tail, and for options that this tail has no
        place for; InputError for malformed labels.
        """
        if tail is None and dim != scale.step_d.size:
            raise InvalidError(f"dim is {dim}; without a tail it must be the scale's {scale.step_d.size}", field="dim")
        labels = [each.name for each in recipe.outputs] or labels
        network = Network(TOPS[recipe.top](dim), tail).placed(device)
        filed = Truths(recipe.task).filed(labels)
        memory = memory_for(recipe.memory.kind).create(scale.step_d.size, filed, recipe.kept)
        learner = cls(recipe=recipe, scale=scale, memory=memory, network=network, front=front)
        learner.table.declare(labels)
        learner._grow(torch.zeros(len(labels), dim, device=learner.device))
        return learner

    @property
    def labels(self) -> list[str]:
        """In order of arrival; append-only."""
        return list(self.table)

    @property
    def steps(self) -> int:
        """Taken so far: where the schedule stands."""
        return self.stepper.done

    def declare(self, labels: Sequence[str]) -> None:
        """Gives new labels their indices before any sample of theirs. Raises InputError for malformed or known ones."""
        if labels and self.recipe.outputs:
            raise InputError("a regression has outputs and no labels; leave the labels out", field="labels")
        self.table.declare(labels)
        self._declare_filed()
        self._grow(torch.zeros(len(labels), self.network.top.weight.shape[1], device=self.device))

    def learn(self, quantised_Bd: QuantisedBd, truth: Truth, *, origin: Origin | None = None) -> StepReport:
        """Steps on a batch and on what the memory gives, then the memory takes the batch. B may be 0: nothing is done.

        Raises InputError for wrong shapes, dtypes or labels, PreconditionError (reason NOT_FINITE) where a step would
        lose the weights, and what the memory raises. Nothing is learned then.
        """
        self.truths.check(quantised_Bd, truth, self.table, self.scale.step_d.size)
        if not len(truth):
            return StepReport()
        before = checkpoint.copied(checkpoint.capture(self))
        try:
            if self.recipe.noise:
                release(self, quantised_Bd, truth)
                return StepReport()
            return self._learn(quantised_Bd, truth, origin, before.part("weights."))
        except Exception as error:
            refused = self.refused + (isinstance(error, PreconditionError) and error.reason == REASON)
            checkpoint.restore(self, before)
            self.refused = refused
            raise

    def head(self) -> LinearHead:
        """The classifier, or what gives values, to serve: of the running mean of weights or their soup, where declared.

        Raises PreconditionError (reason EMPTY_MEMORY) where nothing has been learned.
        """
        if not self.samples:
            raise PreconditionError("no sample has been learned; stream some first", reason="EMPTY_MEMORY")
        weights = {name.removeprefix("top."): value for name, value in self.served.weights().items()}
        weight_dC, bias_C = (part.cpu().contiguous().numpy().copy() for part in self.network.top.folded(weights))
        weight_dC, bias_C = self.truths.served(weight_dC, bias_C, self.count_C)
        return LinearHead(
            weight_dC=weight_dC,
            bias_C=bias_C,
            normalise=self.network.top.normalises,
            labels=tuple(self.table),
            regularization=0.0,
            task=self.recipe.task,
        )

    def tail_state(self) -> Mapping[str, torch.Tensor] | None:
        """The tail's state dict to serve with `head`, on the CPU; None without a tail."""
        if self.network.tail is None:
            return None
        served = self.served.weights()
        return {
            name: served.get(f"tail.{name}", value).detach().cpu().clone()
            for name, value in self.network.tail.state_dict().items()
        }

    def to_bytes(self) -> bytes:
        """Everything; `from_bytes` of it goes on as if nothing had happened, bit for bit."""
        return state.pack(checkpoint.capture(self, memory=self.memory.to_bytes()))

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        *,
        scale: FeatureScale,
        recipe: Recipe,
        tail: torch.nn.Module | None = None,
        device: str = "cpu",
        front: Front | None = None,
    ) -> Self:
        """What `to_bytes` wrote. `tail`: of the same architecture and start; its moving weights are replaced.

        A recipe that differs in options applies from here on; another optimizer or regulariser begins without state.
        Raises DataLossError for damaged bytes, InvalidError where head, memory or scale are others.
        """
        stored = state.unpack(data)
        checkpoint.check(stored, recipe, scale)
        memory = memory_for(recipe.memory.kind).from_bytes(stored.memory)
        memory.configure(recipe.kept)
        network = Network(TOPS[recipe.top](int(stored.header["dim"])), tail).placed(device)
        learner = cls(recipe=recipe, scale=scale, memory=memory, network=network, front=front)
        checkpoint.restore(learner, stored)
        return learner

    def _learn(
        self,
        quantised_Bd: QuantisedBd,
        truth: Truth,
        origin: Origin | None,
        before: Mapping[str, torch.Tensor],
    ) -> StepReport:
        train, known = self.recipe.train, len(self.table)
        knew = Competing(self.count_C > 0, self.device)
        told, is_dense = self.truths.take(truth, self.table), self.truths.is_dense
        class_B = told.class_B
        table = Table(quantised_Bd, told, self.grid_n, len(self.table))
        # Of sets, before there is any label, nothing can be said.
        asked = (train.early_stop is not None or train.soup > 0) and not (is_dense and not known)
        merit = self._merit(table.new_Bn, told, known, knew) if asked else 0.0
        self._grow(self._directions(table.new_Bn, class_B, known))
        # What no sample had before is always learned.
        is_new = bool((self.count_C[told.count_C > 0] == 0).any())
        rests = asked and self.patience.rests(merit, len(truth)) and not is_new
        rests = rests or not len(self.table)  # samples of no label, before any label
        # A label that no sample has yet is denied by all; a class that none has is only not known.
        competing = Competing((self.count_C + told.count_C > 0) | is_dense, self.device)
        stored_BC = told.target_BC if is_dense else self._scores(table.new_Bn, known)
        self.stepper.watch.clear()
        for rows in table.steps(self.memory, self.random, replay=train.replay, steps=0 if rests else train.steps):
            self._step(rows, competing)
        table.close()
        figures = self.stepper.watch.read()
        report = self._report(figures, competing, before, tested=len(truth) if asked else 0, merit=merit)
        if is_dense:
            self._declare_filed()
        self.memory.integrate(quantised_Bd, told.filed_B, origin=origin, logits_BC=stored_BC)
        self.count_C += told.count_C
        self.samples += len(truth)
        return report

    def _merit(self, new_Bn: torch.Tensor, told: Told, known: int, knew: Competing) -> float:
        """What is served is worth on rows before they are learned: hits, or the loss below zero, summed over rows.

        The loss is a mean over the labels known before, so that one more does not count as a loss of quality.
        """
        class_B = sent(told.class_B, self.device)
        if told.target_BC is not None:
            target_BC = sent(np.ascontiguousarray(told.target_BC[:, :known]), self.device)

            def below_zero(logits_BC: torch.Tensor) -> torch.Tensor:
                scored = Scored(logits_BS=logits_BC, class_B=class_B, new=len(class_B), target_BS=target_BC)
                return -self.stepper.loss(scored) * (len(class_B) / known)

            loss: float = self.served.test(new_Bn, below_zero)
            return loss
        if not knew.count:
            return 0.0

        def hits(logits_BC: torch.Tensor) -> torch.Tensor:
            return (knew.classes(knew.columns(logits_BC).argmax(dim=1)) == class_B).sum()

        found: float = self.served.test(new_Bn, hits)
        return found

    def _step(self, rows: Rows, competing: Competing) -> None:
        if self.pixels is not None:
            rows = self.pixels.varied(rows)
        rows = mixed(rows, self.recipe.train.mixup, self.random)
        self.stepper.step(rows, competing)
        self.served.moved(self.stepper.done)

    def _declare_filed(self) -> None:
        self.memory.declare(self.truths.filed(self.labels)[len(self.memory.labels) :])

    def _grow(self, direction_Kd: torch.Tensor) -> None:
        """A row for each label that has none."""
        if not len(direction_Kd):
            return
        follow(self.stepper.optimizer, self.network.grow(direction_Kd))
        self.count_C = np.pad(self.count_C, (0, len(direction_Kd)))

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch's types are skipped, see pyproject
    def _directions(self, inputs_Bn: torch.Tensor, class_B: Classes, known: int) -> torch.Tensor:
        """Mean unit features [K, d] of the classes that came with this batch."""
        arrived = len(self.table) - known
        if not arrived:
            return inputs_Bn[:0]
        if self.truths.is_dense:
            return torch.zeros(arrived, self.network.top.weight.shape[1], device=self.device)
        rows = np.flatnonzero(class_B >= known)
        features_Bd = self.network.features(inputs_Bn[sent(rows, self.device)])
        unit_Bd = torch.nn.functional.normalize(features_Bd)
        index_B = sent(class_B[rows] - known, self.device)
        sum_Kd = unit_Bd.new_zeros(arrived, unit_Bd.shape[1]).index_add_(0, index_B, unit_Bd)
        return sum_Kd / torch.bincount(index_B, minlength=arrived)[:, None]

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch's types are skipped, see pyproject
    def _scores(self, inputs_Bn: torch.Tensor, known: int) -> npt.NDArray[np.float32] | None:
        """The live scores over the labels known before the batch; only for a memory that keeps them."""
        if not self.recipe.memory.logits:
            return None
        return np.asarray(self.network(inputs_Bn)[:, :known].cpu().numpy(), np.float32)

    def _report(
        self, figures: Figures, competing: Competing, before: Mapping[str, torch.Tensor], *, tested: int, merit: float
    ) -> StepReport:
        steps = len(figures.losses)
        return StepReport(
            steps=steps,
            loss=sum(figures.losses) / steps if steps else None,
            first_loss=figures.losses[0] if steps else None,
            log_classes=0.0 if self.truths.is_dense else competing.log_count,
            gradient_norm=max(figures.gradient_norms, default=None),
            update_ratio=self._moved_since(before, steps) if steps else None,
            learning_rate=self.stepper.rate if steps else 0.0,
            tested=tested,
            correct=0 if self.truths.is_dense else int(merit),
            prequential_loss=-merit / tested if tested and self.truths.is_dense else None,
        )

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch's types are skipped, see pyproject
    def _moved_since(self, before: Mapping[str, torch.Tensor], steps: int) -> float | None:
        pairs = [(now, before[name]) for name, now in self.network.moving() if now.ndim > 1 and len(before[name])]
        if not pairs:
            return None
        old = [was for _, was in pairs]
        change = norm_of(torch._foreach_sub([now[: len(was)] for now, was in pairs], old))
        return float(change / norm_of(old).clamp_min(1e-12)) / steps
