"""Row F17: the wall clock jumps by a day, forth and back, on both sides; order and counts do not know it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.faults.parts.bad_network import progress_s
from tests.faults.scene import Scene

from everlearn.learners.trainer import Trainer
from everlearn.memories.base import Origin
from everlearn.spec.model import ModelSpec
from everlearn.values import FeatureScale

DAY_S = 86_400


def test_f17_jumps_of_the_wall_clock_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jumped(tmp_path, monkeypatch, fault=f"clock:{DAY_S}", kills=3)


def test_control_a_server_that_orders_by_the_wall_clock_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AssertionError, match="by its watermarks"):
        jumped(tmp_path, monkeypatch, fault=f"clock:{DAY_S}+newest_wins", kills=1, rounds=30)


def jumped(folder: Path, monkeypatch: pytest.MonkeyPatch, *, fault: str, kills: int, rounds: int = 1) -> None:
    """Clients and servers whose clocks jump, and kills; nothing is lost, nothing counts twice. In each of `rounds`
    before a kill something of every client has become durable."""
    scene, now, turn = Scene(folder, batches=3000), time.time, iter(range(1 << 62))
    scene.server.fault = fault
    scene.server.start()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now() + DAY_S * (next(turn) % 3 - 1))
        scene.go(freely=False)
        for _ in range(kills):
            for _ in range(rounds):
                progress_s(scene)
            scene.server.kill()
            broken = scene.at_rest()
            assert broken == [], broken
            scene.server.start()
        progress_s(scene)
    # Not before: gRPC's own Python counts the deadline of a call from time.time, on a clock that has not jumped.
    scene.calm_end()


def test_f17_latents_live_by_the_wall_clock_and_a_jump_forth_ends_them_early_never_late() -> None:
    """A TTL is a promise about real time over restarts, so it cannot but use the wall clock."""
    import numpy as np

    scale = FeatureScale(step_d=np.full(4, 2.0**-6, np.float32))
    declared = {"backbone": {"source": "hf://timm/x", "revision": "0" * 40}, "recipe": "latent_replay"}
    spec = ModelSpec.model_validate({**declared, "memory": {"kind": "latents", "ttl_s": 3600}})
    trainer = Trainer(spec, scale)
    try:
        for hour in range(2):
            rows_Bd = scale.quantise(np.ones((4, 4), np.float32))
            trainer.integrate(rows_Bd, list("abab"), origin=Origin(client="a", time_s=1e9 + 1800.0 * hour))
        assert trainer.expire(1e9 + 1800 - DAY_S) == 0  # back: kept until the clock has caught up
        assert trainer.expire(1e9 + 1800 + DAY_S) == 8  # forth: all are gone, and stay so
        assert trainer.samples == 8
    finally:
        trainer.close()
