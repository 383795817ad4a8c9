"""Releases a version as files, in the precision asked for: composed, compared with the server, stored by digest."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from everlearn.errors import DataLossError, PreconditionError
from everlearn.export.card import CardFacts, StudentFacts, model_card
from everlearn.export.card_precision import Evidence, PrecisionFacts
from everlearn.export.compose import Composer, score_output
from everlearn.export.int8 import rounded
from everlearn.export.int8_trunk import calibrated_on
from everlearn.export.parity import ReleaseReport, check_release, distance
from everlearn.export.precision import TOLERANCE, Precision, precision_of
from everlearn.export.probes import Probes
from everlearn.export.self_test import SelfTest
from everlearn.values import FeaturesBd, Trunk, TrunkInput
from everlearn_server.engine.damages import Damages
from everlearn_server.engine.int8 import released_by
from everlearn_server.engine.live_model import LiveModel
from everlearn_server.engine.precisions import RECORD_FILE, exports_of, joined, record
from everlearn_server.engine.serving import Snapshot
from everlearn_server.engine.trunks import LiveTrunk
from everlearn_server.engine.versions import Versioned
from everlearn_server.store.rows import ExportFile, ExportRow, VersionRow
from everlearn_server.store.store import Store

MODEL_FILE, CARD_FILE, TOKENIZER_FILE, PROBES_FILE = "model.onnx", "MODEL_CARD.md", "tokenizer.json", "probes.npz"
"""The card is no README.md: a download into a project's folder must not replace the project's own."""
INT8_TOLERANCE = 0.005
"""For the probes beside a file in 8 bits, as a tolerance of its parity check."""
_BENCHES = 4
"""Trunks for which the joined graph and the probes are kept; each takes about the trunk's size."""


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """What every export on one trunk shares."""

    trunk: Trunk
    composer: Composer
    probes: Probes
    self_test: SelfTest


class Exporter:
    """Composes on demand, one export at a time; the same version again is the same file."""

    def __init__(
        self, *, store: Store, stored_trunk: Callable[[str], Awaitable[Trunk]], damages: Damages | None = None
    ) -> None:
        self._damages = damages or Damages()
        self._store = store
        self._stored_trunk = stored_trunk
        self._benches: OrderedDict[str, _Bench] = OrderedDict()
        # Two at once would compose one file twice, and delete one export twice.
        self._turn = asyncio.Lock()

    async def export(self, model: LiveModel, versioned: Versioned, precision: Precision = "fp32") -> ExportRow:
        """The export of a version, made now unless it has been, or is damaged. Raises ParityError: then nothing is
        released; InputError for a precision that this model has no file in; GateError, PreconditionError as
        `released_by`."""
        async with self._turn:
            return await self._export(model, versioned, precision)

    async def verify(self, row: ExportRow, sha256: str) -> None:
        """Whether a file of an export is what it was. Raises DataLossError, which says how it is made anew."""
        try:
            await asyncio.to_thread(self._store.blobs.verify, sha256)
        except DataLossError as error:
            told = DataLossError(
                f"the export of version {row.version_number} of model {row.model!r} is damaged on the server; export "
                "the version again, and it is made anew"
            )
            self._damages.found("export", row.model, told, name=str(row.version_number))
            raise told from error

    async def prune(self, model: LiveModel) -> None:
        """Deletes the oldest exports beyond what the declaration retains."""
        async with self._turn:
            await self._prune(model)

    async def _export(self, model: LiveModel, versioned: Versioned, precision: Precision) -> ExportRow:
        number = versioned.record.number
        stored = [row for row in await self._store.catalog.exports(model.name) if row.version_number == number]
        for row in await exports_of(stored, self._store.blobs):
            if row.precision == precision and await self._is_intact(row):
                return row
        await model.store_version(versioned)
        bench = await self._bench(versioned.snapshot)
        asked = _Asked(model=model.name, versioned=versioned, parity=model.spec.spec.gate.parity, precision=precision)
        own = bench
        if precision == "int8" and not is_in_8_bits(versioned.snapshot):
            graph, evidence = released_by(model.beside, model.name, versioned.snapshot.feature_digest)
            own = await asyncio.to_thread(_make_bench, graph.trunk, graph.session.run)
            asked = replace(asked, evidence=evidence)
        made = await asyncio.to_thread(_release, own, bench, asked)
        contents = dict(made.contents)
        row = ExportRow(
            model=model.name,
            version_number=number,
            files=(),
            parity=made.parity,
            probes=made.report.served.probes,
            create_time_s=time.time(),
            precision=precision,
        )
        if made.facts is not None:
            contents[RECORD_FILE] = record(row, made.facts.told())
        files = [
            ExportFile(file_name=name, size=len(data), sha256=await self._store.blobs.put(data))
            for name, data in contents.items()
        ]
        row = replace(row, files=tuple(files))
        await self._store.catalog.put_export(joined(stored[0] if stored else None, row))
        self._damages.gone(model.name, kind="export", name=str(number))
        await self._prune(model)
        return row

    async def _is_intact(self, row: ExportRow) -> bool:
        try:
            for file in row.files:
                await self.verify(row, file.sha256)
        except DataLossError:
            return False
        return True

    async def _prune(self, model: LiveModel) -> None:
        newest_first = sorted(await self._store.catalog.exports(model.name), key=lambda row: -row.create_time_s)
        shown = [row for row in newest_first if row.version_number not in model.book.not_shown]
        kept = {row.version_number for row in shown[: model.spec.spec.retention.exports]}
        for row in newest_first:
            if row.version_number in kept:
                continue
            await self._store.catalog.delete_export(model.name, row.version_number)

    async def _bench(self, snapshot: Snapshot) -> _Bench:
        key = snapshot.feature_digest
        if key not in self._benches:
            assert isinstance(snapshot.trunk, LiveTrunk)
            trunk = await self._stored_trunk(snapshot.trunk.digest)
            # The stored manifest is the one of its first user; front, scale and tokenizer are this model's.
            live = snapshot.trunk
            trunk = replace(trunk, front=live.front, scale=live.scale, tokenizer=live.tokenizer)
            self._benches[key] = await asyncio.to_thread(_make_bench, trunk, snapshot.trunk.session.run)
            while len(self._benches) > _BENCHES:
                self._benches.popitem(last=False)
        self._benches.move_to_end(key)
        return self._benches[key]


def is_in_8_bits(snapshot: Snapshot) -> bool:
    """Whether the server itself answers in 8 bits with this version."""
    assert isinstance(snapshot.trunk, LiveTrunk)
    return snapshot.trunk.calibrated_on > 0


def precision_for(snapshot: Snapshot, asked: str) -> Precision:
    """What a file of a version is made in; `asked`: empty for what the server computes in.

    Raises InputError for no precision, PreconditionError for another than the one that a trunk in 8 bits has.
    """
    chosen = precision_of(asked)
    if not is_in_8_bits(snapshot):
        return chosen
    if asked and chosen != "int8":
        raise PreconditionError(
            f"this version has learned on its trunk in 8 bits, which is the one that ships; a file in {chosen} would "
            "be another model. Ask for int8, or leave the precision out",
            field="precision",
            reason="ONLY_INT8",
        )
    return "int8"


def _make_bench(trunk: Trunk, run: Callable[[TrunkInput], FeaturesBd]) -> _Bench:
    probes = Probes.of(trunk, run)
    return _Bench(trunk=trunk, composer=Composer(trunk), probes=probes, self_test=SelfTest.of(trunk, run, probes))


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What is to be released."""

    model: str
    versioned: Versioned
    parity: float
    """As declared (`gate.parity`)."""
    precision: Precision
    evidence: Evidence | None = None
    """Of a graph in 8 bits."""

    @property
    def tolerance(self) -> float:
        """Most that a score may be from those of the trunk that the file is of."""
        return max(self.parity, TOLERANCE[self.precision])


@dataclass(frozen=True, kw_only=True)
class _Released:
    """What leaves, and why it may."""

    contents: Mapping[str, bytes]
    report: ReleaseReport
    facts: PrecisionFacts | None
    """Where it is not in the server's precision."""

    @property
    def parity(self) -> float:
        """Largest difference of a score from the server's."""
        is_int8 = self.facts is not None and self.facts.precision == "int8"
        return self.facts.distance.max_abs_diff if self.facts and is_int8 else self.report.served.max_abs_diff


def _release(bench: _Bench, server: _Bench, asked: _Asked) -> _Released:
    """`bench`: of the trunk that the file is of; `server`: of the one that the server runs, mostly the same."""
    record, snapshot, precision = asked.versioned.record, asked.versioned.snapshot, asked.precision
    if precision == "int8" and not is_in_8_bits(snapshot):
        snapshot = replace(snapshot, head=rounded(snapshot.head))
    head, metrics = snapshot.head, json.loads(record.metrics_json)
    student = StudentFacts.of(metrics["student"]) if "student" in metrics else None
    told = _metadata(asked.model, record, metrics) | (student.told() if student is not None else {})
    live = snapshot.tail
    onnx = bench.composer.compose(head, told, live.tail if live is not None else None, precision=precision)
    report = check_release(
        onnx,
        snapshot.scores,
        head.labels,
        bench.probes,
        task=head.task,
        tolerance=asked.tolerance,
        novelty_of=snapshot.novelty,
    )
    facts = _precision_facts(bench, server, asked, report)
    card = model_card(_facts(asked, metrics, student, onnx, facts), bench.trunk, head, report)
    if facts is None:
        probes = bench.self_test.file(snapshot.scores, asked.parity, snapshot.novelty)
    else:
        # 8 bits are rounded in other places by other processors.
        tolerance = asked.parity if precision != "int8" else max(asked.parity, INT8_TOLERANCE)
        probes = bench.self_test.file_of(
            onnx, score_output(head.task), tolerance, tells_novelty=head.novelty is not None
        )
    contents = {MODEL_FILE: onnx, CARD_FILE: card.encode(), PROBES_FILE: probes}
    if bench.trunk.tokenizer:
        contents[TOKENIZER_FILE] = bench.trunk.tokenizer
    return _Released(contents=contents, report=report, facts=facts)


def _precision_facts(bench: _Bench, server: _Bench, asked: _Asked, report: ReleaseReport) -> PrecisionFacts | None:
    if asked.precision == "fp32":
        return None
    if asked.precision == "fp16":
        return PrecisionFacts(precision="fp16", distance=report.composed, tolerance=asked.tolerance)
    if is_in_8_bits(asked.versioned.snapshot):
        seen = calibrated_on(bench.trunk.provenance)
        return PrecisionFacts(precision="int8", distance=report.served, tolerance=asked.tolerance, calibrated_on=seen)
    head = asked.versioned.snapshot.head  # there is no tail below one in 8 bits
    ours_BC = rounded(head).scores(bench.probes.features_Bd)
    apart = distance(ours_BC, head.scores(server.probes.features_Bd), head.task)
    return PrecisionFacts(precision="int8", distance=apart, evidence=asked.evidence)


def _metadata(model: str, record: VersionRow, metrics: Mapping[str, Any]) -> dict[str, str]:
    told = {
        "model": model,
        "version": str(record.number),
        "head": metrics["head"],
        "samples": str(record.sample_count),
    }
    # A head that was solved in a hurry has no digest.
    return told | ({"memory_digest": record.memory_digest} if record.memory_digest else {})


def _facts(
    asked: _Asked,
    metrics: Mapping[str, Any],
    student: StudentFacts | None,
    onnx: bytes,
    precision: PrecisionFacts | None,
) -> CardFacts:
    record, tested = asked.versioned.record, metrics["tested"] > 0
    return CardFacts(
        model=asked.model,
        version=record.number,
        head_kind=metrics["head"],
        samples=record.sample_count,
        samples_C=tuple(metrics["samples_per_class"]),
        memory_digest=record.memory_digest,
        inexact_because=metrics.get("inexact_because", ""),  # versions of earlier releases say nothing
        accuracy=metrics["accuracy"] if tested else None,
        windowed_accuracy=metrics["windowed_accuracy"] if tested else None,
        sha256=hashlib.sha256(onnx).hexdigest(),
        size_bytes=len(onnx),
        budget=metrics.get("budget", ""),
        student=student,
        axes=tuple(metrics.get("axes", ())),
        privacy=tuple(metrics.get("privacy", ())),
        steps={} if student else metrics.get("report", {}).get("steps", {}),  # a student's record is its own
        precision=precision,
    )
