"""Makes a version of a model's student: numbered, served by that number, and exported as any other, never promoted."""

from __future__ import annotations

import json
import time

from everlearn.errors import GateError, PreconditionError
from everlearn.learners.base import Solution
from everlearn.learners.student import StudentWeights
from everlearn_server.engine.head_file import dump_solution
from everlearn_server.engine.live_model import LiveModel
from everlearn_server.engine.serving import Snapshot
from everlearn_server.engine.students import LiveStudent, student_of
from everlearn_server.engine.tails import LiveTail
from everlearn_server.engine.versions import Versioned
from everlearn_server.store.rows import VersionRow

_LEAST_TESTED = 100
"""Samples that a judgement needs, where the window is not smaller."""


async def release_student(model: LiveModel, versioned: Versioned) -> Versioned:
    """The student of this moment under the head of a version; the same again while neither has changed.

    Raises PreconditionError (NO_STUDENT, or a version of another backbone), GateError where they do not agree enough,
    UnavailableError where its process cannot be kept alive.
    """
    student = student_of(model.beside)
    if student is None:
        raise PreconditionError(
            f"model {model.name!r} has no student; declare distill_to for that", field="student", reason="NO_STUDENT"
        )
    if versioned.snapshot.feature_digest != student.teacher.feature_digest:
        raise PreconditionError(
            f"version {versioned.record.number} is of another backbone than the student imitates; take a later one",
            field="version",
            reason="NO_STUDENT",
        )
    _check(student)
    present = (student.figures.steps, versioned.record.number)
    if student.released is not None and student.released[:2] == present:
        return model.book.find(str(student.released[2]))
    figures = _figures(student, versioned)
    weights = await student.weights()
    await student.save()
    made = model.book.aside(lambda number: _version(number, student, versioned, weights, figures))
    await model.store_version(made)
    student.released = (*present, made.record.number)
    return made


def _check(student: LiveStudent) -> None:
    figures, declared = student.figures, student.declared
    tested, needed = len(figures.window), min(_LEAST_TESTED, declared.window)
    if tested < needed:
        raise GateError(
            f"the student was compared with the model on {tested} samples; {needed} are needed, so stream more",
            field="student",
        )
    if figures.agreement < declared.min_agreement:
        raise GateError(
            f"the student agrees with the model on {figures.agreement:.3f} of the newest {tested} samples, and "
            f"distill_to.min_agreement is {declared.min_agreement:.3f}; its own accuracy there is "
            f"{figures.accuracy:.3f}, after {figures.steps} steps on {figures.samples} samples",
            field="student",
        )


def _figures(student: LiveStudent, versioned: Versioned) -> dict[str, object]:
    figures, teacher = student.figures, student.teacher
    return {
        "of_version": versioned.record.number,
        "teacher": dict(teacher.provenance),
        "teacher_digest": teacher.digest,
        "agreement": figures.agreement,
        "window": len(figures.window),
        "accuracy": figures.accuracy,
        "tested": figures.tested,
        "steps": figures.steps,
        "samples": figures.samples,
    }


def _version(
    number: int, student: LiveStudent, versioned: Versioned, weights: StudentWeights, figures: dict[str, object]
) -> Versioned:
    of, trunk, told = versioned.record, student.trunk, student.figures
    head = weights.under(versioned.snapshot.head)
    metrics = json.loads(of.metrics_json) | {
        "tested": told.tested,
        "correct": told.correct,
        "accuracy": told.correct / max(told.tested, 1),
        "windowed_accuracy": told.accuracy,
        "window": len(told.window),
        "report": {},
        "feature_digest": trunk.feature_digest,
        "student": figures,
    }
    now_s = time.time()
    record = VersionRow(
        model=of.model,
        number=number,
        lineage=of.lineage,
        head=dump_solution(Solution(head=head, tail=weights.tail)),
        labels_json=of.labels_json,
        metrics_json=json.dumps(metrics),
        trunk_digest=trunk.digest,
        memory_digest=of.memory_digest,
        sample_count=of.sample_count,
        gate_passed=False,  # so that nothing ever points `stable` at it
        gate_reason=f"a student of version {of.number}: for devices, asked for by its number alone",
        create_time_s=now_s,
    )
    snapshot = Snapshot(
        model=of.model,
        version=number,
        trunk=trunk,
        front=trunk.front,
        head=head,
        tail=LiveTail(weights.tail),
        input=versioned.snapshot.input,
        feature_digest=trunk.feature_digest,
        create_time_s=now_s,
    )
    return Versioned(snapshot=snapshot, record=record, tails={})
