"""`backbones rank`: tries several backbones on the same labelled sample and recommends one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from everlearn_client.choosing import trial
from everlearn_client.choosing.ranking import Candidate, Recommendation, by_accuracy, recommend
from everlearn_client.cli import exit_codes
from everlearn_client.cli.connection import DEFAULT_SERVER, ServerOption, connect, read_declaration
from everlearn_client.cli.examining import fit
from everlearn_client.cli.output import Output, OutputOption, put, put_data, put_table, report, say
from everlearn_client.cli.sampling import DataArgument, Kind, Sample, SamplesOption, Stages, draw, interruptible
from everlearn_client.client import Client
from everlearn_client.errors import EverlearnClientError, InvalidArgument, Unavailable

backbones = typer.Typer(name="backbones", help="Choose a backbone.", no_args_is_help=True)


@dataclass(frozen=True)
class Entry:
    """One candidate as it was written."""

    name: str
    declaration: dict[str, Any]


@backbones.command()
def rank(
    ctx: typer.Context,
    candidates: Annotated[
        Path,
        typer.Argument(
            metavar="CANDIDATES",
            help="YAML: several declarations divided by ---, or one with a list `backbones` beside its spec, each of "
            "which takes the place of spec.backbone.",
        ),
    ],
    data: DataArgument,
    server: ServerOption = DEFAULT_SERVER,
    output: OutputOption = Output.TABLE,
    samples: SamplesOption = 1000,
) -> None:
    """Compare backbones on a sample of DATA by accuracy before learning, LogME, H-score, GCV residual and cost.

    Each is declared for the moment, taught the same sample in the same order and deleted again, also after an error or
    Ctrl-C. Exit code 9 if some could not be tried.
    """
    entries = parse_candidates(read_declaration(str(candidates)))
    sample = draw(data, samples, _kind_of(entries))
    tried: list[Candidate] = []
    failed: list[tuple[Entry, EverlearnClientError]] = []
    with connect(ctx, server) as client, interruptible():
        for entry in entries:
            try:
                tried.append(_try(client, entry, sample))
            except Unavailable:
                raise  # the server is gone: the others would only wait for it too
            except EverlearnClientError as error:
                say(f"{entry.name} could not be tried:", style="red")
                report(error)
                failed.append((entry, error))
    if not tried:
        raise failed[0][1]
    _put(by_accuracy(tried), recommend(tried), failed, output)
    raise typer.Exit(exit_codes.PARTLY if failed else exit_codes.OK)


def parse_candidates(text: str) -> list[Entry]:
    """The candidates of a YAML file, each a whole declaration. Raises InvalidArgument that says what would be right."""
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        raise InvalidArgument(f"not YAML: {error}", field="CANDIDATES") from error
    declarations = [each for index, document in enumerate(documents) for each in _declarations(document, index)]
    if not declarations:
        raise InvalidArgument("no candidates; give declarations of models, divided by ---", field="CANDIDATES")
    names = [_name(declaration) for declaration in declarations]
    if len(set(names)) < len(names):
        names = [f"{name} #{index}" for index, name in enumerate(names, start=1)]
    return [Entry(name, declaration) for name, declaration in zip(names, declarations, strict=True)]


def _declarations(document: object, index: int) -> Iterator[dict[str, Any]]:
    if not isinstance(document, dict) or not isinstance(document.get("spec"), dict):
        raise InvalidArgument(f"document {index + 1} is no declaration: it has no spec", field="CANDIDATES")
    parts = document.pop("backbones", None)
    if parts is None:
        yield document
        return
    if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
        raise InvalidArgument("backbones must be a list of what spec.backbone can be", field="backbones")
    if "backbone" in document["spec"]:
        raise InvalidArgument("give spec.backbone or the list backbones, not both", field="backbones")
    for part in parts:
        yield {**document, "spec": {"backbone": part, **document["spec"]}}


def _kind_of(entries: list[Entry]) -> Kind:
    """What all of them learn from. Raises InvalidArgument."""
    kinds = {Kind.of(entry.declaration["spec"]) for entry in entries}
    if len(kinds) > 1:
        raise InvalidArgument("candidates take samples of different kinds; give one kind", field="spec.input")
    return kinds.pop()


def _name(declaration: dict[str, Any]) -> str:
    """What tells candidates apart for people: the end of the source, or the architecture with it."""
    backbone = declaration["spec"].get("backbone")
    if not isinstance(backbone, dict) or not backbone.get("source"):
        raise InvalidArgument("a candidate has no spec.backbone.source", field="spec.backbone.source")
    source = str(backbone["source"]).rstrip("/").rpartition("/")[2]
    return f"{backbone['architecture']} ({source})" if backbone.get("architecture") else source


def _try(client: Client, entry: Entry, sample: Sample) -> Candidate:
    name = trial.temporary_name("rank")
    declaration = yaml.safe_dump(trial.on_trial(entry.declaration, name), sort_keys=False)
    # A candidate may name a branch: what is compared is what it is now.
    locked = client.models.lock(declaration).declaration
    say(f"{entry.name}: trying on {len(sample)} samples")
    with trial.temporary(client, locked, name, progress=Stages(entry.name)) as model:
        embedded = trial.embed(client, [model], sample.batches())
        (shown,) = trial.run(client, [model], embedded)
        if shown.failure is not None:
            raise shown.failure
        probe = fit(client, model, embedded, sample.batches)
    return Candidate(
        name=entry.name,
        correct_N=shown.correct_N,
        log_me=probe.log_me,
        h_score=probe.h_score,
        gcv_residual=probe.gcv_residual,
        feature_dim=probe.feature_dim,
        ms_per_image=probe.trunk_ms_per_image,
        size_bytes=probe.trunk_bytes + probe.head_bytes,
    )


def _put(
    ranked: list[Candidate],
    recommended: Recommendation,
    failed: list[tuple[Entry, EverlearnClientError]],
    output: Output,
) -> None:
    if output is not Output.TABLE:
        value = {
            "tested": len(ranked[0].correct_N),
            "candidates": [_plain(each) for each in ranked],
            "failed": [{"name": entry.name, "error": error.message, "field": error.field} for entry, error in failed],
            "recommended": recommended.name,
            "why": recommended.why,
        }
        put_data(value, output)
        return
    rows = [
        (
            "*" if each.name == recommended.name else "",
            each.name,
            f"{each.accuracy:.1%}",
            f"{each.log_me:.3f}",
            f"{each.h_score:.2f}",
            f"{each.gcv_residual:.2f}",
            each.feature_dim,
            f"{each.ms_per_image:.2f}",
            f"{each.size_bytes / 1e6:.1f}",
        )
        for each in ranked
    ]
    columns = ("", "backbone", "accuracy", "logme", "h-score", "gcv residual", "features", "ms/image", "MB")
    put_table(columns, rows)
    put(recommended.why)


def _plain(each: Candidate) -> dict[str, object]:
    return {
        "name": each.name,
        "accuracy": each.accuracy,
        "log_me": each.log_me,
        "h_score": each.h_score,
        "gcv_residual": each.gcv_residual,
        "feature_dim": each.feature_dim,
        "ms_per_image": each.ms_per_image,
        "size_bytes": each.size_bytes,
    }
