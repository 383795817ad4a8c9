"""Takes up the stored versions of a model: those that are intact."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass

from everlearn.errors import DataLossError
from everlearn.learners.base import Solution
from everlearn_server.engine.damages import Damages
from everlearn_server.engine.head_file import load_solution
from everlearn_server.engine.trunks import LiveTrunk
from everlearn_server.engine.versions import Versioned
from everlearn_server.store.catalog import Catalog
from everlearn_server.store.rows import VersionRow

TrunkOf = Callable[[str, str], Awaitable[LiveTrunk | None]]
"""Opens the trunk of a version from an earlier lineage, by the digests of trunk and features."""


@dataclass(frozen=True, kw_only=True)
class StoredVersion:
    """A version whose bytes are what they were."""

    row: VersionRow
    solution: Solution
    trunk: LiveTrunk


async def stored_versions(
    catalog: Catalog,
    model: str,
    trunk: LiveTrunk,
    trunk_of: TrunkOf,
    earlier: MutableMapping[str, LiveTrunk],
    damages: Damages,
) -> list[StoredVersion]:
    """Oldest first, those that cannot be used left out and told. `earlier`: trunks of other lineages by feature digest,
    to which it adds."""
    found = []
    for summary in await catalog.versions(model):
        # Not the trunk's digest: two lineages may differ in their front alone.
        features = json.loads(summary.metrics_json)["feature_digest"]
        own = trunk if features == trunk.feature_digest else earlier.get(features)
        own = own or await trunk_of(summary.trunk_digest, features)
        if own is None:
            continue
        if own is not trunk:
            earlier[features] = own
        try:
            row = await catalog.version(model, summary.number)
            found.append(StoredVersion(row=row, solution=load_solution(row.head, own.tail), trunk=own))
        except DataLossError as error:
            damages.found("version", model, error, name=str(summary.number))
    return found


async def aliased(
    catalog: Catalog, model: str, versions: Mapping[int, Versioned], numbers: Mapping[str, int]
) -> tuple[Versioned | None, Versioned | None]:
    """`stable` and `latest`. In place of a stable version that is damaged serves the one that was stable before it."""
    stable, latest = versions.get(numbers.get("stable", 0)), versions.get(numbers.get("latest", 0))
    if stable is None and "stable" in numbers:
        moves = [move.number for move in await catalog.promotion_log(model) if move.alias == "stable"]
        there = (versions[number] for number in reversed(moves) if number in versions)
        stable = next((versioned for versioned in there if versioned.record.gate_passed), None)
    return stable, latest
