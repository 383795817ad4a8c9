from __future__ import annotations

import pytest
import torch
from tests.gradient_streams import DIM, SCALE, TAIL_DIM, Tail, held_out, recipe, stream

from everlearn.learners.gradient.learner import GradientLearner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("with_tail", [False, True], ids=["head", "tail"])
def test_a_learner_on_cuda_learns_what_one_on_the_cpu_does(with_tail) -> None:
    heads = []
    for device in ("cpu", "cuda"):
        model = GradientLearner.create(
            dim=TAIL_DIM if with_tail else DIM,
            labels=[],
            scale=SCALE,
            recipe=recipe(ema=0.9),
            tail=Tail() if with_tail else None,
            device=device,
        )
        for quantised_Bd, labels in stream(batches=12):
            model.learn(quantised_Bd, labels)
        with torch.no_grad():
            inputs_Bn = torch.from_numpy(SCALE.restore(held_out()[0])).to(device)
            heads.append(model.network(inputs_Bn).cpu())
    # The tail computes in bfloat16 there: eight bits of mantissa, over 48 steps.
    tolerance = 0.5 if with_tail else 1e-2
    assert float((heads[0] - heads[1]).abs().mean()) < tolerance * float(heads[0].abs().mean())
