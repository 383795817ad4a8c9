"""Rows with the fields a test does not care about filled in, and a way to await from a plain test."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from everlearn_server.store.rows import (
    Commit,
    ModelRow,
    OperationRow,
    RejectRow,
    StreamRow,
    VersionRow,
)
from everlearn_server.store.store import Store

T = TypeVar("T")

MODEL = ModelRow(
    name="digits",
    uid="u1",
    lineage=1,
    declaration="kind: Model\n",
    generation=1,
    state="READY",
    conditions_json="[]",
    lock_json="{}",
    trunk_digest=None,
    promotion_paused=False,
    create_time_s=1.0,
    update_time_s=1.0,
)

OPERATION = OperationRow(
    name="operations/1",
    model="digits",
    kind="export",
    request_json="{}",
    stage="queued",
    done=False,
    error_json=None,
    result_json=None,
    create_time_s=1.0,
    update_time_s=1.0,
)


def wait(work: Coroutine[Any, Any, T]) -> T:
    """The result of an async call."""
    return asyncio.run(work)


def with_model(store: Store, name: str = "digits") -> ModelRow:
    """A declared model."""
    return wait(store.catalog.put_model(replace(MODEL, name=name), expected_etag=None))


def version(number: int, *, head: bytes = b"head", trunk: str = "0" * 64, model: str = "digits") -> VersionRow:
    """A version that passed its gate."""
    return VersionRow(
        model=model,
        number=number,
        lineage=1,
        labels_json="[]",
        metrics_json="{}",
        trunk_digest=trunk,
        memory_digest="",
        sample_count=1,
        gate_passed=True,
        gate_reason="",
        create_time_s=1.0,
        head=head,
    )


def add_versions(store: Store, *numbers: int, model: str = "digits", head: bytes = b"head") -> None:
    """Versions with these numbers."""
    wait(store.catalog.reserve_versions(model, max(numbers)))
    for number in numbers:
        wait(store.catalog.put_version(version(number, head=head, model=model), aliases={}, reason="test"))


def group(
    store: Store,
    streams: Mapping[str, tuple[int, int]],
    *,
    memory: bytes = b"sums",
    rejects: Sequence[RejectRow] = (),
    solved: VersionRow | None = None,
    aliases: Mapping[str, int] | None = None,
) -> Commit:
    """A commit of `digits`; streams as client -> (epoch, sequence)."""
    return Commit(
        model="digits",
        uid="u1",
        lineage=1,
        timeline=store.timeline,
        memory=memory,
        sample_count=1,
        streams={client: StreamRow(epoch=e, durable_sequence=s) for client, (e, s) in streams.items()},
        prequential_json="{}",
        rejects=rejects,
        version=solved,
        aliases=aliases or {},
    )


def blob_files(folder: Path) -> set[str]:
    """Names of all files below the blob folder."""
    return {path.name for path in (folder / "blobs").rglob("*") if path.is_file()}


class Fatal:
    """An `on_fatal` that remembers instead of ending the test run."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []

    def __call__(self, error: BaseException) -> None:
        self.errors.append(error)
