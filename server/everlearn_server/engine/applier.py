"""From a declaration to a trunk: resolve, plan, fetch, build once, keep by digest."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

import everlearn.backbones
from everlearn import plugins
from everlearn.backbones.base import BackboneDefaults
from everlearn.backbones.child import build_cut_in_child, build_in_child, describe_in_child
from everlearn.backbones.manifest import dump_manifest, load_trunk, provenance_in
from everlearn.backbones.tail import Tail
from everlearn.backbones.tail_manifest import dump_tail, load_tail
from everlearn.errors import DataLossError, EverlearnError, NotFoundError, SpecError
from everlearn.export.int8_trunk import made_again, observes, observing
from everlearn.heads import head_for
from everlearn.hubs import hub_for
from everlearn.hubs.base import Hub, HubSettings, Resolved
from everlearn.memories import memory_for
from everlearn.spec.defaults import complete, complete_student, front_config, student_as_model
from everlearn.spec.load import parse
from everlearn.spec.lock import OWN, STUDENT, backbones, pin_text, require_pinned, sides_pin
from everlearn.spec.model import Backbone, Model
from everlearn.spec.plan import Download, Plan, StoredCounts, build_plan
from everlearn.spec.rules import TRANSFORMERS
from everlearn.values import BackboneFiles, Trunk
from everlearn_server.store.rows import ModelRow, TrunkRow
from everlearn_server.store.store import Store

_logger = structlog.get_logger(__name__)
_SIZE_BYTES = 8
"""In front of a stored tail: how much of it is the graph."""
_STUDENT = "student/"
"""In front of what a lock says of the student."""
_SHA256 = "sha256:"
"""In front of a name whose digest a trunk tells."""
_BUILDER = "1"
"""Raise it when the same files would make another trunk."""

Progress = Callable[[str, int, int], None]
"""Called with (stage, bytes done, bytes total), from any thread."""


@dataclass(frozen=True, kw_only=True)
class Current:
    """What a plan is compared with: the model as it is."""

    spec: Model
    etag: str
    stored: StoredCounts
    labels: tuple[str, ...]
    feature_dim: int | None


class Applier:
    """Hubs, loaders and the trunk cache. Everything slow runs in threads or in a child process."""

    def __init__(self, *, store: Store, hubs: HubSettings, work_dir: Path) -> None:
        self._store = store
        self._hubs = hubs
        self._work_dir = work_dir
        self._described: dict[str, BackboneDefaults] = {}
        self._measured: dict[str, float] = {}
        self._tails: dict[str, Tail] = {}
        self._loaded: dict[str, list[Trunk]] | None = {}
        """Trunks read while the server starts, when many models ask for the same one."""

    async def plan(
        self, text: str, current_of: Callable[[str], Awaitable[Current | None]]
    ) -> tuple[Plan, dict[str, str]]:
        """The plan for a declaration, with the lock that it is bound to.

        Raises SpecError, HubError and its kinds, BackboneError.
        """
        model = parse(text)
        _check_kinds(model)
        require_pinned(model)
        backbone = model.spec.backbone
        hub = hub_for(backbone, self._hubs)
        resolved = await asyncio.to_thread(hub.resolve, backbone)
        completed = complete(model, await self._describe(hub, backbone, resolved))
        completed, student = await self._plan_student(completed)
        current = await current_of(completed.metadata.name)
        lock = dict(resolved.lock())
        trunk = await self._store.catalog.find_trunk(_key(completed, lock))
        lock |= _prefixed(student.lock() if student else {})
        plan = build_plan(
            current.spec if current else None,
            completed,
            etag=current.etag if current else "",
            resolved_lock=lock,
            downloads=[*_downloads(backbone, resolved), *_student_downloads(completed, student)],
            stored=current.stored if current else StoredCounts(),
            trunk_cached=trunk is not None,
            seen_labels=current.labels if current else (),
            feature_dim=current.feature_dim if current else None,
            measured=self._measured,
        )
        return plan, lock

    async def lock(self, text: str) -> tuple[str, Mapping[str, str]]:
        """The declaration with commits and digests pinned, its student's too. Raises as `plan`."""
        model = parse(text)
        _check_kinds(model)
        lock: dict[str, str] = {}
        for at, backbone in backbones(model).items():
            with _named(at):
                resolved = await asyncio.to_thread(hub_for(backbone, self._hubs).resolve, backbone)
            weights = [file for file in resolved.files if not file.name.endswith(".json")]
            sha256 = weights[0].sha256 if weights else None
            sides = sides_pin(backbone, {file.name: file.sha256 or "" for file in resolved.files})
            text = pin_text(text, revision=resolved.revision, sha256=sha256, sides_sha256=sides, at=at)
            lock |= resolved.lock() if at == OWN else _prefixed(resolved.lock())
        return text, lock

    async def trunk(self, model: Model, progress: Progress) -> tuple[Trunk, Mapping[str, str]]:
        """The trunk of a completed declaration, from the cache where it has been built before, and its lock. Of one in
        8 bits, what stands in its place until it is calibrated."""
        trunk, lock = await self.source_trunk(model, progress)
        return (trunk if model.spec.int8_trunk is None else await self._observing(trunk)), lock

    async def trunk_of_lineage(
        self, model: Model, row: ModelRow, lineage: int, progress: Progress
    ) -> tuple[Trunk, Mapping[str, str]]:
        """As `trunk`; but a lineage keeps the trunk in 8 bits that it has, made again where its file is damaged.

        Raises DataLossError where it cannot be made as it was.
        """
        kept = await self._store.catalog.find_trunk(derived_key(calibrated_name(row.uid, lineage)))
        if model.spec.int8_trunk is None or kept is None or kept.digest != row.trunk_digest:
            return await self.trunk(model, progress)
        source, lock = await self.source_trunk(model, progress)
        try:
            onnx = await self._store.blobs.get(kept.digest)
        except DataLossError as error:
            _logger.warning("a trunk in 8 bits is damaged and is made again", reason=error.reason, digest=kept.digest)
            made = await asyncio.to_thread(made_again, source, provenance_in(kept.manifest), kept.digest)
            await self._store.blobs.put(onnx := made.onnx)
        return await asyncio.to_thread(load_trunk, onnx, kept.manifest), lock

    async def source_trunk(self, model: Model, progress: Progress) -> tuple[Trunk, Mapping[str, str]]:
        """As `trunk`, in fp32 whatever is declared."""
        backbone = model.spec.backbone
        hub = hub_for(backbone, self._hubs)
        progress("download", 0, 0)
        files = await asyncio.to_thread(hub.fetch, backbone, lambda done, total: progress("download", done, total))
        lock = {"revision": files.revision, **files.sha256}
        key = _key(model, lock)
        row = await self._store.catalog.find_trunk(key)
        if row is not None:
            progress("verify", 0, 0)
            try:
                onnx = await self._store.blobs.get(row.digest)
                trunk = await asyncio.to_thread(load_trunk, onnx, row.manifest)
                return trunk, _digests(trunk) | lock
            except DataLossError as error:  # its source is pinned, so the same trunk can be built again
                _logger.warning("a stored trunk is damaged and is built again", reason=error.reason, digest=row.digest)
        progress("build", 0, 0)
        started_s = time.monotonic()
        trunk, tail = await asyncio.to_thread(self._build, model, files)
        self._measured["trunk_build_s"] = round(time.monotonic() - started_s, 1)
        if tail is not None:  # first: who finds the trunk finds its tail
            await self._put_tail(trunk, tail)
        await self._store.blobs.put(trunk.onnx)
        await self._store.catalog.put_trunk(
            TrunkRow(
                key=key,
                digest=trunk.digest,
                manifest=dump_manifest(trunk),
                source=backbone.source,
                size=len(trunk.onnx),
            )
        )
        return trunk, _digests(trunk) | lock

    async def student(self, model: Model, progress: Progress) -> Mapping[str, str]:
        """Makes the student of a completed declaration ready, where it declares one; its lock. Raises as `trunk`."""
        if model.spec.distill_to is None:
            return {}
        with _named(STUDENT):
            _, lock = await self.trunk(student_as_model(model), progress)
        return _prefixed(lock)

    async def stored_student(self, model: Model, lock: Mapping[str, str]) -> Trunk:
        """What `student` has made, by the model's whole lock. Raises NotFoundError, DataLossError."""
        own = {name.removeprefix(_STUDENT): sha for name, sha in lock.items() if name.startswith(_STUDENT)}
        row = await self._store.catalog.find_trunk(_key(student_as_model(model), own))
        if row is None:
            raise NotFoundError("the student is not there any more; apply the declaration again", field="distill_to")
        return await asyncio.to_thread(load_trunk, await self._store.blobs.get(row.digest), row.manifest)

    async def _plan_student(self, model: Model) -> tuple[Model, Resolved | None]:
        """The declaration with its student completed, and what that resolves to."""
        if model.spec.distill_to is None:
            return model, None
        backbone = model.spec.distill_to.backbone
        with _named(STUDENT):
            hub = hub_for(backbone, self._hubs)
            resolved = await asyncio.to_thread(hub.resolve, backbone)
            return complete_student(model, await self._describe(hub, backbone, resolved)), resolved

    async def stored_trunk(self, digest: str, fits: Callable[[Trunk], bool] = lambda trunk: True) -> Trunk:
        """A trunk built earlier: of those with this ONNX file, which differ in front or scale, the first that fits.

        Raises NotFoundError, DataLossError.
        """
        trunks = (self._loaded or {}).get(digest)
        if trunks is None:
            rows = [row for row in await self._store.catalog.trunks() if row.digest == digest]
            onnx = await self._store.blobs.get(digest) if rows else b""
            trunks = await asyncio.to_thread(lambda: [load_trunk(onnx, row.manifest) for row in rows])
            if self._loaded is not None:
                self._loaded[digest] = trunks
        for trunk in trunks:
            if fits(trunk):
                return trunk
        raise NotFoundError(f"no stored trunk {digest[:12]}... fits; apply the declaration again", field="trunk_digest")

    async def stored_tail(self, digest: str) -> Tail | None:
        """The upper part of the backbone whose trunk has this digest; None for one that was not cut.

        Raises DataLossError.
        """
        row = await self._store.catalog.find_trunk(_tail_key(digest))
        if row is None:
            return None
        if row.digest not in self._tails:
            data = await self._store.blobs.get(row.digest)
            size = int.from_bytes(data[:_SIZE_BYTES], "little")
            graph, weights = data[_SIZE_BYTES:][:size], data[_SIZE_BYTES + size :]
            self._tails[row.digest] = load_tail(graph, weights, row.manifest)
        return self._tails[row.digest]

    async def _observing(self, trunk: Trunk) -> Trunk:
        made = await asyncio.to_thread(observing, trunk)
        await self.put_trunk(f"observing {trunk.feature_digest}", made, trunk.provenance.get("source", ""))
        return made

    async def put_trunk(self, name: str, trunk: Trunk, source: str) -> None:
        """Keeps a trunk that was made of another one. `name`: what it is, for its key."""
        await self._store.blobs.put(trunk.onnx)
        await self._store.catalog.put_trunk(
            TrunkRow(
                key=derived_key(name),
                digest=trunk.digest,
                manifest=dump_manifest(trunk),
                source=source,
                size=len(trunk.onnx),
            )
        )

    async def _put_tail(self, trunk: Trunk, tail: Tail) -> None:
        data = b"".join((len(tail.graph).to_bytes(_SIZE_BYTES, "little"), tail.graph, tail.weights))
        digest = await self._store.blobs.put(data)
        await self._store.catalog.put_trunk(
            TrunkRow(
                key=_tail_key(trunk.digest),
                digest=digest,
                manifest=dump_tail(tail),
                source=trunk.provenance.get("source", ""),
                size=len(data),
            )
        )

    def forget_loaded(self) -> None:
        """The start is over: lets go of the trunks that were read for it."""
        self._loaded = None

    async def trunk_of(self, model: Model, digest: str) -> Trunk:
        """The stored trunk that a completed declaration was made ready with. Raises as `stored_trunk`."""
        front, bits = front_config(model), model.spec.memory.bits

        def fits(trunk: Trunk) -> bool:  # bins have bits of their own
            return trunk.front == front and (trunk.scale.bits == bits or observes(trunk.provenance))

        return await self.stored_trunk(digest, fits)

    def _build(self, model: Model, files: BackboneFiles) -> tuple[Trunk, Tail | None]:
        self._work_dir.mkdir(parents=True, exist_ok=True)
        spec, front = model.spec, front_config(model)
        common: dict[str, Any] = {"bits": spec.memory.bits, "work_dir": self._work_dir}
        if spec.adapt.kind != "frozen":
            return build_cut_in_child(spec.backbone, files, front, blocks=spec.adapt.blocks, **common)
        return build_in_child(spec.backbone, files, front, projection=spec.projection, **common), None

    async def _describe(self, hub: Hub, backbone: Backbone, resolved: Resolved) -> BackboneDefaults:
        key = json.dumps([backbone.model_dump(mode="json"), dict(resolved.lock())], sort_keys=True)
        if key not in self._described:
            files = await asyncio.to_thread(hub.configuration, backbone)
            self._described[key] = await asyncio.to_thread(describe_in_child, backbone, files)
        return self._described[key]


def _check_kinds(model: Model) -> None:
    """Raises SpecError for a plug-in that is not there, before anything is asked of a hub."""
    if not model.spec.by_gradient:
        head_for(model.spec.head.kind, model.spec.head.regularization)
    memory_for(model.spec.memory.kind)
    loader, known = model.spec.backbone.loader, plugins.kinds(everlearn.backbones)
    if loader not in known:
        raise SpecError(f"unknown kind {loader!r}; known: {', '.join(known)}", field="spec.backbone.loader")


@contextmanager
def _named(at: str) -> Iterator[None]:
    """Hubs and loaders know one backbone, the model's own: errors about it get the field where it stands."""
    try:
        yield
    except EverlearnError as error:
        if error.field.startswith(OWN):
            error.field = at + error.field.removeprefix(OWN)
        raise


def _digests(trunk: Trunk) -> dict[str, str]:
    """Of all weights in a trunk: of files, which the hub has told too, and of those that were drawn."""
    told = {name: value for name, value in trunk.provenance.items() if name.startswith(_SHA256)}
    return {name.removeprefix(_SHA256): value for name, value in told.items()}


def _prefixed(lock: Mapping[str, str]) -> dict[str, str]:
    return {f"{_STUDENT}{name}": sha for name, sha in lock.items()}


def _downloads(backbone: Backbone, resolved: Resolved) -> list[Download]:
    return [
        Download(source=f"{backbone.source} {file.name}", size_bytes=file.size_bytes, cached=file.cached)
        for file in resolved.files
    ]


def _student_downloads(model: Model, resolved: Resolved | None) -> list[Download]:
    student = model.spec.distill_to
    return _downloads(student.backbone, resolved) if student is not None and resolved is not None else []


def _matters(backbone: Backbone, name: str) -> bool:
    """timm's configuration file matters only through the architecture and the front; an encoder's is its sizes."""
    return backbone.loader == TRANSFORMERS or not name.endswith(".json")


def derived_key(name: str) -> str:
    """Among the trunks, of what was made of one."""
    return hashlib.sha256(name.encode()).hexdigest()


def calibrated_name(uid: str, lineage: int) -> str:
    """Of a lineage's trunk in 8 bits, for `derived_key`."""
    return f"int8 of {uid} {lineage}"


def _tail_key(trunk_digest: str) -> str:
    """Beside the trunks: a tail is found by the trunk that it continues."""
    return derived_key(f"tail of {trunk_digest}")


def _key(model: Model, lock: Mapping[str, str]) -> str:
    """What a build depends on: files, loader options, front and bits."""
    backbone = model.spec.backbone
    depends: list[object] = [
        _BUILDER,
        sorted((name, sha) for name, sha in lock.items() if name != "revision" and _matters(backbone, name)),
        backbone.loader,
        backbone.architecture,
        backbone.keys,
        backbone.output,
        backbone.sha256,
        backbone.revision,
        front_config(model).digest,
        model.spec.memory.bits,
    ]
    if model.spec.adapt.kind != "frozen":
        depends.append({"blocks": model.spec.adapt.blocks})
    if backbone.seed is not None:
        depends.append({"network": backbone.source, "seed": backbone.seed})
    if model.spec.projection is not None:
        depends.append(model.spec.projection.model_dump(mode="json"))
    return hashlib.sha256(json.dumps(depends).encode()).hexdigest()
