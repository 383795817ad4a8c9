"""What each limit of one client is worth, and what it costs honest fleets: `python -m tests.benchmarks.client_limits`.

20 clients on scikit-learn's digits, batches mixed. Prints Markdown. Nothing here is a timing, so any machine does.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from tests.attacks import CLIENTS, Attack, Part, attacked, digits, run

LIMITS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "norm 1": {"norm": 1},
    "client_share 0.1, client_floor 50": {"client_share": 0.1, "client_floor": 50},
    "client_gate 0.5": {"client_gate": 0.5},
    "client_labels 0": {"client_labels": 0},
    "all four": {"norm": 1, "client_share": 0.1, "client_floor": 50, "client_gate": 0.5, "client_labels": 0},
}
DECLARED = [str(digit) for digit in range(10)]


def main() -> None:
    """Both tables."""
    fleet, test = digits()
    clean = run(fleet, test, {}, labels=DECLARED).accuracy
    put(f"# Limits of one client, {datetime.date.today().isoformat()}\n")
    put(f"`python -m tests.benchmarks.client_limits`: {CLIENTS} clients on scikit-learn's digits, d = 64.")
    put(f"Without any attack {clean:.1%} are right.\n")
    put(f"## Points of accuracy lost to an attack, by 1 and by 4 of {CLIENTS}\n")
    put(f"| attack | {' | '.join(LIMITS)} |\n|---|{'---|' * len(LIMITS)}")
    for attack in get_args(Attack):
        cells = []
        for limits in LIMITS.values():
            lost = [clean - run(attacked(fleet, attack, bad), test, limits, labels=DECLARED).accuracy for bad in (1, 4)]
            cells.append(" / ".join(f"{100 * max(points, 0):.1f}" for points in lost))
        put(f"| {attack} | {' | '.join(cells)} |")
    put("\n## Batches refused of honest fleets, and points of accuracy that cost\n")
    put(f"| fleet | {' | '.join(LIMITS)} |\n|---|{'---|' * len(LIMITS)}")
    for name, honest in fleets(fleet):
        free, cells = run(honest, test, {}, labels=DECLARED).accuracy, []
        for limits in LIMITS.values():
            ended = run(honest, test, limits, labels=DECLARED)
            refused = sum(sum(reasons.values()) for reasons in ended.refused.values())
            cells.append(f"{refused}; {100 * max(free - ended.accuracy, 0):.1f}")
        put(f"| {name} | {' | '.join(cells)} |")


def fleets(even: Mapping[str, Part]) -> Iterator[tuple[str, dict[str, Part]]]:
    """Honest ones."""
    features_Nd = np.concatenate([part[0] for part in even.values()])
    labels = [label for part in even.values() for label in part[1]]
    rng = np.random.default_rng(0)
    yield "even", dict(even)
    weight = 1 / np.arange(1, CLIENTS + 1)
    cuts = (np.cumsum(weight) / weight.sum() * len(labels)).astype(int)[:-1]
    yield "sizes 1, 1/2, 1/3 ...", _split(features_Nd, labels, np.split(rng.permutation(len(labels)), cuts))
    owner_N = np.empty(len(labels), int)
    for digit in DECLARED:
        rows = rng.permutation([row for row, label in enumerate(labels) if label == digit])
        owner_N[rows] = rng.choice(CLIENTS, len(rows), p=rng.dirichlet(np.full(CLIENTS, 0.1)))
    yield (
        "each its own mixture of digits",
        _split(features_Nd, labels, [np.flatnonzero(owner_N == client) for client in range(CLIENTS)]),
    )
    yield (
        "one digit each",
        _split(features_Nd, labels, [np.flatnonzero(np.array(labels) == digit) for digit in DECLARED]),
    )
    for unlike in ("mirrored", "dark on light"):
        yield (
            f"two of 20 {unlike}, six times as much",
            {
                client: _unlike(part, unlike) if number < 2 else part
                for number, (client, part) in enumerate(even.items())
            },
        )


def put(text: str) -> None:
    """A line."""
    sys.stdout.write(text + "\n")


def _split(features_Nd: npt.NDArray[np.float32], labels: list[str], parts: list[npt.NDArray[Any]]) -> dict[str, Part]:
    return {
        f"c{number:02}": (features_Nd[rows], [labels[row] for row in rows])
        for number, rows in enumerate(parts)
        if len(rows)
    }


def _unlike(part: Part, how: str) -> Part:
    image_BHW = part[0].reshape(-1, 8, 8)
    turned_BHW = image_BHW[:, :, ::-1] if how == "mirrored" else -image_BHW
    return np.tile(turned_BHW.reshape(-1, 64), (6, 1)).astype(np.float32), part[1] * 6


if __name__ == "__main__":
    main()
