"""Declaring models on the real server: plans, every class of change, refusals, listing, deleting."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from google.longrunning import operations_proto_pb2
from tests import tiny
from tests.e2e.server_calls import Stubs, refused
from tests.real_server import RealServer

from everlearn_client import Client, Conflict, FailedPrecondition, InvalidArgument, NotFound
from everlearn_protos.v1 import models_pb2 as pb


def teach(client: Client, model: str, label: int = 0, count: int = 8) -> None:
    client.learn(model, [(tiny.images(count, label), [f"c{label}"] * count)])


def changes(plan: pb.Plan) -> dict[str, str]:
    return {change.field: pb.Change.Class.Name(getattr(change, "class")) for change in plan.changes}


def settled_version(client: Client, model: str, accept: Any) -> pb.Version:
    """The latest version, as soon as it is accepted."""
    for _ in range(200):
        version = client.models.version(model, "latest")
        if accept(version):
            return version
        time.sleep(0.02)
    raise AssertionError(f"{version}")


def test_the_same_file_twice_changes_nothing(server: RealServer, client: Client, backbone: Path) -> None:
    text = tiny.declaration(backbone, name="twice")
    first = server.declare(text)
    again = client.models.apply(text, wait=False)
    assert again.operation is None
    assert again.plan.action == "none"
    assert not again.plan.changes
    assert not again.plan.downloads
    assert again.model is not None
    assert (again.model.generation, again.model.etag) == (first.generation, first.etag)
    filled = client.models.apply(first.declaration, wait=False)
    assert filled.plan.action == "none", "the declaration that the server gives back is the one in force"


def test_a_dry_run_and_a_plan_have_no_effect(client: Client, backbone: Path) -> None:
    text = tiny.declaration(backbone, name="dry")
    planned = client.models.plan(text)
    tried = client.models.apply(text, dry_run=True)
    assert (planned.action, tried.plan.id, tried.model) == ("create", planned.id, None)
    assert "kind: balanced_ridge" in planned.declaration, "defaults are filled in"
    with pytest.raises(NotFound):
        client.models.get("dry")


def test_apply_is_held_to_its_plan(server: RealServer, client: Client, backbone: Path) -> None:
    server.declare(tiny.declaration(backbone, name="planned"))
    wanted = tiny.declaration(backbone, name="planned", gate={"min_samples": 5})
    plan = client.models.plan(wanted)
    client.models.apply(tiny.declaration(backbone, name="planned", serving={"keep_versions": 5}))
    with pytest.raises(Conflict) as stale:
        client.models.apply(wanted, plan_id=plan.id)
    assert (stale.value.field, stale.value.code, stale.value.reason) == ("plan_id", "ABORTED", "STALE")
    fresh = client.models.plan(wanted)
    assert client.models.apply(wanted, plan_id=fresh.id).plan.id == fresh.id


def test_learning_does_not_make_a_plan_stale(server: RealServer, client: Client, backbone: Path) -> None:
    server.declare(tiny.declaration(backbone, name="busy"))
    wanted = tiny.declaration(backbone, name="busy", gate={"min_samples": 5})
    plan = client.models.plan(wanted)
    teach(client, "busy")
    assert client.models.apply(wanted, plan_id=plan.id).model is not None


def test_a_live_change_is_in_force_at_once(server: RealServer, client: Client, backbone: Path) -> None:
    before = server.declare(tiny.declaration(backbone, name="live"))
    changed = tiny.declaration(backbone, name="live", gate={"min_samples": 99})
    applied = client.models.apply(changed, wait=False)
    assert applied.operation is None
    assert applied.model is not None
    assert changes(applied.plan) == {"spec.gate.min_samples": "LIVE"}
    assert applied.model.generation == before.generation + 1
    assert applied.model.etag != before.etag
    teach(client, "live")
    version = client.models.version("live", "latest")
    assert not version.gate_passed
    assert "99" in version.gate_reason
    with pytest.raises(FailedPrecondition):
        client.predict("live", tiny.images(1, 0))


def test_a_narrower_input_holds_for_learners_and_callers_from_then_on(
    server: RealServer, client: Client, backbone: Path
) -> None:
    server.declare(tiny.declaration(backbone, name="narrow"))
    teach(client, "narrow")
    image = {"size": 16, "resize": "squash", "interpolation": "bilinear", "mean": tiny.HALF, "std": tiny.HALF}
    client.models.apply(tiny.declaration(backbone, name="narrow", input={**image, "max_image_pixels": 400}))
    with pytest.raises(InvalidArgument):
        client.predict("narrow", tiny.images(1, 0, side=32))
    report = client.learn("narrow", [(tiny.images(1, 0, side=32), ["c0"])])
    assert report.rejected_batches == 1


def test_another_head_is_a_revision_solved_from_the_memory(server: RealServer, client: Client, backbone: Path) -> None:
    server.declare(tiny.declaration(backbone, name="revised"))
    for label in range(3):
        teach(client, "revised", label)
    before = client.models.version("revised", "latest")
    for kind in ("lda", "ncm", "ridge"):
        applied = client.models.apply(tiny.declaration(backbone, name="revised", head={"kind": kind}))
        assert changes(applied.plan) == {"spec.head.kind": "REVISION"}
        version = settled_version(client, "revised", lambda found, kind=kind: found.head == kind)
        assert version.number > before.number
        assert version.memory_digest == before.memory_digest, "nothing was learned again"
        answer = client.predict("revised", tiny.images(1, 2, seed=4))
        assert answer.top[0][0].label == "c2"
        before = version
    server.restart()
    assert client.models.version("revised", "stable").head == "ridge"


def test_a_revision_that_fails_the_gate_leaves_the_stable_version(
    server: RealServer, client: Client, backbone: Path
) -> None:
    server.declare(tiny.declaration(backbone, name="gated"))
    teach(client, "gated")
    stable = client.models.version("gated", "stable").number
    strict = tiny.declaration(backbone, name="gated", gate={"min_samples": 50}, head={"kind": "ncm"})
    client.models.apply(strict)
    settled_version(client, "gated", lambda found: found.head == "ncm")
    assert client.models.version("gated", "stable").number == stable
    server.restart()
    assert client.models.version("gated", "stable").number == stable
    assert client.models.version("gated", "latest").head == "ncm"


def test_replacing_needs_consent_and_the_old_version_serves_until_a_new_one_passes(
    server: RealServer, client: Client, backbone: Path, tmp_path: Path
) -> None:
    server.declare(tiny.declaration(backbone, name="replaced"))
    teach(client, "replaced", 1)
    old = client.models.get("replaced")
    other = tiny.declaration(tiny.write_backbone(tmp_path, dim=24), name="replaced", gate={"min_samples": 6})
    with pytest.raises(FailedPrecondition) as unasked:
        client.models.apply(other)
    assert unasked.value.reason == "NEEDS_CONSENT"
    assert unasked.value.field == "spec.backbone.source"
    assert "8 samples" in unasked.value.message
    assert client.models.get("replaced").etag == old.etag

    new = client.models.apply(other, allow_replace=True).model
    assert new is not None
    assert (new.generation, new.status.sample_count, new.status.feature_dim) == (old.generation + 1, 0, 24)
    assert list(new.status.labels) == []
    serving = client.predict("replaced", tiny.images(1, 1))
    assert serving.version.endswith(f"/{old.status.aliases['stable']}")
    teach(client, "replaced", 2, count=3)
    assert client.predict("replaced", tiny.images(1, 1)).version == serving.version, "the gate wants 6 samples"
    server.restart()
    assert client.predict("replaced", tiny.images(1, 1)).version == serving.version
    teach(client, "replaced", 2, count=3)
    assert client.predict("replaced", tiny.images(1, 2)).top[0][0].label == "c2"
    assert client.models.version("replaced", "stable").trunk_digest == new.status.trunk_digest
    client.models.delete("replaced")
    assert new.status.trunk_digest not in client.info().trunks


def test_tighter_retention_deletes_exports_at_once_and_looser_needs_consent(
    server: RealServer, client: Client, backbone: Path
) -> None:
    server.declare(tiny.declaration(backbone, name="lean", retention={"exports": 3}))
    sizes = []
    for label in range(3):
        teach(client, "lean", label)
        export = client.export("lean", "latest")
        sizes.append(export)
    plan = client.models.plan(tiny.declaration(backbone, name="lean", retention={"exports": 1}))
    assert any("2 of 3 exported files" in text for text in plan.deletions)
    applied = client.models.apply(tiny.declaration(backbone, name="lean", retention={"exports": 1}))
    assert changes(applied.plan) == {"spec.retention.exports": "RETENTION"}
    assert [export.name for export in client.exports("lean")] == [sizes[-1].name]
    blobs = {path.name for path in (server.folder / "blobs").rglob("*") if path.is_file()}
    for export in sizes[:-1]:
        assert not blobs & {file.sha256 for file in export.files}
    with pytest.raises(FailedPrecondition) as looser:
        client.models.apply(tiny.declaration(backbone, name="lean", retention={"exports": 2}))
    assert (looser.value.reason, looser.value.field) == ("NEEDS_CONSENT", "spec.retention.exports")
    client.models.apply(tiny.declaration(backbone, name="lean", retention={"exports": 2}), allow_loosen_retention=True)


def test_fewer_versions_are_kept_as_soon_as_that_is_declared(
    server: RealServer, client: Client, backbone: Path
) -> None:
    server.declare(tiny.declaration(backbone, name="pruned"))
    for label in range(4):
        teach(client, "pruned", label)
    assert len(list(client.models.versions("pruned"))) > 2
    client.models.apply(tiny.declaration(backbone, name="pruned", serving={"keep_versions": 2}))
    assert len(list(client.models.versions("pruned"))) == 2


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        ("spec: {backbone: {source: hf://timm/x, revison: main}}", "spec.backbone.revison", "revision"),
        ("spec: {backbone: {source: hf://timm/x}, heads: {}}", "spec.heads", "head"),
        ("spec: {backbone: {source: hf://timm/x}, head: {kind: ridgee}}", "spec.head.kind", "ridge"),
        ("spec: {backbone: {source: hf://timm/x}, retention: {raw: always}}", "spec.retention.raw", "never"),
        ("spec: {backbone: {source: 'hf://timm/x', loader: tim}}", "spec.backbone.loader", "timm"),
        ("spec: {}", "spec.backbone", ""),
        ("status: {}\nspec: {backbone: {source: hf://timm/x}}", "status", "written by the server"),
    ],
)
def test_a_wrong_declaration_names_the_path_and_the_nearest_key(stubs: Stubs, text: str, field: str, says: str) -> None:
    declaration = f"metadata: {{name: typo}}\n{text}"
    for call in (
        lambda: stubs.models.ApplyModel(pb.ApplyModelRequest(declaration=declaration)),
        lambda: stubs.models.PlanModel(pb.PlanModelRequest(declaration=declaration)),
        lambda: stubs.models.LockModel(pb.LockModelRequest(declaration=declaration)),
    ):
        refused(call, "INVALID_ARGUMENT", field=field, says=says)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "just words", "a: [", "{" * 5000, "[" * 200_000, "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "\x00"],
    ids=["empty", "list", "words", "unclosed", "nested", "deeply nested", "aliases", "control"],
)
def test_what_is_no_declaration_is_refused_without_harm(stubs: Stubs, client: Client, text: str) -> None:
    refused(lambda: stubs.models.PlanModel(pb.PlanModelRequest(declaration=text), timeout=120), "INVALID_ARGUMENT")
    assert client.info().version


def test_a_name_is_for_ever(client: Client, backbone: Path) -> None:
    for name in ("", "Upper", "a b", "../x", "x" * 64):
        with pytest.raises(InvalidArgument) as wrong:
            client.models.apply(tiny.declaration(backbone, name=name))
        assert wrong.value.field == "metadata.name"


def test_listing_is_paged_and_refuses_what_no_page_is(
    server: RealServer, stubs: Stubs, client: Client, backbone: Path
) -> None:
    for name in ("page-1", "page-2"):
        server.declare(tiny.declaration(backbone, name=name))
    names: list[str] = []
    token = ""
    while True:
        page = stubs.models.ListModels(pb.ListModelsRequest(page_size=1, page_token=token))
        assert len(page.models) == 1
        names += [model.name for model in page.models]
        if not (token := page.next_page_token):
            break
    assert names == sorted(names) == [model.name for model in client.models.list()]
    listings = (
        lambda **page: stubs.models.ListModels(pb.ListModelsRequest(**page)),
        lambda **page: stubs.models.ListVersions(pb.ListVersionsRequest(parent="models/page-1", **page)),
        lambda **page: stubs.operations.ListOperations(operations_proto_pb2.ListOperationsRequest(**page)),
    )
    for listing in listings:
        refused(lambda listing=listing: listing(page_size=-1), "INVALID_ARGUMENT", field="page_size")
        for token in ("garbage", "-1", "1e3", "\uff19", "9" * 400):
            refused(
                lambda listing=listing, token=token: listing(page_token=token), "INVALID_ARGUMENT", field="page_token"
            )
    assert stubs.models.ListModels(pb.ListModelsRequest(page_size=2**31 - 1)).models


def test_deleting_leaves_no_trace_but_the_shared_trunk(
    server: RealServer, stubs: Stubs, client: Client, backbone: Path
) -> None:
    label = "a-label-that-nobody-else-has"
    server.declare(tiny.declaration(backbone, name="deleted"))
    client.learn("deleted", [(tiny.images(8, 0), [label] * 8)], client_id="a-learner-that-nobody-else-has")
    export = client.export("deleted")
    before = _operations(stubs)
    with pytest.raises(Conflict):
        client.models.delete("deleted", etag="stale")
    client.models.delete("deleted", etag=client.models.get("deleted").etag)
    with pytest.raises(NotFound):
        client.models.get("deleted")
    with pytest.raises(NotFound):
        client.predict("deleted", tiny.images(1, 0))
    assert len(_operations(stubs)) == len(before) - 2, "its operations are gone and do not spoil the list"
    server.restart()
    assert "models/deleted" not in [model.name for model in client.models.list()]
    files = [path for path in server.folder.rglob("*") if path.is_file()]
    digests = {file.sha256 for file in export.files}
    assert not digests & {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        assert label.encode() not in content, path
        assert b"a-learner-that-nobody-else-has" not in content, path


def test_a_deleted_name_begins_anew(server: RealServer, client: Client, backbone: Path) -> None:
    text = tiny.declaration(backbone, name="again")
    server.declare(text)
    teach(client, "again")
    client.models.delete("again")
    anew = server.declare(text)
    assert (anew.generation, anew.status.sample_count, list(anew.status.labels)) == (1, 0, [])
    assert client.learn("again", [(tiny.images(1, 0), ["x"])]).durable_sequence == 1


def _operations(stubs: Stubs) -> list[Any]:
    return list(stubs.operations.ListOperations(operations_proto_pb2.ListOperationsRequest()).operations)
