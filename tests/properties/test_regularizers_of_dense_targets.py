"""Of several labels a sample, and of values: what distill and ewc charge is what the scores' distributions say."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tests.trained_models import batch, linear, tailed
from torch import distributions

from everlearn.regularizers import regularizer_for
from everlearn.regularizers.base import Regularizer
from everlearn.spec.recipe import Regularizer as Declared
from everlearn.values import Task


def made(kind: str, task: Task, **options: object) -> Regularizer:
    return regularizer_for(Declared.model_validate({"kind": kind, **options}), task)


DENSE = {
    "multilabel": lambda logits: distributions.Independent(distributions.Bernoulli(logits=logits), 1),
    "regression": lambda logits: distributions.Independent(distributions.Normal(logits, 1.0), 1),
}


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("task", DENSE)
def test_distilling_dense_targets_is_the_divergence_of_what_the_scores_mean(task: Task, temperature: float) -> None:
    model, inputs_Bd = linear(), batch(seed=1)[0]
    regularizer = made("distill", task, strength=0.7, temperature=temperature)
    regularizer.consolidate(model)
    taught_BC = model(inputs_Bd).detach()
    with torch.no_grad():
        model[-1].weight += 0.2 * torch.randn(3, 5, generator=torch.Generator().manual_seed(3))
    logits_BC = model(inputs_Bd)
    of = DENSE[task]
    apart = distributions.kl_divergence(of(taught_BC / temperature), of(logits_BC / temperature)).mean()
    found = regularizer.penalty(model, inputs_Bd, logits_BC)
    torch.testing.assert_close(found, 0.7 * temperature**2 * apart)


@pytest.mark.parametrize("model_of", [linear, tailed])
@pytest.mark.parametrize("task", DENSE)
def test_ewc_of_dense_targets_is_the_fisher_of_what_the_scores_mean(task: Task, model_of: Any) -> None:
    """Of a head exactly; of a tail on average over what the model draws."""
    model, inputs_Bd = model_of(), batch(seed=1)[0]
    by_hand = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    for row in inputs_Bd:
        logits_C = model(row[None])[0]
        # Two values a score, each as likely as the model has it, with the distribution's mean and variance.
        yes_C = logits_C.sigmoid() if task == "multilabel" else torch.full_like(logits_C, 0.5)
        for signs in itertools.product((0.0, 1.0), repeat=len(logits_C)):
            drawn_C = torch.tensor(signs)
            chance = torch.where(drawn_C > 0, yes_C, 1 - yes_C).prod().detach()
            truth_C = drawn_C if task == "multilabel" else logits_C.detach() + 2 * drawn_C - 1
            score = DENSE[task](logits_C).log_prob(truth_C)
            gradients = torch.autograd.grad(score, list(model.parameters()), retain_graph=True)
            for name, gradient in zip(by_hand, gradients, strict=True):
                by_hand[name] += chance * gradient.square() / len(inputs_Bd)
    regularizer = made("ewc", task, decay=1.0)
    regularizer.consolidate(model)
    for _ in range(1 if model_of is linear else 600):
        regularizer.observe(model, inputs_Bd, model(inputs_Bd))
    regularizer.consolidate(model)
    kept = {
        path.partition("/")[2]: value for path, value in regularizer.state().items() if path.startswith("importance/")
    }
    assert kept.keys() == by_hand.keys()
    for name, value in by_hand.items():
        if model_of is linear or name.startswith("head"):
            torch.testing.assert_close(kept[name], value, rtol=1e-4, atol=1e-6)
        else:
            assert float((kept[name] - value).norm() / value.norm()) < 0.2, name
