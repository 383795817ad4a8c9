"""The model card says what the file is, and its example runs."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from tests.unit.export_trunks import conv_trunk, random_head

from everlearn.errors import InputError
from everlearn.export.card import USAGE, USAGE_TENSOR, USAGE_TEXT, CardFacts, model_card
from everlearn.export.compose import Composer
from everlearn.export.parity import ParityReport, ReleaseReport

_SAME = ParityReport(max_abs_diff=2e-6, max_rel_diff=1e-6, probes=6, label_agreement=1.0)
REPORT = ReleaseReport(composed=_SAME, served=_SAME, front_grey_levels=1.0)


def _facts(samples_C: tuple[int, ...]) -> CardFacts:
    return CardFacts(
        model="flowers",
        version=7,
        head_kind="balanced_ridge",
        samples=sum(samples_C),
        samples_C=samples_C,
        memory_digest="b" * 64,
        accuracy=0.931,
        windowed_accuracy=None,
        sha256="c" * 64,
        size_bytes=1234,
    )


def test_front_matter_is_what_the_hub_reads() -> None:
    card = ModelCard(model_card(_facts((3, 4)), conv_trunk(), random_head(2), REPORT))
    assert card.data.license == "apache-2.0"
    assert card.data.base_model == "acme/tiny"
    assert card.data.base_model_relation == "finetune"
    assert card.data.library_name == "onnx"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.metrics == ["accuracy"]


def test_a_backbone_that_is_no_repository_is_named_in_the_text_without_the_servers_folders() -> None:
    text = model_card(_facts((3, 4)), conv_trunk(source="folder:/srv/acme/net.onnx"), random_head(2), REPORT)
    assert "base_model" not in yaml.safe_load(text.split("---")[1])
    assert "folder:net.onnx" in text
    assert "/srv" not in text


def test_a_digest_that_was_not_taken_is_not_mentioned() -> None:
    known = model_card(_facts((3, 4)), conv_trunk(), random_head(2), REPORT)
    assert f"Digest of those sums: `{'b' * 64}`" in known
    facts = dataclasses.replace(_facts((3, 4)), memory_digest="")
    assert "Digest of those sums" not in model_card(facts, conv_trunk(), random_head(2), REPORT)


def test_card_says_how_it_was_learned_and_checked() -> None:
    text = model_card(_facts((3, 4)), conv_trunk(), random_head(2), REPORT)
    for fact in (
        "Samples: 7",
        "balanced\\_ridge",
        "0.125",
        "93.1 %",
        "not measured",
        "b" * 64,
        "c" * 64,
        "6 synthetic",
    ):
        assert fact.replace("\\_", "_") in text
    assert "No image" in text


def test_a_card_of_gradient_steps_does_not_claim_sums_a_frozen_network_or_that_nothing_was_kept() -> None:
    axes = (
        "adapt: last_blocks (blocks 1)",
        "memory: latents (capacity 1000, precision int8)",
        "head: linear",
        "optimizer: adamw (learning_rate 0.001)",
    )
    facts = dataclasses.replace(_facts((3, 4)), head_kind="linear", axes=axes)
    text = model_card(facts, conv_trunk(), random_head(2), REPORT)
    assert "by gradient steps" in text
    assert "have learned too: last_blocks" in text
    assert "personal data" in text
    assert "adamw" in text
    assert "is frozen" not in text
    assert "closed form" not in text
    assert "no sample's features, was stored" not in text
    nothing = dataclasses.replace(facts, axes=("adapt: full", "memory: none (bits 12)", "head: linear"))
    assert "nothing but weights" in model_card(nothing, conv_trunk(), random_head(2), REPORT)


@pytest.mark.parametrize(("classes", "folded"), [(2, False), (21, True)])
def test_many_labels_are_folded_away(classes: int, folded: bool) -> None:
    text = model_card(_facts((1,) * classes), conv_trunk(), random_head(classes), REPORT)
    assert ("<details>" in text) is folded


def test_labels_cannot_break_out_of_the_table() -> None:
    hostile = ("a | b", "<script>alert(1)</script>", "line\n# heading", "![x](http://example.com)")
    text = model_card(_facts((1, 1, 1, 1)), conv_trunk(), random_head(4, labels=hostile), REPORT)
    assert "<script>" not in text
    assert "\n# heading" not in text
    assert "a \\| b" in text
    assert "![x]" not in text


def test_samples_must_match_the_labels() -> None:
    with pytest.raises(InputError, match="2"):
        model_card(_facts((1,)), conv_trunk(), random_head(2), REPORT)


def test_the_example_in_the_card_runs_as_it_stands(tmp_path: Path) -> None:
    head = random_head(3, labels=("dog", "cat", "Ärger"))
    text = model_card(_facts((1, 1, 1)), conv_trunk(), head, REPORT)
    example = text.split("```python\n")[1].split("```")[0]
    assert example == USAGE
    assert len(example.splitlines()) <= 12
    (tmp_path / "model.onnx").write_bytes(Composer(conv_trunk()).compose(head, {"model": "flowers", "version": "7"}))
    Image.fromarray(np.full((50, 70, 3), 90, np.uint8)).save(tmp_path / "image.jpg")
    ran = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", example], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8"
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[0] in head.labels
    assert "Ärger" in ran.stdout


def test_who_runs_the_examples_reports_to_nobody(tmp_path: Path) -> None:
    # Official builds of ONNX Runtime keep a database of events in the user's cache from 1.31 on, to be sent.
    made = {}
    for name, example in {"image": USAGE, "tensor": USAGE_TENSOR, "text": USAGE_TEXT}.items():
        first, line, rest = example.split("\n", 2)
        assert (first, line.partition("(")[0]) == ("import os", "os.environ.setdefault")
        until_it_is_there = rest.partition("session =")[0]
        for told, text in {"silent": f"{first}\n{line}\n{until_it_is_there}", "control": until_it_is_there}.items():
            home = tmp_path / name / told
            home.mkdir(parents=True)
            # Nothing else of ours: where CI or one of its kin is set, ONNX Runtime is silent by itself.
            environment = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
            environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home)}
            subprocess.run([sys.executable, "-c", text], env=environment, check=True, timeout=240, capture_output=True)
            made[name, told] = [path for path in home.rglob("*") if "onnxruntime" in path.name]
    assert not any(found for (_, told), found in made.items() if told == "silent"), made
    if onnxruntime.__version__ == "1.31.1":  # what this version does where nobody tells it not to
        assert all(found for (_, told), found in made.items() if told == "control"), made
