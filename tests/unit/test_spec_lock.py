"""Pinning: what the source means now is written down, and what may move is refused."""

from __future__ import annotations

import json

import pytest

from everlearn.errors import IntegrityError, MovingReferenceError, SpecError
from everlearn.spec.load import parse
from everlearn.spec.lock import STUDENT, is_pinned, pin, pin_text, require_pinned

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIGITS = "01234567" * 5
SHA = "ab" * 32


def declared(backbone: str) -> str:
    return f"metadata: {{name: a}}\nspec:\n  backbone: {{{backbone}}}\n"


@pytest.mark.parametrize(
    "revision",
    ["", ", revision: main", ", revision: v1.0", f", revision: '{COMMIT[:39]}'", f", revision: {COMMIT.upper()}"],
)
def test_a_reference_that_moves_is_refused_with_the_command_that_pins_it(revision: str) -> None:
    with pytest.raises(MovingReferenceError, match="run `everlearn lock`") as caught:
        require_pinned(parse(declared(f"source: hf://a/b{revision}")))
    assert caught.value.field == "spec.backbone.revision"


@pytest.mark.parametrize(
    "backbone",
    [
        f"source: hf://a/b, revision: {COMMIT}",
        f"source: wheel://d/m.safetensors, revision: 1.0.0, sha256: {SHA}",
        f"source: folder:/m.onnx, format: onnx, loader: onnx, sha256: {SHA}",
        f"source: hf://a/b, revision: {COMMIT}, file: m.pth, format: torch, sha256: {SHA}",
    ],
)
def test_what_cannot_move_is_accepted(backbone: str) -> None:
    require_pinned(parse(declared(backbone)))


@pytest.mark.parametrize(
    ("backbone", "field"),
    [
        (f"source: wheel://d/m.safetensors, sha256: {SHA}", "spec.backbone.revision"),
        ("source: wheel://d/m.safetensors, revision: 1.0.0", "spec.backbone.sha256"),
        ("source: folder:/m.safetensors", "spec.backbone.sha256"),
        ("source: wheel://d/m.pth, revision: 1.0.0, format: torch", "spec.backbone.sha256"),
    ],
)
def test_a_wheel_or_folder_without_its_pins_is_refused(backbone: str, field: str) -> None:
    model = parse(declared(backbone))
    with pytest.raises(SpecError) as caught:
        require_pinned(model)
    assert caught.value.field == field
    require_pinned(pin(model, revision="" if "folder" in backbone else "1.0.0", sha256=SHA))


def test_pinning_writes_the_commit_and_the_digest() -> None:
    pinned = pin(parse(declared("source: hf://a/b, revision: main")), revision=COMMIT, sha256=SHA)
    assert (pinned.spec.backbone.revision, pinned.spec.backbone.sha256) == (COMMIT, SHA)
    assert is_pinned(pinned.spec.backbone)
    assert pin(pinned, revision=COMMIT, sha256=SHA) == pinned


def test_pinning_never_overwrites_a_pin() -> None:
    model = parse(declared(f"source: hf://a/b, revision: {COMMIT}, sha256: {SHA}"))
    with pytest.raises(IntegrityError) as caught:
        pin(model, revision="f" * 40)
    assert caught.value.field == "spec.backbone.revision"
    with pytest.raises(IntegrityError) as caught:
        pin(model, revision=COMMIT, sha256="00" * 32)
    assert caught.value.field == "spec.backbone.sha256"


COMMENTED = """# the shelf camera
metadata: {name: shelf}   # who

spec:
    backbone:
        source: hf://timm/x   # chosen for its size
        revision: main        # follows upstream
        architecture: x
    gate: {min_accuracy: 0.5}
"""


def test_comments_and_layout_stay() -> None:
    assert pin_text(COMMENTED, revision=COMMIT) == COMMENTED.replace("revision: main ", f"revision: {COMMIT} ")


def test_a_missing_line_is_added_behind_the_source() -> None:
    text = pin_text(COMMENTED, revision=COMMIT, sha256=SHA)
    assert (
        f"        source: hf://timm/x   # chosen for its size\n        sha256: {SHA}\n        revision: {COMMIT} "
        in text
    )
    assert text.startswith("# the shelf camera\n")


@pytest.mark.parametrize(
    "text",
    [
        declared("source: hf://a/b"),
        declared("source: hf://a/b, revision: main"),
        declared("revision: 'main', source: hf://a/b"),
        declared("source: hf://a/b, revision: "),
        "metadata: {name: a}\nspec:\n  backbone:\n    revision:\n    source: hf://a/b",
        "metadata: {name: a}\nspec:\n  backbone:\n    source: hf://a/b",
        "metadata: {name: a}\nspec:\n  backbone:\n    source: >-\n      hf://a/b\n  task: classification\n",
        "metadata: {name: a}\nspec:\n  backbone:\n    source: |-\n      hf://a/b\n  task: classification\n",
        "metadata: {name: a}\nspec: {backbone: &b {\n  source: 'hf://a/b'\n}}\n",
        "metadata: {name: &m main, labels: {x: é🙂}}\nspec:\n  backbone:\n    source: hf://a/b\n    revision: *m\n",
        '{"metadata": {"name": "a"}, "spec": {"backbone": {"source": "hf://a/b", "revision": "main"}}}',
        "\ufeffmetadata: {name: a}\nspec:\n  backbone:\n    source: hf://a/b\n",
        "metadata: {name: a}\r\nspec:\r\n  backbone:\r\n    source: hf://a/b\r\n",
    ],
)
@pytest.mark.parametrize("revision", [COMMIT, DIGITS])
def test_whatever_the_layout_the_pinned_text_means_the_pinned_model(text: str, revision: str) -> None:
    pinned = pin_text(text, revision=revision, sha256=SHA)
    assert parse(pinned) == pin(parse(text), revision=revision, sha256=SHA)
    assert parse(pinned).spec.backbone.revision == revision
    assert pin_text(pinned, revision=revision, sha256=SHA) == pinned


def test_json_stays_json() -> None:
    text = json.dumps({"metadata": {"name": "a"}, "spec": {"backbone": {"source": "hf://a/b"}}})
    assert json.loads(pin_text(text, revision=COMMIT))["spec"]["backbone"]["revision"] == COMMIT


def test_a_version_that_looks_like_a_number_is_quoted() -> None:
    text = pin_text(declared("source: wheel://d/m.safetensors"), revision="0.1", sha256=SHA)
    assert "revision: '0.1'" in text
    require_pinned(parse(text))


TAUGHT = """metadata: {name: shelf}
spec:
  backbone:               # large
    source: hf://a/b
  distill_to:
    steps: 4
    backbone:             # small
      source: hf://a/c
      revision: main      # follows upstream
"""


@pytest.mark.parametrize(
    "text",
    [
        TAUGHT,
        "metadata: {name: a}\nspec: {backbone: {source: hf://a/b}, distill_to: {backbone: {source: hf://a/c}}}\n",
        "metadata: {name: a}\nspec:\n  backbone: &b {source: hf://a/b}\n  distill_to: {backbone: *b}\n",
        json.dumps(
            {
                "metadata": {"name": "a"},
                "spec": {"backbone": {"source": "hf://a/b"}, "distill_to": {"backbone": {"source": "hf://a/c"}}},
            }
        ),
    ],
)
def test_a_students_backbone_is_pinned_apart_from_the_models_own(text: str) -> None:
    half = pin_text(text, revision=COMMIT)
    with pytest.raises(MovingReferenceError, match="run `everlearn lock`") as caught:
        require_pinned(parse(half))
    assert caught.value.field == f"{STUDENT}.revision"
    whole = parse(pin_text(half, revision=DIGITS, sha256=SHA, at=STUDENT))
    require_pinned(whole)
    student = whole.spec.distill_to
    assert student is not None
    assert (whole.spec.backbone.revision, whole.spec.backbone.sha256) == (COMMIT, None)
    assert (student.backbone.revision, student.backbone.sha256) == (DIGITS, SHA)
    with pytest.raises(IntegrityError) as refused:
        pin(whole, revision=COMMIT, at=STUDENT)
    assert refused.value.field == f"{STUDENT}.revision"


def test_the_layout_around_a_students_backbone_stays() -> None:
    pinned = pin_text(TAUGHT, revision=COMMIT, at=STUDENT)
    assert pinned == TAUGHT.replace("revision: main ", f"revision: {COMMIT} ")
