"""`doctor`: tries a model's declaration on a small labelled sample and says what a good engineer would check first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
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
from everlearn_client.cli.examining import fit, one_batch, range_test, renamed
from everlearn_client.cli.output import Output, OutputOption, put_data, put_table, say, stdout
from everlearn_client.cli.sampling import DataArgument, Kind, Sample, SamplesOption, Stages, draw, interruptible
from everlearn_client.client import Client
from everlearn_client.samples import Batch, Tensors, Texts, split_batch
from everlearn_protos.v1 import models_pb2

LOOKED_AT = 64
"""Images whose pixels are looked at."""
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
    say(f"trying the declaration on {len(sample)} samples")
    with trial.temporary(client, renamed(declaration, name), name, progress=Stages(name)) as model:
        findings = _look(client, name, declaration["spec"], sample)
        findings.append(diagnosis.check_labels(counts))
        findings.append(diagnosis.check_duplicates(len(sample), alike.duplicates, alike.conflicts))
        if len(counts) < 2:
            return findings  # nothing to tell apart: the rest would be empty words
        embedded = trial.embed(client, [model], sample.batches())
        return findings + _learn(client, declaration, model, embedded, sample.batches, alike)


def _learn(
    client: Client,
    declaration: Mapping[str, Any],
    model: models_pb2.Model,
    sample: trial.Embedded,
    batches: Callable[[], Iterator[Batch]],
    alike: Repeats,
) -> list[Finding]:
    (shown,) = trial.run(client, [model], sample)
    if shown.failure is not None:
        raise shown.failure
    last, classes = shown.points[-1], len(set(sample.labels))
    total, findings = client.models.get(model.name).status.report.total, []
    if total.HasField("log_loss"):
        loss = diagnosis.check_loss(log_loss=total.log_loss, classes=classes, samples=total.announced)
        findings.append(loss)
    majority = Counter(sample.labels[last.known :]).most_common(1)[0][1] / last.tested
    findings.append(diagnosis.check_baseline(last, majority))
    findings += one_batch(client, declaration, model, sample, alike.first_of_kind)
    findings += range_test(client, declaration, model, sample, shown)
    probe = fit(client, model, sample, batches)
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
