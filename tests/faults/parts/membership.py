"""Tier `dp`: epsilon, as far as guesses of who was learned can bound it from below, is no more than is claimed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.faults.membership import Audit, Model, audit

SHORT: Mapping[str, int] = {"worlds": 600, "clients": 550, "heads": 500}
LONG: Mapping[str, int] = {"worlds": 20_000, "clients": 3_000, "heads": 5_000}


def run(folder: Path, *, worlds: int, clients: int, heads: int) -> Mapping[str, object]:
    """So many with the canary, and as many without; nothing is written into `folder`."""
    by_name = {
        "sample, noise 1": audit(Model(unit="sample", epsilon=8, noise=1.0, steps=1), worlds),
        "sample, noise 3.73": audit(Model(unit="sample", epsilon=8, noise=3.73, steps=1), worlds),
        "client, noise 1.5": audit(Model(unit="client", epsilon=8, noise=1.5, steps=6), clients),
        "head, noise 1": audit(Model(unit="sample", epsilon=8, noise=1.0, steps=1), heads, by_head=True),
    }
    for name, found in by_name.items():
        assert found.holds, f"{name}: {found}"
    broken = audit(Model(unit="sample", epsilon=8, noise=1.0, steps=1), worlds, fault="a third of the noise")
    assert not broken.holds, f"the control, a third of the noise: {broken}"
    return {name: told(found) for name, found in [*by_name.items(), ("control, a third of the noise", broken)]}


def told(found: Audit) -> str:
    """In words."""
    return (
        f"epsilon at least {found.counted:.2f} counted, {found.gaussian:.2f} as a Gaussian mechanism; claimed "
        f"{found.claimed:.2f} ({found.releases} releases)"
    )
