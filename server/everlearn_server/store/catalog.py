"""What is declared and what was released: models, versions, aliases, operations, exports, trunks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import fields

from sqlalchemy import Connection

from everlearn.errors import InvalidError
from everlearn_server.store import artefacts, downloads, models, references, rollouts, versions
from everlearn_server.store.blobs import Blobs
from everlearn_server.store.database import Database
from everlearn_server.store.payload import collect, recover, stowed
from everlearn_server.store.rows import (
    AliasRow,
    DownloadRow,
    ExportRow,
    ModelRow,
    OperationRow,
    PromotionRow,
    TrunkRow,
    VersionRow,
    VersionSummary,
)


class Catalog:
    """Each method is one durable transaction. All raise UnavailableError once the store has failed or is closed."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database = database
        self._blobs = blobs

    async def put_model(self, row: ModelRow, *, expected_etag: str | None) -> ModelRow:
        """Creates or replaces a model and returns it with a fresh etag. None expects that there is none yet.

        A higher lineage drops the memory learned before; streams, versions and numbers go on.
        Raises ConflictError if the caller's view is stale.
        """
        return await self._database.run(self._put_model, row, expected_etag)

    async def models(self) -> tuple[ModelRow, ...]:
        """All models by name."""
        return await self._database.read(models.every)

    async def get_model(self, name: str) -> ModelRow:
        """Raises NotFoundError."""
        return await self._database.read(models.get, name)

    async def delete_model(self, name: str) -> None:
        """Deletes the model with everything learned, released and logged for it; trunks stay, they are shared.

        Afterwards neither the database nor its log holds any of it. Raises NotFoundError.
        """
        await self._database.run(self._delete_model, name)

    async def reserve_versions(self, model: str, count: int) -> int:
        """Takes `count` consecutive numbers for good and returns the first: a crash skips numbers, never reuses them.

        Raises NotFoundError, InvalidError (count < 1).
        """
        if count < 1:
            raise InvalidError(f"count is {count}; it must be at least 1", field="count")
        return await self._database.write(models.reserve_versions, model, count)

    async def put_version(self, row: VersionRow, *, aliases: Mapping[str, int], reason: str) -> None:
        """Adds a version with a reserved number and moves aliases, together, without a commit of the memory.

        Raises NotFoundError (no such model, or an alias of no version).
        """
        await self._database.run(self._put_version, row, aliases, reason)

    async def versions(self, model: str) -> tuple[VersionSummary, ...]:
        """All versions, oldest first, without their heads."""
        return await self._database.read(versions.listed, model)

    async def version(self, model: str, number: int) -> VersionRow:
        """One version with its head, verified. Raises NotFoundError, DataLossError."""
        return await self._database.run(self._version, model, number)

    def version_now(self, model: str, number: int) -> VersionRow:
        """As `version`, for a worker thread, which waits."""
        return self._database.call(self._version, model, number)

    async def prune_versions(self, model: str, keep: int) -> tuple[int, ...]:
        """Deletes all versions but the newest `keep`, the aliased and the exported; returns what went, ascending."""
        if keep < 0:
            raise InvalidError(f"keep is {keep}; it must not be negative", field="keep")
        return await self._database.run(self._prune_versions, model, keep)

    async def aliases(self, model: str) -> tuple[AliasRow, ...]:
        """All aliases of a model by name."""
        return await self._database.read(versions.aliases, model)

    async def set_alias(self, model: str, alias: str, number: int, reason: str) -> None:
        """Points an alias to a version and logs why. Raises NotFoundError (no such version)."""
        await self._database.write(versions.point, model, alias, number, reason)

    async def rollout(self, model: str) -> str | None:
        """The state of a model's rollout, as `move_rollout` wrote it; None for none."""
        return await self._database.read(rollouts.find, model)

    async def move_rollout(self, model: str, state_json: str, aliases: Mapping[str, int | None], reason: str) -> None:
        """Writes the state of a rollout and points the aliases that move with it (None: at nothing any more); together,
        and logged. Raises NotFoundError (no such model, or an alias of no version)."""
        await self._database.write(rollouts.move, model, state_json, aliases, reason)

    async def promotion_log(self, model: str, *, limit: int = 1_000) -> tuple[PromotionRow, ...]:
        """The last moves of a model's aliases, oldest first; the store keeps the last 10,000 a model."""
        return await self._database.read(versions.promotions, model, limit)

    async def note_download(self, model: str, client: str, number: int) -> None:
        """Says durably that a version leaves to a client, empty where it gave no name: one row a client, its last.
        Raises NotFoundError (no such version any more)."""
        await self._database.write(downloads.note, model, client, number)

    async def downloads(self, model: str) -> tuple[DownloadRow, ...]:
        """Who downloaded which version last, by client."""
        return await self._database.read(downloads.listed, model)

    async def put_operation(self, row: OperationRow) -> None:
        """Creates or updates an operation; of the finished ones the last 1,000 a model are kept.

        Raises NotFoundError if its model is gone.
        """
        await self._database.write(artefacts.put_operation, row)

    async def get_operation(self, name: str) -> OperationRow:
        """Raises NotFoundError."""
        return await self._database.read(artefacts.get_operation, name)

    async def operations(self, *, model: str | None = None, done: bool | None = None) -> tuple[OperationRow, ...]:
        """Operations, oldest first, all or those asked for; `done=False` is what a restart has to go on with."""
        return await self._database.read(artefacts.operations, model, done)

    async def put_export(self, row: ExportRow) -> None:
        """Creates or replaces the export of a version; put the files' blobs first.

        Raises NotFoundError (no such version, or a blob is missing).
        """
        await self._database.run(self._put_export, row)

    async def get_export(self, model: str, number: int) -> ExportRow:
        """Raises NotFoundError."""
        return await self._database.read(artefacts.get_export, model, number)

    async def exports(self, model: str) -> tuple[ExportRow, ...]:
        """All exports of a model by version."""
        return await self._database.read(artefacts.exports, model)

    async def delete_export(self, model: str, number: int) -> None:
        """Deletes an export and the files that only it has. Raises NotFoundError."""
        await self._database.run(self._delete_export, model, number)

    async def put_trunk(self, row: TrunkRow) -> None:
        """Creates or replaces a trunk by key; put its blob first. Raises NotFoundError if the blob is missing."""
        await self._database.run(self._put_trunk, row)

    async def find_trunk(self, key: str) -> TrunkRow | None:
        """The trunk that was built from this, or None: the caller builds it then."""
        return await self._database.read(artefacts.find_trunk, key)

    async def trunk_of_digest(self, digest: str) -> TrunkRow:
        """Raises NotFoundError."""
        return await self._database.read(artefacts.trunk_of_digest, digest)

    async def trunks(self) -> tuple[TrunkRow, ...]:
        """All trunks by key."""
        return await self._database.read(artefacts.trunks)

    async def delete_trunk(self, key: str) -> None:
        """Deletes a trunk that no model and no version uses. Raises NotFoundError, PreconditionError (IN_USE)."""
        await self._database.run(self._delete_trunk, key)

    def _put_model(self, row: ModelRow, expected_etag: str | None) -> ModelRow:
        with self._database.transaction() as connection:
            before = references.named_by_model(connection, row.name)
            stored = models.put(connection, row, expected_etag)
            lost = before - references.named_by_model(connection, row.name)
        if lost:
            collect(self._database, self._blobs, lost)
            self._database.scrub()
        return stored

    def _delete_model(self, name: str) -> None:
        with self._database.transaction() as connection:
            named = references.named_by_model(connection, name)
            models.remove(connection, name)
        collect(self._database, self._blobs, named)
        self._database.scrub()

    def _put_version(self, row: VersionRow, aliases: Mapping[str, int], reason: str) -> None:
        with stowed(self._database, self._blobs, row.head) as head, self._database.transaction() as connection:
            versions.add(connection, row, head)
            for alias, number in aliases.items():
                versions.point(connection, row.model, alias, number, reason)

    def _version(self, model: str, number: int) -> VersionRow:
        with self._database.snapshot() as connection:
            summary, digest, inline = versions.get(connection, model, number)
        head = recover(self._blobs, digest, inline, what=f"the head of version {number} of model {model!r}")
        return VersionRow(head=head, **{field.name: getattr(summary, field.name) for field in fields(VersionSummary)})

    def _prune_versions(self, model: str, keep: int) -> tuple[int, ...]:
        with self._database.transaction() as connection:
            numbers = versions.prunable(connection, model, keep)
            named = references.named_by_versions(connection, model, numbers)
            versions.remove(connection, model, numbers)
        collect(self._database, self._blobs, named)
        return tuple(numbers)

    def _put_export(self, row: ExportRow) -> None:
        self._name_blobs([file.sha256 for file in row.files], lambda connection: artefacts.put_export(connection, row))

    def _delete_export(self, model: str, number: int) -> None:
        with self._database.transaction() as connection:
            artefacts.get_export(connection, model, number)
            named = artefacts.remove_export(connection, model, number)
        collect(self._database, self._blobs, named)

    def _put_trunk(self, row: TrunkRow) -> None:
        self._name_blobs([row.digest], lambda connection: artefacts.put_trunk(connection, row))

    def _delete_trunk(self, key: str) -> None:
        with self._database.transaction() as connection:
            named = artefacts.remove_trunk(connection, key)
        collect(self._database, self._blobs, named)

    def _name_blobs(self, digests: Collection[str], write: Callable[[Connection], set[str]]) -> None:
        """Writes rows that name blobs put before; from then on the rows keep them. `write` returns what it replaced."""
        self._blobs.require(digests)
        with self._database.transaction() as connection:
            replaced = write(connection)
        for digest in digests:
            self._blobs.release(digest)
        collect(self._database, self._blobs, replaced)
