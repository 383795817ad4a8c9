"""What a model card says where a sample has several labels, or values: claim, use, outputs, figures."""

from __future__ import annotations

from everlearn.values import Front, LinearHead, TensorFront, TextFront

USAGE_SETS = """\
scores, present, labels = session.run(["scores", "present", "labels"], {INPUT: sample})
print([label for label, has in zip(labels, present[0]) if has], dict(zip(labels, scores[0])))
"""
"""Takes the place of the last lines of `card.USAGE`; a test runs this."""

USAGE_VALUES = """\
(values,) = session.run(["values"], {INPUT: sample})
outputs = json.loads(session.get_modelmeta().custom_metadata_map["everlearn.outputs"])
print(dict(zip(outputs, values[0])))
"""
"""As USAGE_SETS; a test runs this too."""


def claim(front: Front, head: LinearHead) -> str:
    """What the file does, in a sentence or two."""
    sample, inside = "an image", "resize and normalisation, the pretrained network, the head"
    if isinstance(front, TensorFront):
        sample, inside = "a tensor of numbers", "their scaling, the head"
    beside = ""
    if isinstance(front, TextFront):
        sample, inside = "a text", "the pretrained network, the head"
        beside = (
            f" Beside it lies the tokenizer, `tokenizer.json` (sha256 `{front.tokenizer}`): with another one the "
            "answers mean nothing."
        )
    if head.task == "regression":
        return f"Predicts {_listed(head.labels)} of {sample}. One ONNX file with everything inside: {inside}.{beside}"
    return (
        f"Says of {sample} which of {len(head.labels)} labels it has, none, one or several. One ONNX file with "
        f"everything inside: {inside}, the table of labels.{beside}"
    )


def usage(usage_of_labels: str, head: LinearHead) -> str:
    """The example of one label a sample, with what this task gives in the place of its last lines."""
    lines = usage_of_labels.splitlines(keepends=True)
    asked = next(index for index, line in enumerate(lines) if line.startswith("scores, label = "))
    given = lines[asked].rsplit("{", 1)[1].split(":")[0]
    sample = lines[asked].rsplit(":", 1)[1].strip().removesuffix("})")
    ends = USAGE_VALUES if head.task == "regression" else USAGE_SETS
    ends = ends.replace("INPUT", given).replace(": sample}", f": {sample}}}")
    needs = "import json\n\n" if head.task == "regression" else ""
    return needs + "".join(lines[:asked]) + ends


def outputs(head: LinearHead) -> str:
    """Names, types and meanings of what the file gives."""
    count = len(head.labels)
    if head.task == "regression":
        return (
            f"Output `values` float32 [N, {count}], in the units of the data it learned from; the columns' names are "
            "in the metadata `everlearn.outputs`."
        )
    return (
        f"Outputs `scores` float32 [N, {count}] (probabilities, each label's own), `present` bool [N, {count}] (where "
        "they are at least 0.5), `labels` the table."
    )


def kept(head: LinearHead) -> str:
    """What the sums hold of each label or output."""
    if head.task == "regression":
        return "per output the sums of its values, of their squares and of their products with features"
    return "per label a count and a sum of features"


def accuracy(head: LinearHead, over_all: str, newest: str) -> str:
    """The line on what was measured while it learned."""
    what = "R2, mean over the outputs" if head.task == "regression" else "Share of samples whose whole set was right"
    return (
        f"- {what}, while learning (each sample predicted before it was learned): {over_all} over all samples, "
        f"{newest} over the newest."
    )


def _listed(names: tuple[str, ...]) -> str:
    # Names are whatever was declared: nothing in them may end the text.
    plain = ["".join(each for each in name if each.isalnum() or each in " _-") for name in names[:5]]
    shown = ", ".join(plain)
    return f"{shown} and {len(names) - 5} more values" if len(names) > 5 else shown
