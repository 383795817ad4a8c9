"""`get describe versions promote rollback delete info`: what is there, and which version serves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer
import yaml
from google.protobuf.timestamp_pb2 import Timestamp

from everlearn_client.cli.connection import DEFAULT_SERVER, ModelArgument, ServerOption, connect
from everlearn_client.cli.output import Output, OutputOption, ask, plain, put, put_data, put_fields, put_table
from everlearn_client.cli.reporting import figure_of, put_report
from everlearn_client.cli.rollouts import told_rollout
from everlearn_protos.v1 import models_pb2


def get(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="One model; all if left out.")] = None,
    server: ServerOption = DEFAULT_SERVER,
    output: OutputOption = Output.TABLE,
    spec_only: Annotated[
        bool, typer.Option("--spec-only", help="Only the declaration, ready to be applied again.")
    ] = False,
) -> None:
    """List models, or show one."""
    with connect(ctx, server) as client:
        models = list(client.models.list()) if model is None else [client.models.get(model)]
    if spec_only:
        _put_declarations(models, output)
    elif output is Output.TABLE:
        put_table(("name", "state", "classes", "samples", "stable", "latest", "accuracy"), map(_row, models))
    else:
        put_data(plain(models if model is None else models[0]), output)


def describe(
    ctx: typer.Context,
    model: ModelArgument,
    server: ServerOption = DEFAULT_SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show everything about a model."""
    with connect(ctx, server) as client:
        found = client.models.get(model)
    if output is Output.TABLE:
        _put_description(found)
    else:
        put_data(plain(found), output)


def _put_description(found: models_pb2.Model) -> None:
    status = found.status
    put_fields(
        {
            "name": found.name,
            "state": _state(found),
            "generation": found.generation,
            "etag": found.etag,
            "created": _time(found.create_time),
            "updated": _time(found.update_time),
            "aliases": ", ".join(f"{alias} = {number}" for alias, number in sorted(status.aliases.items())) or "none",
            "promotion": "paused" if status.promotion_paused else "as declared",
            figure_of(status.input.task): _accuracy(status.prequential),
            "samples": status.sample_count,
            "features": status.feature_dim,
            "trunk": status.trunk_digest,
            "memory": status.memory_digest,
            **({"estimated": status.inexact_because} if status.inexact_because else {}),
            "input": f"{status.input.height} x {status.input.width} px, {', '.join(status.input.encodings)}",
            "at rest": ", ".join(f"{kind} {size:,} B" for kind, size in sorted(status.bytes_at_rest.items())),
        }
    )
    if status.held:
        put(f"held: {status.held}")
    for line in status.privacy:
        put(f"privacy, {line}")
    if status.HasField("budget"):
        put(_budget(status.budget))
    if status.HasField("late_labels"):
        put(_late(status.late_labels))
    if status.HasField("student"):
        put(_student(status.student))
    if status.HasField("int8"):
        put(_int8(status.int8))
    if status.HasField("rollout"):
        for line in told_rollout(status.rollout):
            put(line)
    for condition in status.conditions:
        put(f"{'ok' if condition.status else 'NOT'} {condition.type}: {condition.reason} {condition.message}".rstrip())
    if status.labels:
        put("")
        put_report(status)
    put(f"\n{found.declaration.rstrip()}")


def versions(
    ctx: typer.Context,
    model: ModelArgument,
    server: ServerOption = DEFAULT_SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the versions of a model."""
    with connect(ctx, server) as client:
        found = list(client.models.versions(model))
    if output is not Output.TABLE:
        put_data(plain(found), output)
        return
    rows = [
        (
            version.number,
            _time(version.create_time),
            version.sample_count,
            len(version.labels),
            version.head,
            _accuracy(version.prequential),
            "passed" if version.gate_passed else version.gate_reason or "not passed",
            ", ".join(version.aliases),
        )
        for version in found
    ]
    put_table(("version", "created", "samples", "classes", "head", "accuracy", "gate", "aliases"), rows)


def promote(
    ctx: typer.Context,
    model: ModelArgument,
    version: Annotated[str, typer.Argument(metavar="[VERSION]", help="A number, latest or canary.")] = "latest",
    server: ServerOption = DEFAULT_SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Let a version serve as `stable`, if it passes the gate. An open canary ends: by `canary` it has won."""
    with connect(ctx, server) as client:
        found = client.models.promote(model, version)
    if output is Output.TABLE:
        put(f"{found.name}: stable is version {found.status.aliases['stable']}")
    else:
        put_data(plain(found), output)


def rollback(
    ctx: typer.Context,
    model: ModelArgument,
    to: Annotated[int, typer.Option("--to", metavar="VERSION", help="0 is the version before.", min=0)] = 0,
    server: ServerOption = DEFAULT_SERVER,
    output: OutputOption = Output.TABLE,
    canary: Annotated[
        bool, typer.Option("--canary", help="Withdraw the canary; stable stays where it is, and promotion goes on.")
    ] = False,
) -> None:
    """Let an earlier version serve again, and pause automatic promotion; or withdraw the canary."""
    with connect(ctx, server) as client:
        found = client.models.rollback(model, to, canary=canary)
    if output is Output.TABLE and canary:
        put(f"{found.name}: no device runs the canary any more; stable is version {found.status.aliases['stable']}")
    elif output is Output.TABLE:
        put(f"{found.name}: stable is version {found.status.aliases['stable']}; automatic promotion is paused")
    else:
        put_data(plain(found), output)


def delete(
    ctx: typer.Context,
    model: ModelArgument,
    server: ServerOption = DEFAULT_SERVER,
    output: OutputOption = Output.TABLE,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a model with everything it has learned."""
    with connect(ctx, server) as client:
        found = client.models.get(model)
        if not yes:
            question = f"Delete {found.name} with {found.status.sample_count:,} learned samples?"
            ask(question, consent="--yes")
        client.models.delete(model, etag=found.etag)
    if output is Output.TABLE:
        put(f"{found.name} is deleted")
    else:
        put_data({"name": found.name, "deleted": True}, output)


def info(ctx: typer.Context, server: ServerOption = DEFAULT_SERVER, output: OutputOption = Output.TABLE) -> None:
    """Show what the server is and can do."""
    with connect(ctx, server) as client:
        found = plain(client.info())
    found.pop("declaration_schema", None)
    if output is not Output.TABLE:
        put_data(found, output)
        return
    put_fields({name.replace("_", " "): _flat(value) for name, value in found.items()})


def _put_declarations(models: list[models_pb2.Model], output: Output) -> None:
    if output is Output.JSON:
        put_data([yaml.safe_load(m.declaration) for m in models], output)
    else:
        put("---\n".join(m.declaration.rstrip() + "\n" for m in models).rstrip())


def _row(model: models_pb2.Model) -> tuple[object, ...]:
    aliases = model.status.aliases
    return (
        model.name.removeprefix("models/"),
        _state(model),
        len(model.status.labels),
        model.status.sample_count,
        aliases.get("stable", "-"),
        aliases.get("latest", "-"),
        _accuracy(model.status.prequential),
    )


def _state(model: models_pb2.Model) -> str:
    return models_pb2.ModelStatus.State.Name(model.status.state).lower()


def _accuracy(prequential: models_pb2.Prequential) -> str:
    return f"{prequential.windowed_accuracy:.1%}" if prequential.tested else "-"


def _budget(budget: models_pb2.BudgetStatus) -> str:
    whom = "each sample" if budget.unit == "sample" else "each client"
    told = (
        f"privacy: epsilon {budget.epsilon_spent:.3g} of {budget.epsilon:g} spent at delta {budget.delta:g} for "
        f"{whom}, in {budget.releases:,} releases"
    )
    if budget.clients_at_end:
        told += f"; nothing more is learned of {budget.clients_at_end:,} clients"
    if budget.noise_share:
        poor = ", too much for a good head: more samples are needed" if budget.noise_share > 0.2 else ""
        told += f"; noise is {budget.noise_share:.0%} of a class's mean{poor}"
    return told


def _late(late: models_pb2.LateLabelsStatus) -> str:
    told = f"late labels: {late.joined:,} of {late.given:,} predictions ({late.coverage:.1%})"
    if late.HasField("delay_median_s"):
        told += f" after {_span(late.delay_median_s)} (median), {_span(late.delay_p90_s)} (90 %)"
    if late.correct:
        told += f", {late.correct / late.joined:.1%} of them predicted right"
    left = f"{late.expired:,} expired, {late.left_early:,} left early"
    return f"{told}; {late.waiting:,} wait in RAM ({late.waiting_bytes:,} B of features), {left}; since the start"


def _span(seconds: float) -> str:
    for name, length_s in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length_s:
            return f"{seconds / length_s:.1f} {name}"
    return f"{seconds:.1f} s"


def _student(student: models_pb2.StudentStatus) -> str:
    learned = f"student: {student.steps:,} steps on {student.samples:,} samples, {student.missed:,} missed"
    tested = "not compared yet"
    if student.window:
        tested = (
            f"agrees with the model on {student.agreement:.1%} of the newest {student.window:,}, right on "
            f"{student.accuracy:.1%}"
        )
    return f"{learned}; {tested}" + (f"; the last batch failed: {student.problem}" if student.problem else "")


def _int8(int8: models_pb2.Int8Status) -> str:
    if int8.wanted:
        made = f"made from {int8.calibrated_on:,} images" if int8.calibrated_on else f"waits for {int8.wanted:,} images"
        return f"int8 trunk: {made}"
    tested = "not tested yet"
    if int8.tested:
        tested = (
            f"{int8.accuracy:.1%} right of {int8.tested:,} samples, fp32 {int8.fp32_accuracy:.1%}, {int8.max_drop:.1%} "
            "may be lost"
        )
    ships = "ships" if int8.released else f"does not ship: {int8.missing}"
    return f"int8 export: {tested}; ranges of {int8.observed:,} images ({int8.seen:,} seen); {ships}"


def _time(moment: Timestamp) -> str:
    return moment.ToJsonString() if moment.seconds else "-"


def _flat(value: object) -> object:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, Iterable) and not isinstance(value, str) else value
