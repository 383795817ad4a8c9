"""Which exports go when there are too many; composing and parity are tested through the real server."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from everlearn.errors import NotFoundError
from everlearn_server.engine.exporter import Exporter
from everlearn_server.store.rows import ExportRow


class Catalog:
    """Exports by version number; every call lets others run first."""

    def __init__(self, created_s: dict[int, float]) -> None:
        self.created_s = created_s

    async def exports(self, model: str) -> list[ExportRow]:
        await asyncio.sleep(0)
        return [
            ExportRow(model=model, version_number=number, files=(), parity=0.0, probes=1, create_time_s=created_s)
            for number, created_s in sorted(self.created_s.items())
        ]

    async def delete_export(self, model: str, number: int) -> None:
        await asyncio.sleep(0)
        if number not in self.created_s:
            raise NotFoundError(f"model {model!r} has no export of version {number}", field="version")
        del self.created_s[number]


def pruned(
    created_s: dict[int, float], *, keep: int, times: int = 1, not_shown: frozenset[int] = frozenset()
) -> list[int]:
    """Version numbers whose exports are left."""

    async def go() -> None:
        exporter = Exporter(store=cast(Any, SimpleNamespace(catalog=Catalog(created_s))), stored_trunk=cast(Any, None))
        retention = SimpleNamespace(exports=keep)
        spec = SimpleNamespace(spec=SimpleNamespace(retention=retention))
        model = cast(Any, SimpleNamespace(name="m", spec=spec, book=SimpleNamespace(not_shown=not_shown)))
        await asyncio.gather(*(exporter.prune(model) for _ in range(times)))

    asyncio.run(go())
    return sorted(created_s)


def test_the_oldest_export_goes_and_not_the_lowest_version() -> None:
    assert pruned({6: 100.0, 1: 200.0}, keep=1) == [1]
    assert pruned({6: 100.0, 1: 200.0, 9: 150.0}, keep=2) == [1, 9]


def test_pruning_twice_at_once_deletes_nothing_twice() -> None:
    assert pruned({1: 1.0, 2: 2.0, 3: 3.0}, keep=1, times=3) == [3]


def test_exports_of_versions_that_may_not_be_shown_go_whatever_their_age() -> None:
    assert pruned({6: 100.0, 1: 200.0, 9: 150.0}, keep=2, not_shown=frozenset({1})) == [6, 9]
