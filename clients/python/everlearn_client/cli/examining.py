"""What doctor tries on models of its own beside the declared one: overfitting one batch, and the range test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from everlearn_client.choosing import diagnosis, trial
from everlearn_client.choosing.comparison import Correct
from everlearn_client.choosing.diagnosis import GRADIENT_HEADS
from everlearn_client.choosing.findings import Finding
from everlearn_client.choosing.search import with_options
from everlearn_client.client import Client
from everlearn_client.errors import FailedPrecondition
from everlearn_client.samples import Batch
from everlearn_protos.v1 import models_pb2

ONE_BATCH = 32
REPEATS = 25
"""Times that a head which learns by steps is taught its one batch."""
SUMS = "statistics"
"""The memory that heads are solved from."""
RATE, PENALTY = "train.optimizer.learning_rate", "head.regularization"
_OVERFIT = {"head": {"kind": "ridge", "regularization": 1e-6}}
"""Nearly without penalty, so that only features that are alike keep it from being right about what it has learned."""
RATES = (0.1, 0.3, 3.0, 10.0)
"""Times the declared one."""
_PENALTIES, _SHRINKAGES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0), (1e-3, 1e-2, 0.1, 0.5, 1.0)
_RANGE_OF = {
    "balanced_ridge": _PENALTIES,
    "ridge": _PENALTIES,
    "lda": _SHRINKAGES,
    "balanced_lda": _PENALTIES,
}


def one_batch(
    client: Client,
    declaration: Mapping[str, Any],
    model: models_pb2.Model,
    sample: trial.Embedded,
    different: Sequence[int],
) -> list[Finding]:
    """Teaches a model a handful of different samples and asks it about just those; `different`: their positions."""
    spec, name = declaration["spec"], trial.temporary_name("doctor")
    by_steps = spec["head"]["kind"] in GRADIENT_HEADS
    # A linear head can be right about any d + 1 samples in general position: half of that leaves no excuse.
    count = min(ONE_BATCH, max(2, model.status.feature_dim // 2))
    batch = sample.part(model.status.input.feature_digest, np.array(different[:count], np.int64))
    changed = with_options(declaration, _OVERFIT if not by_steps and spec["memory"]["kind"] == SUMS else {})
    findings = []
    with trial.temporary(client, renamed(changed, name), name) as overfitted:
        trial.teach(client, overfitted, batch)
        if by_steps:
            findings.append(diagnosis.check_steps(dict(client.models.version(name, "latest").training)))
            trial.teach(client, overfitted, batch, times=REPEATS - 1)
        right = trial.hits(client, overfitted, batch)
    return [*findings, diagnosis.check_one_batch(sum(right), len(right), times=REPEATS if by_steps else 1)]


def range_test(
    client: Client,
    declaration: Mapping[str, Any],
    model: models_pb2.Model,
    sample: trial.Embedded,
    shown: trial.Trial,
) -> list[Finding]:
    """Other values of what decides most: the learning rate of a head that learns by steps, else the regularization.

    Tested on the last block, as `shown` of the declared model was. Nothing for a head that has neither.
    """
    head, last = declaration["spec"]["head"], shown.points[-1]
    correct_N = shown.correct_N[-last.tested :]
    if head["kind"] in GRADIENT_HEADS:
        rate = float(declaration["spec"]["train"]["optimizer"]["learning_rate"])
        others = _with_rates(client, declaration, [float(f"{rate * times:.3g}") for times in RATES], sample, last.known)
        found = diagnosis.check_range(RATE, chosen=rate, is_declared=True, correct_N=correct_N, others=others)
        return [found]
    values = _RANGE_OF.get(head["kind"], ()) if declaration["spec"]["memory"]["kind"] == SUMS else ()
    if not values:
        return []
    chosen, penalised = _with_penalties(client, declaration, values, sample, last.known)
    is_declared = head.get("regularization", "auto") != "auto"
    return [
        diagnosis.check_range(PENALTY, chosen=chosen, is_declared=is_declared, correct_N=correct_N, others=penalised)
    ]


def fit(
    client: Client, model: models_pb2.Model, sample: trial.Embedded, batches: Callable[[], Iterator[Batch]]
) -> models_pb2.ModelProbe:
    """How well the backbone fits, from sums: the model's, or where it keeps none of the backbone's own features, those
    of one that is solved.
    """
    declaration = yaml.safe_load(model.declaration)
    spec = declaration["spec"]
    if spec["adapt"]["kind"] == "frozen":
        try:
            return client.models.probe(model.name)
        except FailedPrecondition as error:
            if error.reason != "NO_SUMS":
                raise
    name = trial.temporary_name("doctor")
    plain = {**declaration, "spec": {part: spec[part] for part in ("backbone", "input")}}
    with trial.temporary(client, renamed(plain, name), name) as solved:
        digest = solved.status.input.feature_digest
        seen = sample if digest in sample.features_Nd else trial.embed(client, [solved], batches())
        trial.teach(client, solved, seen.part(digest, slice(None)))
        return client.models.probe(name)


def renamed(declaration: Mapping[str, Any], name: str) -> str:
    """YAML of the same declaration under another name, for a trial."""
    return yaml.safe_dump(trial.on_trial(declaration, name), sort_keys=False, allow_unicode=True)


def _with_rates(
    client: Client, declaration: Mapping[str, Any], rates: Sequence[float], sample: trial.Embedded, known: int
) -> dict[float, Correct]:
    """One model after the other: each has a process of its own on the server."""
    found = {}
    for rate in rates:
        name = trial.temporary_name("doctor")
        with trial.temporary(client, renamed(with_options(declaration, {RATE: rate}), name), name) as model:
            (found[rate],) = trial.hold_out(client, [model], sample, known)
    return found


def _with_penalties(
    client: Client, declaration: Mapping[str, Any], values: Sequence[float], sample: trial.Embedded, known: int
) -> tuple[float, dict[float, Correct]]:
    """The regularization as declared, and what others are right about: one model, solved anew from the same sums."""
    name, found = trial.temporary_name("doctor"), {}
    with trial.temporary(client, renamed(declaration, name), name) as model:
        digest = model.status.input.feature_digest
        trial.teach(client, model, sample.part(digest, slice(0, known)))
        chosen = client.models.version(name, "latest").regularization
        for value in values:
            trial.revise(client, model, renamed(with_options(declaration, {PENALTY: value}), name), value)
            right = trial.hits(client, model, sample.part(digest, slice(known, None)))
            found[value] = np.array(right, bool)
    return chosen, found
