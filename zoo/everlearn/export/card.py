"""The model card beside an export: what the file is, what it learned from, how it was checked, how to run it.

Markdown with the YAML head that model hubs read (`license`, `base_model`, `base_model_relation`, ...).
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from everlearn.errors import InputError
from everlearn.export import card_precision, card_tasks
from everlearn.export.card_precision import PrecisionFacts
from everlearn.export.compose import input_contract, public_source
from everlearn.export.parity import ReleaseReport
from everlearn.spec.composition import GRADIENT_HEADS
from everlearn.values import Front, FrontConfig, LinearHead, Task, TensorFront, TextFront, Trunk

_CRAFT = ("regularize", "loss", "optimizer", "schedule", "train")
OPEN_LABELS = 20
"""More labels than these are folded away."""

USAGE = """\
import os
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime, whose builds report their use
import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("model.onnx")
image = np.asarray(Image.open("image.jpg").convert("RGB"))[None]  # uint8 [1, H, W, 3], any size
scores, label = session.run(["scores", "label"], {"image": image})
labels = session.run(["labels"], {"image": image})[0]
print(label[0], dict(zip(labels, scores[0])))
"""
"""A test runs this."""

USAGE_TENSOR = """\
import os
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime, whose builds report their use
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
sample = np.zeros([1, SHAPE], np.float32)  # your values, in the unit of the data it learned from
scores, label = session.run(["scores", "label"], {"tensor": sample})
labels = session.run(["labels"], {"tensor": sample})[0]
print(label[0], dict(zip(labels, scores[0])))
"""
"""With SHAPE filled in, a test runs this too."""

USAGE_TEXT = """\
import os
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime, whose builds report their use
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

session = onnxruntime.InferenceSession("model.onnx")
tokenizer = Tokenizer.from_file("tokenizer.json")
tokenizer.no_padding()
tokenizer.enable_truncation(MAX_TOKENS)
rows = [each.ids for each in tokenizer.encode_batch(["a text", "another, longer text"])]
input_ids = np.full([len(rows), max(map(len, rows))], -1, np.int64)  # -1: no token
for row, ids in zip(input_ids, rows):
    row[: len(ids)] = ids
scores, label = session.run(["scores", "label"], {"input_ids": input_ids})
labels = session.run(["labels"], {"input_ids": input_ids})[0]
print(label, dict(zip(labels, scores[0])))
"""
"""With MAX_TOKENS filled in, a test runs this too."""

_PIPELINES = {
    FrontConfig: "image-classification",
    TensorFront: "tabular-classification",
    TextFront: "text-classification",
}
_NOUNS = {FrontConfig: "image", TensorFront: "sample", TextFront: "text"}


@dataclass(frozen=True, kw_only=True)
class StudentFacts:
    """What is to be said of a file that is not the model itself but the small network that learned from it."""

    of_version: int
    """Of the model it imitates, whose head it has."""
    teacher: str
    """Source of the network it imitates."""
    teacher_digest: str
    """sha256 of that network's ONNX file."""
    agreement: float
    """Share of the newest samples to which both gave the same label, before the student learned them."""
    window: int
    """Of how many samples."""
    steps: int
    """Gradient steps."""
    samples: int
    """It learned from."""

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> StudentFacts:
        """From what the version's record says."""
        names = ("of_version", "teacher_digest", "agreement", "window", "steps", "samples")
        source = public_source(told["teacher"].get("source", "unknown"))
        return cls(teacher=source, **{name: told[name] for name in names})

    def told(self) -> dict[str, str]:
        """For the file's metadata."""
        return {
            "student_of_version": str(self.of_version),
            "teacher": self.teacher,
            "teacher_digest": self.teacher_digest,
            "teacher_agreement": f"{self.agreement:.4f}",
        }


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says beyond what trunk and head say themselves."""

    model: str
    """Name of the declared model."""
    version: int
    """Number of the exported version."""
    head_kind: str
    """As declared, e.g. `balanced_ridge`."""
    samples: int
    """Learned."""
    samples_C: tuple[int, ...]
    """Of those, which have each label; of a regression, all."""
    memory_digest: str
    """sha256 of the sums the head was solved from; equal digests mean equal heads. Empty where it was not taken."""
    accuracy: float | None
    """Prequential (test, then train) over all that was streamed, in [0, 1]; None where nothing was tested."""
    windowed_accuracy: float | None
    """The same over the newest samples."""
    sha256: str
    """Of the ONNX file."""
    size_bytes: int
    """Of the ONNX file."""
    inexact_because: str = ""
    """Why the sums are not those of all that was learned, added up; empty where they are."""
    budget: str = ""
    """What was spent of a budget of differential privacy, in words; empty where the model has none."""
    student: StudentFacts | None = None
    """Where the file is a student."""
    axes: tuple[str, ...] = ()
    """What the recipe expanded to, an axis a line (`spec.telling.axes`); empty for versions of earlier releases."""
    privacy: tuple[str, ...] = ()
    """What is promised to the people behind the samples (`spec.promises.promises`); empty for earlier releases."""
    steps: Mapping[str, float] = field(default_factory=dict)
    """What was forgotten of the stream's steps (`metrics.steps.Steps.summary`); empty where it named none."""

    precision: PrecisionFacts | None = None
    """Where the file is in another precision than the server's."""

    def axis(self, name: str) -> str:
        """What the recipe chose for an axis, in words; empty where that is not known."""
        return next((line.removeprefix(f"{name}: ") for line in self.axes if line.startswith(f"{name}: ")), "")


def model_card(facts: CardFacts, trunk: Trunk, head: LinearHead, parity: ReleaseReport) -> str:
    """The card. The same arguments give the same text. Raises InputError where samples and labels do not match."""
    if len(facts.samples_C) != len(head.labels):
        raise InputError(
            f"samples of {len(facts.samples_C)} labels for a head of {len(head.labels)}; one number for each label",
            field="samples",
        )
    one, usage = head.task == "classification", _usage(trunk.front)
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(trunk, head.task), sort_keys=False, allow_unicode=True)}---",
        f"# {facts.model}, version {facts.version}",
        _claim(trunk.front, len(head.labels)) if one else card_tasks.claim(trunk.front, head),
        "## Use\n\n```python\n" + (usage if one else card_tasks.usage(usage, head)) + "```",
        f"Input `{input_contract(trunk.front)}`. " + (_outputs(head) if one else card_tasks.outputs(head)),
        _labels(head, facts.samples_C),
        _learning(facts, trunk.front, head),
        *_privacy(facts.privacy),
        _checks(trunk.front, parity),
        *card_precision.section(facts.precision),
        _origin(facts, trunk),
    ]
    return "\n\n".join(parts) + "\n"


def _claim(front: Front, labels: int) -> str:
    into = f"into {_plural(labels, 'label')}. One ONNX file with everything inside:"
    if isinstance(front, TensorFront):
        return f"Classifies a tensor of numbers {into} their scaling, the head, the table of labels."
    if isinstance(front, TextFront):
        return (
            f"Classifies a text {into} the pretrained network, the head, the table of labels. Beside it lies the "
            f"tokenizer, `tokenizer.json` (sha256 `{front.tokenizer}`): with another one the scores mean nothing."
        )
    return (
        f"Classifies an image {into} resize and normalisation, the pretrained network, the head, the table of labels."
    )


def _usage(front: Front) -> str:
    if isinstance(front, TensorFront):
        return USAGE_TENSOR.replace("SHAPE", ", ".join(str(size) for size in front.shape))
    if isinstance(front, TextFront):
        return USAGE_TEXT.replace("MAX_TOKENS", str(front.max_tokens))
    return USAGE


def _outputs(head: LinearHead) -> str:
    told = (
        f"Outputs `scores` float32 [N, {len(head.labels)}] (the highest wins; not probabilities), `label_index` int64 "
        "[N], `label` string [N], `labels` the table."
    )
    if head.novelty is None:
        return told
    return (
        f"{told} And `novelty` float32 [N], how unlike all learned labels the sample is: beyond 1 it is unknown, "
        "`label_index` is -1 and `label` empty, and the scores are a guess."
    )


def _front_matter(trunk: Trunk, task: Task) -> dict[str, object]:
    provenance = trunk.provenance
    pipeline = _PIPELINES[type(trunk.front)]
    if task == "regression":  # the hubs know it of tables alone
        pipeline = "tabular-regression" if isinstance(trunk.front, TensorFront) else "other"
    matter: dict[str, object] = {"license": provenance.get("licence") or "unknown"}
    # The hubs' schema knows repositories only; another source is named in the text.
    repository = re.fullmatch(r"hf://([^/\s]+/[^/\s]+)", provenance.get("source", ""))
    if repository:
        matter |= {"base_model": repository[1], "base_model_relation": "finetune"}
    return matter | {
        "library_name": "onnx",
        "pipeline_tag": pipeline,
        "tags": ["everlearn", "onnx", "continual-learning", pipeline],
        "metrics": ["r_squared" if task == "regression" else "accuracy"],
    }


def _labels(head: LinearHead, samples_C: tuple[int, ...]) -> str:
    what = "output" if head.task == "regression" else "label"
    pairs = enumerate(zip(head.labels, samples_C, strict=True))
    rows = [f"| {index} | {_cell(label)} | {n} |" for index, (label, n) in pairs]
    table = "\n".join([f"| index | {what} | samples learned |", "|---|---|---|", *rows])
    if len(rows) > OPEN_LABELS:
        table = f"<details><summary>{len(rows)} {what}s</summary>\n\n{table}\n\n</details>"
    return f"## {what.capitalize()}s\n\n{table}"


def _learning(facts: CardFacts, front: Front, head: LinearHead) -> str:
    noun = _NOUNS[type(front)]
    frozen = (
        "There is no pretrained network: the values are only scaled."
        if isinstance(front, TensorFront)
        else "The pretrained network is frozen: it is the one named under Origin, unchanged."
    )
    if facts.precision is not None and facts.precision.calibrated_on:
        frozen = "The pretrained network is frozen: it is the one named under Origin, in 8 bits (see Precision)."
    adapt = facts.axis("adapt")
    if adapt and not adapt.startswith("frozen"):
        frozen = f"Blocks of the pretrained network named under Origin have learned too: {adapt}."
    solved = f"closed form, from sums over features; regularization {head.regularization:.4g}"
    lines = [
        f"- Samples: {facts.samples}, each seen once, as a stream.",
        f"- Head: `{facts.head_kind}`, {'by gradient steps' if facts.head_kind in GRADIENT_HEADS else solved}.",
        f"- {frozen}" if facts.student is None else _student(facts.student, noun),
        _accuracy(facts, head),
        *_forgotten(facts.steps),
        f"- Kept of the data: {_kept(facts, head, noun)}",
        *(f"- Recipe: {axis}." for axis in facts.axes if axis.startswith(_CRAFT)),
    ]
    if facts.budget:
        lines.append(f"- Differential privacy: {facts.budget}.")
    if facts.inexact_because:
        lines.append(f"- Those sums are an estimate: {facts.inexact_because}.")
    elif facts.memory_digest and facts.head_kind in GRADIENT_HEADS:
        lines.append(f"- Digest of the weights that learned: `{facts.memory_digest}`.")
    elif facts.memory_digest:
        lines.append(
            f"- Digest of those sums: `{facts.memory_digest}`. Equal sums give equal heads, whatever the order."
        )
    return "## How it learned\n\n" + "\n".join(lines)


def _kept(facts: CardFacts, head: LinearHead, noun: str) -> str:
    memory = facts.axis("memory")
    if memory.startswith("latents"):
        return (
            f"features of single samples, {memory}, sealed; they are personal data where the samples are. "
            f"No {noun} was stored."
        )
    if memory.startswith("none"):
        return f"nothing but weights. No {noun}, and no sample's features, was stored."
    sums = f"{card_tasks.kept(head)}, and one matrix of products of features over all samples"
    return f"{sums}. No {noun}, and no sample's features, was stored."


def _student(student: StudentFacts, noun: str) -> str:
    return (
        f"- This file is a student: a small network that learned, without labels, to give the features of a larger one "
        f"(`{student.teacher}`, sha256 `{student.teacher_digest}`), in {student.steps} gradient steps on "
        f"{_plural(student.samples, noun)} of the stream. Its head is that of version {student.of_version}, through a "
        "linear map that is folded into it.\n"
        f"- It gave the label of the model it imitates to {_percent(student.agreement)} of the newest "
        f"{_plural(student.window, noun)}, each before it learned it; the accuracy below is its own."
    )


def _accuracy(facts: CardFacts, head: LinearHead) -> str:
    over_all, newest = _percent(facts.accuracy), _percent(facts.windowed_accuracy)
    if head.task != "classification":
        return card_tasks.accuracy(head, over_all, newest)
    return (
        f"- Accuracy while learning (each sample predicted before it was learned): {over_all} over all samples, "
        f"{newest} over the newest."
    )


def _forgotten(steps: Mapping[str, float]) -> list[str]:
    if not steps or steps["count"] < 2:
        return []
    earlier = _plural(int(steps["count"]) - 1, "earlier step")
    if not steps["tested_again"]:
        return [f"- Forgetting: not known, for of {earlier} of the stream no data came again."]
    return [
        f"- Forgetting: {100 * steps['forgetting']:.1f} points of accuracy, mean over those whose data came again "
        f"after a newer step had begun: {int(steps['tested_again'])} of {earlier} of the stream."
    ]


def _privacy(lines: tuple[str, ...]) -> list[str]:
    return ["## Privacy\n\n" + "\n".join(f"- {line[0].upper()}{line[1:]}." for line in lines)] if lines else []


def _checks(front: Front, parity: ReleaseReport) -> str:
    noun = {FrontConfig: "synthetic image", TensorFront: "synthetic tensor", TextFront: "text"}[type(front)]
    lines = [
        f"- Compared with the server on {_plural(parity.served.probes, noun)}, in ONNX Runtime, from the file's bytes.",
        f"- Network and head: scores differ by at most {parity.composed.max_rel_diff:.1e} of their size.",
    ]
    if not isinstance(front, FrontConfig):
        return "## How it was checked\n\n" + "\n".join(lines)
    lines += [
        f"- With the resize, which the server does with Pillow: pixels differ by at most "
        f"{parity.front_grey_levels:.0f} of 255, scores by at most {parity.served.max_rel_diff:.1e} of their size, "
        f"labels agree on {_percent(parity.served.label_agreement)}.",
    ]
    return "## How it was checked\n\n" + "\n".join(lines)


def _origin(facts: CardFacts, trunk: Trunk) -> str:
    known = {**trunk.provenance, "source": public_source(trunk.provenance.get("source", "unknown"))}
    rows = [
        *sorted(known.items()),
        ("pretrained network, sha256", trunk.digest),
        ("features, sha256", trunk.feature_digest),
        ("this file, sha256", facts.sha256),
        ("this file, bytes", str(facts.size_bytes)),
    ]
    table = "\n".join(["| what | value |", "|---|---|", *(f"| {_cell(key)} | {_cell(value)} |" for key, value in rows)])
    return f"## Origin\n\n{table}"


def _cell(text: str) -> str:
    # Labels are whatever clients sent: nothing in them may end the cell, the row or the text.
    printable = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(printable, quote=False))


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{100 * share:.1f} %"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
