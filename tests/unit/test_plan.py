"""Plans: every field has a class, deletions are told before they happen, and consent is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from everlearn.errors import NeedsConsentError, SpecError
from everlearn.memories import memory_for
from everlearn.spec.changes import CLASS_OF, ChangeClass, classify
from everlearn.spec.fields import leaf_fields, leaf_values
from everlearn.spec.int8_export import Int8Export
from everlearn.spec.load import parse, revalidate
from everlearn.spec.model import Memory, Model
from everlearn.spec.plan import Download, Plan, StoredCounts, build_plan, check_consent, memory_bytes
from everlearn.spec.recipe import Adapt

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = parse(
    f"""metadata: {{name: shelf, labels: {{site: oslo}}}}
spec:
  backbone: {{source: hf://timm/x, revision: {COMMIT}, architecture: x}}
  input:
    {{size: 96, resize: crop, crop_pct: 0.875, interpolation: bicubic, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}}
  labels: [good, bad]
"""
)
STORED = StoredCounts(samples=12_345, classes=3, versions=30, exports=8, bytes=10**6)


def edited(path: str, value: object, model: Model = MODEL) -> Model:
    """The model with one field set; nothing else is checked, so that rules between fields do not stand in the way."""
    parts = path.split(".")
    if len(parts) == 1:
        return model.model_copy(update={path: value})
    child: Any = getattr(model, parts[0])
    return model.model_copy(update={parts[0]: edited(".".join(parts[1:]), value, child)})


def plan(before: Model | None, after: Model, **changed: Any) -> Plan:
    arguments: dict[str, Any] = {
        "etag": "e1",
        "resolved_lock": {"revision": COMMIT},
        "downloads": (),
        "stored": STORED,
        "trunk_cached": True,
        "seen_labels": ("good", "bad", "dent"),
    }
    return build_plan(before, after, **(arguments | changed))


def test_every_field_that_a_user_can_declare_has_a_class() -> None:
    assert list(CLASS_OF) == list(leaf_fields()), "a new field needs a row in CLASS_OF, in the order of declaration"


@pytest.mark.parametrize("path", leaf_fields())
def test_a_change_of_any_field_is_seen_and_has_the_class_of_its_field(path: str) -> None:
    value = leaf_values(MODEL)[path]
    other = {int: 3, float: 0.25, str: "other", tuple: ("z",), dict: {}, bool: True, type(None): "other"}[type(value)]
    (change,) = classify(MODEL, edited(path, other))
    assert change.field == path
    if path == "spec.backbone.sha256":
        assert change.klass is ChangeClass.LIVE, "beside an unchanged commit a digest says nothing new"
    else:
        assert change.klass is CLASS_OF[path]


@pytest.mark.parametrize(
    ("path", "value", "klass"),
    [
        ("metadata.labels", {}, "LIVE"),
        ("spec.input.max_image_bytes", 1000, "LIVE"),
        ("spec.gate.max_drop", 0.01, "LIVE"),
        ("spec.serving.promotion", "manual", "LIVE"),
        ("spec.head.kind", "lda", "REVISION"),
        ("spec.head.regularization", 0.1, "REVISION"),
        ("spec.backbone.revision", "f" * 40, "REPLACE"),
        ("spec.backbone.source", "hf://timm/y", "REPLACE"),
        ("spec.input.size", (96, 128), "REPLACE"),
        ("spec.input.std", (0.2, 0.2, 0.2), "REPLACE"),
        ("spec.memory.bits", 10, "REPLACE"),
        ("spec.retention.exports", 3, "RETENTION"),
        ("metadata.name", "other", "IMMUTABLE"),
    ],
)
def test_fields_have_the_class_that_their_effect_has(path: str, value: object, klass: str) -> None:
    (change,) = classify(MODEL, edited(path, value))
    assert change.klass.value == klass


def test_a_change_shows_yaml_before_and_after() -> None:
    (change,) = classify(MODEL, edited("spec.labels", ("good", "bad", "no")))
    assert (change.before, change.after) == ("[good, bad]", "[good, bad, 'no']")
    (change,) = classify(MODEL, edited("spec.gate.max_drop", 0.01))
    assert (change.before, change.after) == ("", "0.01")


@pytest.mark.parametrize(
    ("labels", "seen", "klass"),
    [
        (("good", "bad", "dent"), (), "REVISION"),
        (("good", "bad", "dent"), ("good", "bad"), "REVISION"),
        (("good", "bad", "dent", "hole"), ("good", "bad", "dent"), "REVISION"),
        (("good", "bad", "dent"), ("good", "bad", "dent", "hole"), "LIVE"),
        (("good",), (), "REPLACE"),
        (("bad", "good"), (), "REPLACE"),
        (("new", "good", "bad"), (), "REPLACE"),
        (("good", "bad", "hole"), ("good", "bad", "dent"), "REPLACE"),
        (("good", "bad", "hole", "dent"), ("good", "bad", "dent", "hole"), "REPLACE"),
        ((), (), "REPLACE"),
    ],
)
def test_labels_may_only_be_appended_behind_those_that_the_stream_brought(
    labels: tuple[str, ...], seen: tuple[str, ...], klass: str
) -> None:
    (change,) = classify(MODEL, edited("spec.labels", labels), seen_labels=seen)
    assert change.klass.value == klass
    assert change.note


def test_the_note_of_a_label_in_a_taken_place_says_what_would_keep_the_memory() -> None:
    (change,) = classify(MODEL, edited("spec.labels", ("good", "bad", "hole")), seen_labels=("good", "bad", "dent"))
    assert "begin with [good, bad, dent] to keep the memory" in change.note


def test_a_new_model_is_a_creation_without_changes_or_deletions() -> None:
    made = plan(None, MODEL, stored=StoredCounts(), seen_labels=())
    assert (made.action, made.changes, made.deletions) == ("create", (), ())
    assert made.declaration == MODEL
    check_consent(made)


def test_the_same_file_twice_changes_nothing_and_costs_nothing() -> None:
    made = plan(MODEL, MODEL, downloads=[Download(source="x", size_bytes=5, cached=False)])
    assert (made.action, made.changes, made.deletions, made.downloads, made.cost) == ("none", (), (), (), {})
    check_consent(made)


def test_a_plan_of_an_unfinished_declaration_is_refused() -> None:
    with pytest.raises(SpecError, match="size, resize") as caught:
        plan(None, parse("metadata: {name: a}\nspec: {backbone: {source: hf://a/b}}"))
    assert caught.value.field == "spec.input.size"


def test_replacing_tells_what_is_lost_and_needs_consent() -> None:
    made = plan(MODEL, edited("spec.input.size", 128))
    assert made.deletions == ("the memory: sums over 12,345 samples in 3 classes",)
    with pytest.raises(NeedsConsentError, match="12,345 samples") as caught:
        check_consent(made, allow_loosen_retention=True)
    assert caught.value.field == "spec.input.size"
    check_consent(made, allow_replace=True)


def test_replacing_nothing_deletes_nothing_and_still_needs_consent() -> None:
    made = plan(MODEL, edited("spec.input.size", 128), stored=StoredCounts(), seen_labels=())
    assert made.deletions == ()
    with pytest.raises(NeedsConsentError, match="empty so far"):
        check_consent(made)


def test_a_revision_and_live_changes_need_no_consent() -> None:
    made = plan(MODEL, edited("spec.head.kind", "lda", edited("spec.gate.min_accuracy", 0.5)))
    assert [change.klass.value for change in made.changes] == ["REVISION", "LIVE"]
    assert made.deletions == ()
    check_consent(made)


def test_tightening_retention_deletes_at_once_and_loosening_needs_consent() -> None:
    tighter = plan(MODEL, edited("spec.retention.exports", 3))
    assert tighter.deletions == ("5 of 8 exported files, the oldest",)
    check_consent(tighter)
    looser = plan(MODEL, edited("spec.retention.exports", 30))
    assert looser.deletions == ()
    with pytest.raises(NeedsConsentError) as caught:
        check_consent(looser, allow_replace=True)
    assert caught.value.field == "spec.retention.exports"
    check_consent(looser, allow_loosen_retention=True)


def test_a_retention_value_of_unknown_strictness_counts_as_loosening() -> None:
    (change,) = classify(MODEL, edited("spec.retention.features", "latents"))
    assert change.loosens


def test_keeping_fewer_versions_tells_how_many_go() -> None:
    made = plan(MODEL, edited("spec.serving.keep_versions", 25))
    assert made.deletions == ("up to 5 of 30 versions, the oldest that no alias or export names",)
    assert plan(MODEL, edited("spec.serving.keep_versions", 40)).deletions == ()


def test_what_cannot_change_is_refused_whatever_the_caller_allows() -> None:
    made = plan(MODEL, edited("metadata.name", "other"))
    with pytest.raises(SpecError, match="cannot change from shelf to other") as caught:
        check_consent(made, allow_replace=True, allow_loosen_retention=True)
    assert caught.value.field == "metadata.name"


@pytest.mark.parametrize(
    "changed",
    [{"etag": "e2"}, {"resolved_lock": {"revision": COMMIT, "model.safetensors": "00"}}],
)
def test_the_id_is_bound_to_the_state_and_to_the_lock(changed: Mapping[str, Any]) -> None:
    assert plan(MODEL, MODEL).id == plan(MODEL, MODEL, stored=StoredCounts()).id
    assert plan(MODEL, MODEL, **changed).id != plan(MODEL, MODEL).id


def test_the_id_is_bound_to_the_completed_declaration() -> None:
    assert plan(MODEL, edited("spec.gate.parity", 0.01)).id != plan(MODEL, MODEL).id
    assert plan(None, revalidate(MODEL.model_dump())).id == plan(MODEL, MODEL).id
    assert len(plan(MODEL, MODEL).id) == 32


def test_cost_counts_what_is_not_cached_and_the_bytes_of_the_sums() -> None:
    downloads = [Download(source="a", size_bytes=7, cached=False), Download(source="b", size_bytes=100, cached=True)]
    measured = {"trunk_build_s": 9.5, "head_solve_ms": 40.0}
    made = plan(None, MODEL, downloads=downloads, trunk_cached=False, feature_dim=1280, measured=measured)
    assert made.cost == {
        "download_bytes": 7,
        "trunk_build_s": 9.5,
        "memory_bytes": 8 * (3 + 3 * 1280 + 1280**2),
        "head_solve_ms": 40,
    }
    assert plan(None, MODEL, measured=measured).cost["trunk_build_s"] == 0
    assert "memory_bytes" not in plan(None, MODEL).cost
    assert "trunk_build_s" not in plan(None, MODEL, trunk_cached=False).cost, "unknown is left out, not guessed"


@pytest.mark.parametrize("options", [{"precision": "fp16", "logits": True}, {"selection": "herding"}, {}])
def test_the_bytes_of_a_memory_of_feature_vectors_are_those_it_takes(options: dict[str, Any]) -> None:
    declared = Memory(kind="latents", capacity=300, **options)
    memory = memory_for("latents").create(200, ["a", "b"], declared)
    features = np.random.default_rng(0).integers(-2000, 2000, (400, 200)).astype(np.int16)
    memory.integrate(features, ["a", "b"] * 200, logits_BC=np.ones((400, 2), np.float32))
    assert memory_bytes(declared, 200, 2) == pytest.approx(len(memory.to_bytes()), rel=0.05)


def test_a_memory_at_a_cut_has_no_cost_before_its_width_is_known_and_one_without_features_hardly_any() -> None:
    none = edited("spec.memory", Memory(kind="none"))
    assert plan(None, none, feature_dim=1280).cost["memory_bytes"] == 24
    moving = edited("spec.adapt", Adapt(kind="last_blocks", blocks=1), none)
    assert "memory_bytes" not in plan(None, moving, feature_dim=1280).cost
    split = edited("spec.memory", Memory(kind="per_class_statistics"))
    assert plan(None, split, feature_dim=100).cost["memory_bytes"] == 8 * (3 + 300 + 4 * 100**2)


def test_replacing_feature_vectors_says_what_they_were() -> None:
    before = edited("spec.memory", Memory(kind="latents"))
    made = plan(before, MODEL)
    assert made.deletions == ("the memory: feature vectors chosen of 12,345 samples in 3 classes",)


def test_warnings_name_what_a_user_may_not_expect() -> None:
    unknown = plan(None, MODEL, downloads=[Download(source="hf://a/b m.onnx", size_bytes=0, cached=False)])
    assert unknown.warnings == ("the hub does not tell the size of hf://a/b m.onnx; download_bytes leaves it out",)
    assert "pickle" in plan(None, edited("spec.backbone.format", "torch")).warnings[0]
    assert "303 MiB" in plan(None, MODEL, feature_dim=6300).warnings[0]
    assert "8,388,608 samples" in plan(None, edited("spec.memory.bits", 16)).warnings[0]
    assert "no client can be erased" in plan(None, edited("spec.int8_export", Int8Export())).warnings[0]
    assert plan(None, MODEL, feature_dim=1280).warnings == ()


@pytest.mark.parametrize(
    ("path", "before", "after", "loosens"),
    [
        ("spec.privacy.tier", "no_raw", "aggregate", False),
        ("spec.privacy.tier", "aggregate", "no_raw", True),
        ("spec.privacy.min_samples", 64, 128, False),
        ("spec.privacy.min_samples", 64, 32, True),
        ("spec.privacy.min_clients", None, 1, False),
        ("spec.privacy.noise", 2.0, 1.0, True),
        ("spec.privacy.epsilon", 8.0, 4.0, False),
        ("spec.privacy.epsilon", 4.0, 8.0, True),
    ],
)
def test_what_may_be_guessed_loosens_in_the_direction_that_people_fear(path, before, after, loosens) -> None:
    (change,) = classify(edited(path, before), edited(path, after))
    assert (change.klass, change.loosens) == (ChangeClass.RETENTION, loosens)


@pytest.mark.parametrize(("before", "after"), [("no_raw", "dp"), ("dp", "aggregate")])
def test_sums_with_noise_and_sums_without_never_mix(before, after) -> None:
    (change,) = classify(edited("spec.privacy.tier", before), edited("spec.privacy.tier", after))
    assert change.klass is ChangeClass.REPLACE
