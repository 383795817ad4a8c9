"""A compiled tail learns what the tail learns, in batches of any size, and is refused where it cannot be had."""

from __future__ import annotations

import shutil

import pytest
import torch
from tests.gradient_streams import SCALE, Tail, held_out, learner, recipe, stream

from everlearn.errors import PreconditionError, UnavailableError
from everlearn.spec.recipe import Training

TOLERANCE = 1e-4
"""Of logits after tens of steps, relative to the largest: float32 in another order of sums."""


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler: nothing can be compiled")
def test_a_compiled_tail_learns_what_the_tail_learns() -> None:
    plain, fused = (learner(recipe(compile=which, ema=0.9), tail=Tail()) for which in (False, True))
    for batch in stream(batches=4, rows=24):
        reports = [model.learn(*batch) for model in (plain, fused)]
        assert reports[0].steps == reports[1].steps
    for batch in list(stream(batches=8, rows=17))[6:]:
        for model in (plain, fused):
            model.learn(*batch)
    with torch.no_grad():
        inputs_Bn = torch.from_numpy(SCALE.restore(held_out()[0]))
        wanted_BC, found_BC = plain.network(inputs_Bn), fused.network(inputs_Bn)
    assert float((found_BC - wanted_BC).abs().max() / wanted_BC.abs().max()) < TOLERANCE
    assert not torch.equal(plain.network.tail[0][0].weight, Tail()[0][0].weight), "it moved at all"


def test_where_nothing_compiles_the_learner_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(module: torch.nn.Module, **options: object) -> object:
        def fails(inputs: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("InvalidCxxCompiler: no working C++ compiler found\nSet TORCH_LOGS for more")

        return fails

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(UnavailableError, match=r"no working C\+\+ compiler found; install") as raised:
        learner(recipe(compile=True), tail=Tail())
    assert raised.value.field == "spec.train.compile"


def test_a_head_alone_has_nothing_to_compile() -> None:
    with pytest.raises(PreconditionError, match="leave it out"):
        learner(recipe(compile=True))


def test_a_tail_that_draws_is_not_compiled() -> None:
    with pytest.raises(ValueError, match="leave one out"):
        Training(compile=True, stochastic_depth=0.1)
