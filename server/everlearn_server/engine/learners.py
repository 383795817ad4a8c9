"""Which learner a declaration means, and which record of its tests."""

from __future__ import annotations

import json

from everlearn.learners import ClosedForm, Learner, TargetLearner
from everlearn.learners.calibration import Calibration
from everlearn.learners.first_session import FirstSession
from everlearn.learners.noised import Noised
from everlearn.learners.private_trainer import PrivateTrainer
from everlearn.learners.trainer import Trainer, TrainerSettings, fit_of
from everlearn.memories.sealing import Sealer
from everlearn.metrics.fleet import FleetTally
from everlearn.metrics.record import Record
from everlearn.metrics.records import record_for
from everlearn.metrics.unrecorded import Unrecorded
from everlearn.spec.model import ModelSpec
from everlearn_server.engine.fleet_records import FLEET
from everlearn_server.engine.limits import ClientLimits
from everlearn_server.engine.trunks import LiveTrunk
from everlearn_server.store.store import Store


def make_learner(
    spec: ModelSpec, trunk: LiveTrunk, data: bytes | None, settings: TrainerSettings, sealer: Sealer | None = None
) -> Learner:
    """The learner of a completed declaration on its trunk, as it was when it gave `data`; empty without. `sealer`: what
    seals features of single samples at rest.

    Blocks: a trainer's process takes seconds to begin. Raises DataLossError for bytes that do not belong to it,
    UnavailableError where no process can be begun.
    """
    if trunk.observes:
        return Calibration(spec, trunk.feature_dim // 2)
    if spec.by_gradient:
        trainer = Trainer(spec, trunk.scale, tail=trunk.tail, data=data, settings=settings, sealer=sealer)
        return PrivateTrainer(trainer, spec, trunk.scale.step_d.size) if spec.privacy.tier == "dp" else trainer
    if spec.privacy.tier == "dp":
        return Noised.of(spec, trunk.scale, data)
    if spec.task != "classification":
        return TargetLearner.of(spec, trunk.scale, data)
    if trunk.tail is not None:
        fit = fit_of(spec, trunk.scale, settings)
        return FirstSession(spec, trunk.scale, trunk.tail, fit, data, provider=trunk.provider, sealer=sealer)
    return ClosedForm.of(spec, trunk.scale, data, sealer=sealer)


async def sealer_of(spec: ModelSpec, store: Store, model: str) -> Sealer | None:
    """What seals a model's features of single samples: each client's under a key of its own. None where none are
    kept. Raises UnavailableError."""
    return await store.client_keys.sealer(model) if spec.memory.kind == "latents" else None


def make_records(spec: ModelSpec, told_json: str | None) -> tuple[Record, ClientLimits]:
    """What its tests have shown, and each client's beside it; where that may not be told, a record that counts nothing.

    Raises DataLossError.
    """
    told = json.loads(told_json) if told_json is not None else None
    record = Unrecorded() if spec.privacy.tier == "dp" else record_for(spec.task, told)
    return record, ClientLimits(spec=spec, fleet=FleetTally.from_dict((told or {}).get(FLEET)))
