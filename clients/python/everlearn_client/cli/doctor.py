"""`doctor`: tries a model's declaration on a small labelled sample and says what a good engineer would check first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import typer
import yaml
from rich.table import Table

from everlearn_client.choosing import diagnosis, trial
from everlearn_client.choosing.duplicates import Repeats, repeats
from everlearn_client.choosing.findings import Finding, Level
from everlearn_client.choosing.input_checks import Expected, ImageFigures, check_images, check_tensors, check_texts
from everlearn_client.cli import exit_codes
from everlearn_client.cli.connection import DEFAULT_SERVER, ModelArgument, ServerOption, connect
from everlearn_client.cli.output import Output, OutputOption, put_data, put_table, say, stdout
from everlearn_client.cli.sampling import DataArgument, Kind, Sample, SamplesOption, Stages, draw, interruptible
from everlearn_client.client import Client
from everlearn_client.samples import Tensors, Texts, split_batch
from everlearn_protos.v1 import models_pb2

LOOKED_AT = 64
"""Images whose pixels are looked at."""
ONE_BATCH = 32
_OVERFIT = {"kind": "ridge", "regularization": 1e-6}
"""Nearly without penalty, so that only features that are alike keep it from being right about what it has learned."""
_PENALTIES, _SHRINKAGES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0), (1e-3, 1e-2, 0.1, 0.5, 1.0)
_RANGE_TEST = {
    "balanced_ridge": _PENALTIES,
    "ridge": _PENALTIES,
    "lda": _SHRINKAGES,
    "balanced_lda": _PENALTIES,
}
"""Regularizations that are tried beside the model's own, by head."""
_STYLE = {Level.OK: "green", Level.WARN: "yellow", Level.BAD: "bold red"}


def doctor(
    ctx: typer.Context,
    model: ModelArgument,
    data: DataArgument,
    server: ServerOption = DEFAULT_SERVER,
    output: OutputOption = Output.TABLE,
    samples: SamplesOption = 500,
) -> None:
    """Check inputs, labels and backbone of MODEL on a sample of DATA: each ok, warn or bad, and what to do.

    MODEL itself is left alone: a model with the same declaration is taught for the moment and deleted again.
    Exit code 0 if nothing is bad, 1 if something is.
    """
    with connect(ctx, server) as client, interruptible():
        found = client.models.get(model)
        declaration = yaml.safe_load(found.declaration)
        sample = draw(data, samples, Kind.of(declaration["spec"]))
        findings = examine(client, declaration, sample)
    _put(model, findings, output)
    bad = any(finding.level is Level.BAD for finding in findings)
    raise typer.Exit(exit_codes.DIFFERENT if bad else exit_codes.OK)


def examine(client: Client, declaration: Mapping[str, Any], sample: Sample) -> list[Finding]:
    """All findings, in the order in which to mend them."""
    counts = Counter(sample.labels)
    alike = repeats(sample.batches())
    name = trial.temporary_name("doctor")
    head = str(declaration["spec"].get("head", {}).get("kind", ""))
    values = _RANGE_TEST.get(head, ())
    others = [_OVERFIT if values else {}, *({"kind": head, "regularization": value} for value in values)]
    say(f"trying the declaration on {len(sample)} samples")
    with ExitStack() as stack:
        model = stack.enter_context(trial.temporary(client, _named(declaration, name), name, progress=Stages(name)))
        findings = _look(client, name, declaration["spec"], sample)
        findings.append(diagnosis.check_labels(counts))
        findings.append(diagnosis.check_duplicates(len(sample), alike.duplicates, alike.conflicts))
        if len(counts) < 2:
            return findings  # nothing to tell apart: the rest would be empty words
        models = [model]
        for number, changed in enumerate(others, start=1):
            each = f"{name}-{number}"
            text = _named(declaration, each, **({"head": changed} if changed else {}))
            models.append(stack.enter_context(trial.temporary(client, text, each)))
        embedded = trial.embed(client, models, sample.batches())
        return findings + _learn(client, models, embedded, head, values, alike, declaration["spec"])


def _learn(
    client: Client,
    models: list[models_pb2.Model],
    sample: trial.Embedded,
    head: str,
    values: tuple[float, ...],
    alike: Repeats,
    spec: Mapping[str, Any],
) -> list[Finding]:
    """`models`: as declared, to be overfitted, and one for each of `values` of the regularization."""
    chosen = 0.0

    def hear(known: int, _: int) -> None:
        nonlocal chosen
        chosen = client.models.version(models[0].name, "latest").regularization if known else 0.0

    (shown,) = trial.run(client, models[:1], sample, on_block=hear)
    if shown.failure is not None:
        raise shown.failure
    last = shown.points[-1]
    status, probe = client.models.get(models[0].name).status, client.models.probe(models[0].name)
    classes, findings = len(set(sample.labels)), []
    if status.report.total.HasField("log_loss"):
        total = status.report.total
        loss = diagnosis.check_loss(log_loss=total.log_loss, classes=classes, samples=total.announced)
        findings.append(loss)
    majority = Counter(sample.labels[last.known :]).most_common(1)[0][1] / last.tested
    findings.append(diagnosis.check_baseline(last, majority))
    findings.append(_one_batch(client, models[1], sample, alike))
    if values:
        right = trial.hold_out(client, models[2:], sample, last.known)
        findings.append(
            diagnosis.check_regularization(
                chosen=chosen,
                is_declared=spec["head"].get("regularization", "auto") != "auto",
                correct_N=shown.correct_N[-last.tested :],
                others=dict(zip(values, right, strict=True)),
            )
        )
    findings.append(diagnosis.check_gradient(head))
    findings.append(
        diagnosis.check_fit(
            gcv_residual=probe.gcv_residual,
            log_me=probe.log_me,
            h_score=probe.h_score,
            h_shrinkage=probe.h_shrinkage,
            per_class=probe.samples / probe.classes,
        )
    )
    findings.append(diagnosis.check_curve(shown.points, classes))
    return findings


def _look(client: Client, name: str, spec: Mapping[str, Any], sample: Sample) -> list[Finding]:
    some = sample.batches(0, min(LOOKED_AT, len(sample)))
    declared = spec["input"]
    if declared["modality"] == "tensor":
        # All of it: a place that seldom varies would seem constant in a few.
        values = [batch.samples.values_N for batch in sample.batches() if isinstance(batch.samples, Tensors)]
        bits = spec["memory"]["bits"] if spec["backbone"]["source"] == "identity" else None
        return check_tensors(np.concatenate(values), declared["range"], bits=bits)
    if declared["modality"] == "text":
        texts = [text for batch in some if isinstance(batch.samples, Texts) for text in batch.samples.texts]
        return check_texts(texts, max_tokens=declared["max_tokens"])
    images: list[ImageFigures] = []
    for whole in some:
        for batch in split_batch(whole):
            answer = client.models.probe_inputs(name, batch.samples)
            images += [_figures(each) for each in answer.images]
    expected = Expected(
        mean=float(np.mean(answer.expected_mean)),
        std=float(np.mean(answer.expected_std)),
        side=min(answer.height, answer.width),
    )
    return check_images(images, expected)


def _figures(image: models_pb2.ImageFigures) -> ImageFigures:
    return ImageFigures(
        height=image.height,
        width=image.width,
        mean=image.mean,
        std=image.std,
        greatest=image.max,
        colour=image.colour,
    )


def _one_batch(client: Client, model: models_pb2.Model, sample: trial.Embedded, alike: Repeats) -> Finding:
    """Teaches a model a handful of different samples and asks it about just those."""
    # A linear head can be right about any d + 1 samples in general position: half of that leaves no excuse.
    count = min(ONE_BATCH, max(2, model.status.feature_dim // 2))
    rows = np.array(alike.first_of_kind[:count], np.int64)
    batch = sample.part(model.status.input.feature_digest, rows)
    trial.teach(client, model, batch)
    right = trial.hits(client, model, batch)
    return diagnosis.check_one_batch(sum(right), len(right))


def _named(declaration: Mapping[str, Any], name: str, **changes: object) -> str:
    changed = {
        **declaration,
        "metadata": {**declaration["metadata"], "name": name},
        "spec": {**declaration["spec"], **changes},
    }
    return yaml.safe_dump(changed, sort_keys=False, allow_unicode=True)


def _put(model: str, findings: list[Finding], output: Output) -> None:
    if output is not Output.TABLE:
        plain = [
            {
                "check": each.check,
                "level": each.level.value,
                "found": each.found,
                "advice": each.advice,
                "figures": dict(each.figures),
            }
            for each in findings
        ]
        worst = max(findings, key=lambda each: list(Level).index(each.level)).level
        put_data({"model": model, "level": worst.value, "findings": plain}, output)
        return
    console = stdout()
    if not console.is_terminal:
        put_table(("", "check", "found", "do"), [(e.level.value, e.check, e.found, e.advice) for e in findings])
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("", "check", "found", "do"):
        table.add_column(column, overflow="fold")
    for each in findings:
        cells = [cell.replace("[", "\\[") for cell in (each.check, each.found, each.advice)]
        table.add_row(f"[{_STYLE[each.level]}]{each.level.value}[/]", *cells)
    console.print(table)
