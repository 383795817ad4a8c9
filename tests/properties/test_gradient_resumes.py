"""Stored in mid-stream and taken up again, a learner goes on to the same bits, whatever its recipe."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.gradient_streams import SCALE, Tail, learner, recipe, stream

from everlearn.learners.gradient.learner import GradientLearner

OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop", "adagrad")
SCHEDULES = (
    {"kind": "constant", "warmup_steps": 3},
    {"kind": "step", "every": 4, "factor": 0.5},
    *({"kind": kind, "total_steps": 30} for kind in ("cosine", "linear", "one_cycle")),
    {"kind": "inverse_sqrt", "warmup_steps": 5},
)
LOSSES = (
    {"kind": "cross_entropy", "logit_adjustment": 1.0},
    {"kind": "cross_entropy", "label_smoothing": 0.1},
    {"kind": "er_ace"},
    {"kind": "der"},
)
PENALTIES = ("distill", "ewc", "si", "mas", "l2sp")


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, object]:
    loss = draw(st.sampled_from(LOSSES))
    kinds = draw(st.sets(st.sampled_from(PENALTIES), max_size=2))
    return {
        "head": draw(st.sampled_from(("linear", "cosine"))),
        "memory": {"kind": "latents", "logits": loss["kind"] == "der"},
        "loss": loss,
        "regularize": tuple({"kind": kind} if kind == "l2sp" else {"kind": kind, "every": 3} for kind in sorted(kinds)),
        "optimizer": {"kind": draw(st.sampled_from(OPTIMIZERS)), "l1": draw(st.sampled_from((0.0, 1e-5)))},
        "schedule": draw(st.sampled_from(SCHEDULES)),
        "steps": draw(st.integers(1, 3)),
        "mixup": draw(st.sampled_from((0.0, 0.4))),
        "dropout": draw(st.sampled_from((0.0, 0.3))),
        "ema": draw(st.sampled_from((0.0, 0.9))),
        "soup": draw(st.sampled_from((0, 2))),
        "early_stop": draw(st.sampled_from((None, 2))),
        "seed": draw(st.integers(0, 9)),
    }


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(options=recipes(), with_tail=st.booleans(), stop=st.integers(1, 9))
def test_a_learner_stored_in_mid_stream_goes_on_to_the_same_bits(options, with_tail, stop) -> None:
    declared = recipe(**options)
    whole = learner(declared, tail=Tail() if with_tail else None)
    parts = learner(declared, tail=Tail() if with_tail else None)
    # 32 steps at least take a snapshot for the soup; classes come all the time.
    for number, (quantised_Bd, labels) in enumerate(stream(rows=16, batches=12, at_once=1)):
        if number == stop:
            parts = GradientLearner.from_bytes(
                parts.to_bytes(), scale=SCALE, recipe=declared, tail=Tail(seed=5) if with_tail else None
            )
        whole_report, parts_report = (each.learn(quantised_Bd, labels) for each in (whole, parts))
        assert whole_report == parts_report
    assert parts.to_bytes() == whole.to_bytes()
