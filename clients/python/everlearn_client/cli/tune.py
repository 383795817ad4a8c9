"""`tune`: random-searches the options of a recipe on one labelled sample, all candidates beside each other."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from everlearn_client.choosing import trial
from everlearn_client.choosing.comparison import difference, noise_errors
from everlearn_client.choosing.diagnosis import GRADIENT_HEADS
from everlearn_client.choosing.search import (
    BY_GRADIENT,
    SOLVED,
    Options,
    Space,
    describe,
    draw,
    parse_space,
    with_options,
)
from everlearn_client.choosing.tuning import Choice, Tried, by_accuracy, choose
from everlearn_client.cli import exit_codes
from everlearn_client.cli.connection import DEFAULT_SERVER, ServerOption, connect, read_declaration, write_file
from everlearn_client.cli.output import Output, OutputOption, put, put_data, put_table, report, say
from everlearn_client.cli.sampling import DataArgument, Kind, Sample, SamplesOption, Stages, interruptible
from everlearn_client.cli.sampling import draw as draw_sample
from everlearn_client.client import Client
from everlearn_client.errors import EverlearnClientError, InvalidArgument, Unavailable
from everlearn_protos.v1 import models_pb2

DECLARED = "declared"
AT_ONCE = 32
"""Models that are there at a time."""
BY_STEPS_AT_ONCE = 4
"""The same where heads learn by steps: each model has a process of its own on the server, with torch in it."""
_FLOAT_BYTES = 4
_TRIES = 20
"""Draws for each candidate that is wanted: some are the same again, and some contradict the declaration."""


@dataclass(frozen=True)
class Candidate:
    """A recipe to be tried."""

    name: str
    options: Options
    by_steps: bool = False
    """Whether it learns by gradient steps, in a process of its own."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a search found, and how."""

    choice: Choice
    tried: Sequence[Tried]
    failed: Sequence[tuple[str, EverlearnClientError]]
    passes: int
    embed_s: float
    learn_s: float


def tune(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Declaration in YAML; - is stdin.")],
    data: DataArgument,
    server: ServerOption = DEFAULT_SERVER,
    output: OutputOption = Output.TABLE,
    samples: SamplesOption = 1000,
    candidates: Annotated[int, typer.Option("--candidates", "-c", min=1, max=200, help="Recipes to draw.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw; the same seed tries the same recipes.")] = 0,
    space: Annotated[
        Path | None,
        typer.Option(
            metavar="YAML",
            help="What may vary: paths below spec, each with a list of values or {low, high, log, whole}. By default "
            "head, regularization and projection; where the head learns by steps, its rate, steps and replay.",
        ),
    ] = None,
    write: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Write the recommended declaration to this file.")
    ] = None,
) -> None:
    """Search options of a recipe on a sample of DATA by accuracy before learning, and recommend a declaration.

    All candidates learn the same stream side by side; the backbone runs once on each sample. They are models for the
    moment, deleted again also after an error or Ctrl-C. Exit code 9 if some could not be tried.
    """
    if write is not None and not write.resolve().parent.is_dir():
        raise InvalidArgument(f"{write} cannot be written: no such folder", field="--write")
    declaration = _parse(read_declaration(file))
    chosen_space = parse_space(read_declaration(str(space))) if space else None
    with connect(ctx, server) as client, interruptible():
        planned = yaml.safe_load(client.models.plan(yaml.safe_dump(declaration)).declaration)
        sample = draw_sample(data, samples, Kind.of(planned["spec"]))
        chosen_space = chosen_space or _default_space(planned)
        drawn = _draw(client, declaration, chosen_space, candidates, seed)
        paths = sorted({path for branch in chosen_space for path in branch} - {"recipe"})
        say(f"seed {seed}: {len(drawn)} candidates beside the declared one, varying {', '.join(paths)}")
        # A space may hold recipes of both kinds.
        by_steps = _learns_by_steps(planned) or any(candidate.by_steps for candidate in drawn)
        found = _search(client, declaration, drawn, sample, at_once=BY_STEPS_AT_ONCE if by_steps else AT_ONCE)
    recommended = with_options(declaration, found.choice.tried.options)
    _put(found, recommended, output, seed=seed, samples=len(sample))
    if write is not None:
        write_file(write, _yaml(recommended))
    raise typer.Exit(exit_codes.PARTLY if found.failed else exit_codes.OK)


def _parse(text: str) -> dict[str, Any]:
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidArgument(f"not YAML: {error}", field="FILE") from error
    if not isinstance(document, dict) or not isinstance(document.get("spec"), dict):
        raise InvalidArgument("not a declaration: it has no spec", field="FILE")
    return document


def _default_space(planned: Mapping[str, Any]) -> Space:
    return parse_space(BY_GRADIENT if _learns_by_steps(planned) else SOLVED)


def _learns_by_steps(planned: Mapping[str, Any]) -> bool:
    return planned["spec"]["head"]["kind"] in GRADIENT_HEADS


def _draw(client: Client, declaration: Mapping[str, Any], space: Space, wanted: int, seed: int) -> list[Candidate]:
    """Candidates that differ and that the server would take. Raises the server's refusal where it takes none."""
    source, found = random.Random(seed), list[Candidate]()
    # Complete declarations: one that says what is the default is the same again.
    seen = {client.models.plan(_yaml(declaration)).declaration}
    refusal: InvalidArgument | None = None
    for _ in range(_TRIES * wanted):
        options = draw(space, source)
        try:
            complete = client.models.plan(_yaml(with_options(declaration, options))).declaration
        except InvalidArgument as error:  # options that contradict each other, or the declaration
            refusal = error
            continue
        if complete not in seen:
            seen.add(complete)
            found.append(Candidate(describe(options), options, by_steps=_learns_by_steps(yaml.safe_load(complete))))
        if len(found) == wanted:
            break
    if not found:
        raise refusal or InvalidArgument("the space has nothing in it but what is declared", field="--space")
    return found


def _search(
    client: Client, declaration: Mapping[str, Any], drawn: list[Candidate], sample: Sample, *, at_once: int
) -> Search:
    """Tries the declared recipe and the drawn ones, `at_once` beside each other."""
    candidates = [Candidate(DECLARED, {}), *drawn]
    locked = yaml.safe_load(client.models.lock(_yaml(declaration)).declaration)
    locked["spec"].pop("distill_to", None)  # a student says nothing of a recipe, and each trial would train one
    search = _Search(client, locked, sample)
    with ExitStack() as kept:
        for first in range(0, len(candidates), at_once):
            say(f"preparing {first + 1} to {min(first + at_once, len(candidates))} of {len(candidates)} candidates")
            with ExitStack() as stack:
                search.group(candidates[first : first + at_once], stack, kept)
    return Search(
        choice=choose(search.tried[0], search.tried[1:]),
        tried=search.tried,
        failed=search.failed,
        passes=search.embedded.passes,
        embed_s=search.embedded.seconds,
        learn_s=search.learn_s,
    )


class _Search:
    """A search under way."""

    def __init__(self, client: Client, declaration: dict[str, Any], sample: Sample) -> None:
        self.tried: list[Tried] = []
        self.failed: list[tuple[str, EverlearnClientError]] = []
        self.embedded = trial.Embedded(labels=sample.labels, features_Nd={}, passes=0, seconds=0.0)
        self.learn_s = 0.0
        self._client, self._declaration, self._sample = client, declaration, sample
        self._prefix = trial.temporary_name("tune")
        self._plain: models_pb2.Model | None = None

    def group(self, candidates: Sequence[Candidate], stack: ExitStack, kept: ExitStack) -> None:
        """Tries some candidates; their models go with `stack`, the backbone that all share with `kept`."""
        ready = list[tuple[Candidate, models_pb2.Model]]()
        for candidate in candidates:
            is_declared = candidate.name == DECLARED
            try:
                model = self._model(candidate.options, kept if is_declared else stack)
            except EverlearnClientError as error:
                if is_declared or isinstance(error, Unavailable):
                    raise  # without the declared recipe or the server there is nothing to compare
                self._tell(candidate.name, error)
                continue
            ready.append((candidate, model))
            if is_declared:
                self._plain = self._backbone(model, kept)
        self._embed([model for _, model in ready])
        begun_s = time.monotonic()
        shown = trial.run(self._client, [model for _, model in ready], self.embedded, on_block=_say_block)
        self.learn_s += time.monotonic() - begun_s
        for (candidate, model), each in zip(ready, shown, strict=True):
            if each.failure is None:
                self.tried.append(_figures(self._client, candidate, model, each))
            elif candidate.name == DECLARED:
                raise each.failure
            else:
                self._tell(candidate.name, each.failure)

    def _model(self, options: Options, stack: ExitStack) -> models_pb2.Model:
        name = trial.temporary_name(self._prefix)
        text = _yaml(trial.on_trial(with_options(self._declaration, options), name))
        progress = None if options else Stages(DECLARED)
        return stack.enter_context(trial.temporary(self._client, text, name, progress=progress))

    def _backbone(self, declared: models_pb2.Model, stack: ExitStack) -> models_pb2.Model:
        """A model without random features: those of the others are made of its pass."""
        if not yaml.safe_load(declared.declaration)["spec"].get("projection"):
            return declared
        return self._model({"recipe": None, "projection": None}, stack)

    def _embed(self, models: Sequence[models_pb2.Model]) -> None:
        """Features for models that are on none of the backbones that the sample has passed."""
        known = self.embedded.features_Nd
        new = [model for model in models if model.status.input.feature_digest not in known]
        if not new or self._plain is None:
            return
        self.embedded = trial.with_also(
            self.embedded, trial.embed(self._client, [self._plain, *new], self._sample.batches())
        )
        say(f"{len(self.embedded)} samples through the backbone in {self.embedded.seconds:.1f} s")

    def _tell(self, name: str, error: EverlearnClientError) -> None:
        say(f"{name} could not be tried:", style="red")
        report(error)
        self.failed.append((name, error))


def _figures(client: Client, candidate: Candidate, model: models_pb2.Model, shown: trial.Trial) -> Tried:
    status = client.models.get(model.name).status
    return Tried(
        name=candidate.name,
        options=candidate.options,
        correct_N=shown.correct_N,
        learn_us=1e3 * statistics.median(shown.learn_ms),
        memory_bytes=status.bytes_at_rest["memory"],
        export_bytes=status.trunk_bytes + _FLOAT_BYTES * (status.feature_dim + 1) * len(status.labels),
    )


def _yaml(declaration: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(declaration), sort_keys=False, allow_unicode=True)


def _say_block(known: int, count: int) -> None:
    if known:
        say(f"{known} of {count} samples learned")


def _put(found: Search, recommended: Mapping[str, Any], output: Output, *, seed: int, samples: int) -> None:
    declared, taken = found.tried[0], found.choice.tried
    ranked, noise = by_accuracy(found.tried), noise_errors(len(found.tried) - 1)
    if output is not Output.TABLE:
        value = {
            "seed": seed,
            "samples": samples,
            "tested": len(declared.correct_N),
            "passes": found.passes,
            "candidates": [_plain(each, declared) for each in ranked],
            "failed": [{"name": name, "error": error.message, "field": error.field} for name, error in found.failed],
            "recommended": taken.name,
            "why": found.choice.why,
            "declaration": dict(recommended),
        }
        put_data(value, output)
        return
    columns = ("", "candidate", "accuracy", "95 %", "against declared", "us/sample", "memory MB", "export MB")
    put_table(columns, [_row(each, declared, noise, is_taken=each is taken) for each in ranked])
    say(
        f"{found.passes} pass{'' if found.passes == 1 else 'es'} of the backbone a sample for {len(found.tried)} "
        f"candidates ({found.embed_s:.1f} s), learned side by side in {found.learn_s:.1f} s; seed {seed}"
    )
    put(found.choice.why)
    put(f"\n{_yaml(recommended).rstrip()}")


def _row(each: Tried, declared: Tried, noise: float, *, is_taken: bool) -> tuple[str, ...]:
    low, high = each.interval
    ahead, error = difference(each.correct_N, declared.correct_N)
    return (
        "*" if is_taken else "",
        each.name,
        f"{each.accuracy:.1%}",
        f"{100 * low:.1f} to {100 * high:.1f}",
        "" if each is declared else f"{100 * ahead:+.1f} (±{100 * noise * error:.1f})",
        f"{each.learn_us:.0f}",
        f"{each.memory_bytes / 1e6:.1f}",
        f"{each.export_bytes / 1e6:.1f}",
    )


def _plain(each: Tried, declared: Tried) -> dict[str, object]:
    ahead, error = difference(each.correct_N, declared.correct_N)
    low, high = each.interval
    return {
        "name": each.name,
        "options": dict(each.options),
        "accuracy": each.accuracy,
        "low": low,
        "high": high,
        "ahead": ahead,
        "error": 0.0 if each is declared else error,
        "learn_us": each.learn_us,
        "memory_bytes": each.memory_bytes,
        "export_bytes": each.export_bytes,
    }
