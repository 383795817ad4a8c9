"""`doctor`: tries a model's declaration on a small labelled sample and says what a good engineer would check first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import typer
import yaml
from rich.table import Table

from everlearn_client import diagnosis, trial
from everlearn_client.cli import exit_codes
from everlearn_client.cli.connection import DEFAULT_SERVER, ModelArgument, ServerOption, connect
from everlearn_client.cli.output import Output, OutputOption, put_data, put_table, say, stdout
from everlearn_client.cli.sampling import DataArgument, Sample, SamplesOption, Stages, draw, interruptible
from everlearn_client.client import Client
from everlearn_client.diagnosis import Expected, Finding, ImageFigures, Level
from everlearn_client.errors import InvalidArgument
from everlearn_client.samples import split_batch
from everlearn_protos.v1 import models_pb2

LOOKED_AT = 64
"""Images whose pixels are looked at."""
ONE_BATCH = 32
_OVERFIT = {"kind": "ridge", "regularization": 1e-6}
"""Nearly without penalty, so that only features that are alike keep it from being right about what it has learned."""
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
    sample = draw(data, samples)
    with connect(ctx, server) as client, interruptible():
        found = client.models.get(model)
        if found.status.input.modality not in ("", "image"):
            raise InvalidArgument(
                f"{model} takes {found.status.input.modality}s; doctor knows models of images", field="MODEL"
            )
        findings = examine(client, yaml.safe_load(found.declaration), sample)
    _put(model, findings, output)
    bad = any(finding.level is Level.BAD for finding in findings)
    raise typer.Exit(exit_codes.DIFFERENT if bad else exit_codes.OK)


def examine(client: Client, declaration: Mapping[str, Any], sample: Sample) -> list[Finding]:
    """All findings, in the order in which to mend them."""
    counts = Counter(sample.labels)
    repeats = trial.repeats(sample.batches(0, len(sample)))
    name = trial.temporary_name("doctor")
    say(f"trying the declaration on {len(sample)} samples")
    with trial.temporary(client, _named(declaration, name), name, progress=Stages(name)) as model:
        findings = diagnosis.check_inputs(*_look(client, name, sample))
        findings.append(diagnosis.check_labels(counts))
        findings.append(diagnosis.check_duplicates(len(sample), repeats.duplicates, repeats.conflicts))
        if len(counts) < 2:
            return findings  # nothing to tell apart: the rest would be empty words
        shown = trial.run(client, name, sample.batches, len(sample))
    head = str(declaration["spec"].get("head", {}).get("kind", ""))
    last = shown.points[-1]
    majority = Counter(sample.labels[last.known :]).most_common(1)[0][1] / last.tested
    probe = shown.probe
    findings.append(diagnosis.check_baseline(last, majority))
    findings.append(_one_batch(client, declaration, sample, repeats.first_of_kind, model.status.feature_dim, head))
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
    findings.append(diagnosis.check_curve(shown.points, len(counts)))
    return findings


def _look(client: Client, name: str, sample: Sample) -> tuple[list[ImageFigures], Expected]:
    images: list[ImageFigures] = []
    for whole in sample.batches(0, min(LOOKED_AT, len(sample))):
        for batch in split_batch(whole):
            answer = client.models.probe_inputs(name, batch.samples)
            images += [_figures(each) for each in answer.images]
    expected = Expected(
        mean=float(np.mean(answer.expected_mean)),
        std=float(np.mean(answer.expected_std)),
        side=min(answer.height, answer.width),
    )
    return images, expected


def _figures(image: models_pb2.ImageFigures) -> ImageFigures:
    return ImageFigures(
        height=image.height,
        width=image.width,
        mean=image.mean,
        std=image.std,
        greatest=image.max,
        colour=image.colour,
    )


def _one_batch(
    client: Client,
    declaration: Mapping[str, Any],
    sample: Sample,
    first_of_kind: tuple[int, ...],
    feature_dim: int,
    head: str,
) -> Finding:
    """Teaches a second model a handful of different samples and asks it about just those."""
    # A linear head can be right about any d + 1 samples in general position: half of that leaves no excuse.
    count = min(ONE_BATCH, max(2, feature_dim // 2))
    positions = np.array(first_of_kind[:count], np.int64)
    name = trial.temporary_name("doctor")
    overfit = {"head": _OVERFIT} if head in diagnosis.CLOSED_FORM_HEADS else {}
    changed = {**declaration, "spec": {**declaration["spec"], **overfit}}
    with trial.temporary(client, _named(changed, name), name):
        trial.teach(client, name, sample.of(positions))
        hits = trial.hits(client, name, sample.of(positions))
    return diagnosis.check_one_batch(sum(hits), len(hits))


def _named(declaration: Mapping[str, Any], name: str) -> str:
    metadata = {**declaration["metadata"], "name": name}
    return yaml.safe_dump({**declaration, "metadata": metadata}, sort_keys=False, allow_unicode=True)


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
