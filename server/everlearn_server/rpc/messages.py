"""Values of the engine as messages of the wire."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from google.longrunning import operations_pb2
from google.protobuf import json_format
from google.protobuf.message import Message

from everlearn.errors import NotFoundError
from everlearn.inputs.figures import ImageFigures
from everlearn.metrics.record import Record
from everlearn.spec import plan as planning
from everlearn.spec.defaults import height_width
from everlearn.spec.load import dump
from everlearn.spec.promises import promises
from everlearn.values import FrontConfig
from everlearn_protos.v1 import export_pb2, models_pb2, signing_pb2
from everlearn_server.engine.budget import Spent
from everlearn_server.engine.engine import Engine
from everlearn_server.engine.int8 import LiveInt8
from everlearn_server.engine.live_model import LiveModel
from everlearn_server.engine.operations import Operation
from everlearn_server.engine.precisions import export_id
from everlearn_server.engine.probe import Probe
from everlearn_server.engine.students import LiveStudent, student_of
from everlearn_server.engine.truth_check import MAX_BATCH_SAMPLES
from everlearn_server.engine.waiting_room import LateFigures
from everlearn_server.rpc import names
from everlearn_server.rpc.moments import timestamp
from everlearn_server.rpc.rollout import rollout_message
from everlearn_server.rpc.status import to_status
from everlearn_server.store.key_file import Rotation
from everlearn_server.store.keys import Keys
from everlearn_server.store.rows import ExportRow, VersionRow


async def model_message(engine: Engine, model: LiveModel, *, report: bool = True) -> models_pb2.Model:
    """A model as callers see it; in a list without the report, which can be large."""
    row = model.row
    return models_pb2.Model(
        name=f"models/{row.name}",
        declaration=dump(model.spec),
        generation=row.generation,
        etag=row.etag,
        status=await _status(engine, model, report=report),
        create_time=timestamp(row.create_time_s),
        update_time=timestamp(row.update_time_s),
    )


async def _status(engine: Engine, model: LiveModel, *, report: bool) -> models_pb2.ModelStatus:
    row, book = model.row, model.book
    status = models_pb2.ModelStatus(
        state=models_pb2.ModelStatus.State.Value(row.state),
        trunk_digest=row.trunk_digest or "",
        promotion_paused=book.promotion_paused,
        lock=json.loads(row.lock_json),
        bytes_at_rest=await engine.bytes_at_rest(row.name),
        privacy=promises(model.spec.spec),
    )
    for condition in json.loads(row.conditions_json):
        status.conditions.add(
            type=condition["type"],
            status=condition["status"],
            reason=condition["reason"],
            message=condition["message"],
            last_transition_time=timestamp(condition["time_s"]),
        )
    for damage in model.damages.of(row.name):
        status.conditions.add(type="DataIntact", status=False, reason="DATA_LOSS", message=damage.message)
    status.aliases.update(book.aliases)
    if model.spec.spec.rollout is not None:
        status.rollout.CopyFrom(rollout_message(model.rollout))
    if model.is_started:
        learner, shown = model.writer.learner, model.writer.held.shown
        status.labels.extend(shown.labels)
        status.samples_per_class.extend(int(count) for count in shown.count_C)
        status.sample_count = shown.samples
        status.feature_dim = 0 if model.ready_trunk.observes else model.ready_trunk.feature_dim
        tail = model.ready_trunk.tail
        status.trunk_bytes = model.ready_trunk.size_bytes + (len(tail.weights) if tail is not None else 0)
        status.input.CopyFrom(input_contract(model))
        status.prequential.CopyFrom(prequential_message(shown.record))
        if report:
            # Beside the event loop: many classes take a hundredth of a second, and the writer may hold the record.
            status.report.CopyFrom(await asyncio.to_thread(_report, shown.record))
        if model.writer.budget is not None:
            status.budget.CopyFrom(_budget(model.writer.budget.spent, learner.noise_share))
        if model.writer.work.room is not None:
            status.late_labels.CopyFrom(_late(model.writer.work.room.figures()))
        if (student := student_of(model.beside)) is not None:
            status.student.CopyFrom(_student(student))
        status.memory_digest = await model.writer.digest()
        status.inexact_because = learner.inexact_because
        if (int8 := _int8(model)) is not None:
            status.int8.CopyFrom(int8)
        short = model.writer.held.shortfall
        status.held = short.told() if short is not None else learner.waits_for
    return status


def _budget(spent: Spent, noise_share: float) -> models_pb2.BudgetStatus:
    return models_pb2.BudgetStatus(
        unit=spent.unit,
        epsilon=spent.budget,
        delta=spent.delta,
        epsilon_spent=spent.epsilon,
        releases=spent.releases,
        clients_at_end=spent.clients_at_end,
        noise_share=noise_share,
    )


def _late(figures: LateFigures) -> models_pb2.LateLabelsStatus:
    return models_pb2.LateLabelsStatus(
        given=figures.given,
        waiting=figures.waiting,
        waiting_bytes=figures.waiting_bytes,
        joined=figures.joined,
        coverage=figures.coverage,
        correct=figures.correct,
        expired=figures.expired,
        left_early=figures.left_early,
        delay_median_s=figures.delay_median_s,
        delay_p90_s=figures.delay_p90_s,
    )


def _student(student: LiveStudent) -> models_pb2.StudentStatus:
    figures = student.figures
    return models_pb2.StudentStatus(
        steps=figures.steps,
        samples=figures.samples,
        missed=figures.missed,
        tested=figures.tested,
        window=len(figures.window),
        agreement=figures.agreement,
        accuracy=figures.accuracy,
        loss=figures.loss,
        problem=student.problem,
    )


def _int8(model: LiveModel) -> models_pb2.Int8Status | None:
    declared = model.spec.spec.int8_trunk
    if declared is not None:
        return models_pb2.Int8Status(wanted=declared.samples, calibrated_on=model.ready_trunk.calibrated_on)
    if not isinstance(model.beside, LiveInt8):
        return None
    standing = model.beside.standing
    told = standing.evidence.told() if standing.evidence is not None else {}
    return models_pb2.Int8Status(seen=standing.seen, released=not standing.missing, missing=standing.missing, **told)


def input_contract(model: LiveModel) -> models_pb2.InputContract:
    """What a learner must send."""
    declared = model.spec.spec.input
    height, width = height_width(declared) or (0, 0)
    return models_pb2.InputContract(
        height=height,
        width=width,
        encodings=declared.encodings or (),
        max_image_bytes=declared.max_image_bytes or 0,
        max_batch_samples=MAX_BATCH_SAMPLES,
        feature_digest=model.ready_trunk.feature_digest,
        modality=declared.modality,
        task=model.spec.spec.task,
        outputs=[
            models_pb2.Output(name=output.name, min=output.low, max=output.high)
            for output in model.spec.spec.declared_outputs
        ],
        shape=model.ready_trunk.front.sample_shape,
        max_text_bytes=declared.max_text_bytes or 0,
        max_tokens=declared.max_tokens or 0,
    )


def prequential_message(prequential: Record) -> models_pb2.Prequential:
    """Test-then-train accuracy so far."""
    return models_pb2.Prequential(
        tested=prequential.tested,
        correct=prequential.correct,
        accuracy=prequential.accuracy,
        windowed_accuracy=prequential.window_accuracy,
        window=prequential.window,
    )


def _report(prequential: Record) -> models_pb2.LearningReport:
    return json_format.ParseDict(prequential.report(), models_pb2.LearningReport())


def version_message(model: LiveModel, record: VersionRow) -> models_pb2.Version:
    """A version as callers see it."""
    metrics = json.loads(record.metrics_json)
    return models_pb2.Version(
        name=f"models/{record.model}/versions/{record.number}",
        number=record.number,
        create_time=timestamp(record.create_time_s),
        labels=json.loads(record.labels_json),
        sample_count=record.sample_count,
        head=metrics["head"],
        regularization=metrics["regularization"],
        prequential=models_pb2.Prequential(
            tested=metrics["tested"],
            correct=metrics["correct"],
            accuracy=metrics["accuracy"],
            windowed_accuracy=metrics["windowed_accuracy"],
            window=metrics["window"],
        ),
        trunk_digest=record.trunk_digest,
        memory_digest=record.memory_digest,
        gate_passed=record.gate_passed,
        gate_reason=record.gate_reason,
        aliases=model.book.aliases_of(record.number),
        # Of a version that an earlier release made there is none.
        report=json_format.ParseDict(metrics.get("report", {}), models_pb2.LearningReport()),
        recipe=metrics.get("recipe", ""),
        training=metrics.get("training", {}),
        axes=metrics.get("axes", ()),
    )


def plan_message(plan: planning.Plan) -> models_pb2.Plan:
    """A plan as callers see it."""
    return models_pb2.Plan(
        id=plan.id,
        action=plan.action,
        changes=[
            models_pb2.Change(
                field=change.field,
                **{"class": models_pb2.Change.Class.Value(change.klass.name)},
                before=change.before,
                after=change.after,
                note=change.note,
            )
            for change in plan.changes
        ],
        downloads=[
            models_pb2.Download(source=each.source, size_bytes=each.size_bytes, cached=each.cached)
            for each in plan.downloads
        ],
        deletions=plan.deletions,
        cost=dict(plan.cost),
        warnings=plan.warnings,
        declaration=dump(plan.declaration),
        recipe=plan.recipe,
    )


def probe_message(name: str, probe: Probe) -> models_pb2.ModelProbe:
    """A probe as callers see it."""
    fit = probe.fit
    return models_pb2.ModelProbe(
        name=f"models/{name}",
        samples=fit.samples,
        classes=fit.classes,
        feature_dim=probe.feature_dim,
        log_me=fit.log_me,
        h_score=fit.h_score,
        h_shrinkage=fit.h_shrinkage,
        gcv_residual=fit.gcv_residual,
        trunk_bytes=probe.trunk_bytes,
        head_bytes=probe.head_bytes,
        trunk_ms_per_image=None if probe.trunk_s is None else probe.trunk_s * 1e3,
        timed_images=probe.timed_images,
    )


def input_probe_message(front: FrontConfig, figures: list[ImageFigures]) -> models_pb2.InputProbe:
    """Figures of images as callers see them."""
    return models_pb2.InputProbe(
        images=[
            models_pb2.ImageFigures(
                height=each.height,
                width=each.width,
                mean=each.mean,
                std=each.std,
                min=each.least,
                max=each.greatest,
                colour=each.colour,
            )
            for each in figures
        ],
        expected_mean=front.mean,
        expected_std=front.std,
        height=front.height,
        width=front.width,
    )


def operation_message(operation: Operation) -> Any:
    """The operation without its result."""
    message = operations_pb2.Operation(name=operation.name, done=operation.done)
    message.metadata.Pack(
        models_pb2.ApplyProgress(
            model=f"models/{operation.model}",
            stage=operation.stage,
            bytes_done=operation.bytes_done,
            bytes_total=operation.bytes_total,
        )
    )
    if operation.error is not None:
        message.error.CopyFrom(to_status(operation.error))
    return message


async def finished_message(operation: Operation, engine: Engine) -> Any:
    """The operation with its result, or with NOT_FOUND in its place where that has been deleted since."""
    message = operation_message(operation)
    if operation.done and operation.error is None:
        try:
            message.response.Pack(await _result(operation, engine))
        except NotFoundError as error:
            message.error.CopyFrom(to_status(error))
    return message


async def _result(operation: Operation, engine: Engine) -> Message:
    if operation.kind == "export":
        _, number, precision = names.export_of(operation.result["name"])
        for row in await engine.exports(operation.model):
            if (row.version_number, row.precision) == (number, precision):
                message = export_message(row, engine)
                message.pointer, message.pointer_signature = engine.signed_pointer(row, operation)
                return message
        raise NotFoundError(
            f"the export of version {number} has been deleted since, as retention.exports demands; create it again",
            field="version",
        )
    return await model_message(engine, engine.model(operation.model))


def export_message(row: ExportRow, engine: Engine) -> export_pb2.Export:
    """An export as callers see it."""
    manifest, signature = engine.signed_manifest(row)
    return export_pb2.Export(
        name=f"models/{row.model}/exports/{export_id(row)}",
        version=f"models/{row.model}/versions/{row.version_number}",
        files=[
            export_pb2.ExportFile(file_name=file.file_name, size_bytes=file.size, sha256=file.sha256)
            for file in row.files
        ],
        create_time=timestamp(row.create_time_s),
        parity_max_abs_diff=row.parity,
        probes=row.probes,
        manifest=manifest,
        signature=signature,
        precision=row.precision,
        key_rotations=rotation_messages(engine.keys),
    )


def rotation_messages(keys: Keys) -> list[signing_pb2.KeyRotation]:
    """How the key that signs came from the first one."""
    return [rotation_message(each) for each in keys.rotations]


def rotation_message(rotation: Rotation) -> signing_pb2.KeyRotation:
    """A signing key that gave way to the next."""
    return signing_pb2.KeyRotation(
        statement=rotation.statement, signature_by_old=rotation.by_old, signature_by_new=rotation.by_new
    )
