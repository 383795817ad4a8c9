"""What every hub must do. A new file in everlearn/hubs is picked up by itself, and fails here until it has a case."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.local_hub import LITE0_PATH, LITE0_SHA256, LITE0_WHEEL, LocalHub, lite0_pth

import everlearn.hubs
from everlearn import plugins
from everlearn.errors import (
    ForbiddenFileError,
    HubError,
    IntegrityError,
    MovingReferenceError,
    SourceNotFoundError,
    SpecError,
)
from everlearn.hubs import hub_for
from everlearn.hubs.base import Hub, HubSettings
from everlearn.spec.model import Backbone

FILELESS = {"identity": "identity", "mlp": "mlp:8x4"}
"""Hubs without files, and what they take: a test of their own says what they must do."""
KINDS = [kind for kind in plugins.kinds(everlearn.hubs) if kind not in FILELESS]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One hub that holds the real weights, and ways to ask it for something else."""

    settings: HubSettings
    pinned: Backbone
    missing: Backbone
    moving: Backbone | None
    """None where a source has no revisions."""
    unpinned: Backbone
    name: str
    requests: Callable[[], int] = lambda: 0


def torch_file(**fields: str | None) -> Backbone:
    return Backbone(source="folder:/x.pth", format="torch", sha256=LITE0_SHA256).model_copy(update=fields)


@pytest.fixture
def case(kind: str, tmp_path: Path) -> Iterator[Case]:
    cache = tmp_path / "cache"
    if kind == "folder":
        path = tmp_path / "lite0.pth"
        path.write_bytes(lite0_pth())
        source = f"folder:{path}"
        yield Case(
            settings=HubSettings(cache=cache),
            pinned=torch_file(source=source),
            missing=torch_file(source=f"folder:{tmp_path}/lite1.pth"),
            moving=None,
            unpinned=torch_file(source=source, sha256=None),
            name="lite0.pth",
        )
    elif kind == "wheel":
        source = f"wheel://{LITE0_WHEEL}/{LITE0_PATH}"
        version = importlib.metadata.version(LITE0_WHEEL)
        yield Case(
            settings=HubSettings(cache=cache),
            pinned=torch_file(source=source, revision=version),
            missing=torch_file(source=source.replace("lite0-5", "lite1-5"), revision=version),
            moving=torch_file(source=source, revision=None),
            unpinned=torch_file(source=source, revision=version, sha256=None),
            name=LITE0_PATH,
        )
    elif kind == "huggingface":
        with LocalHub() as hub:
            commit = hub.add_repo("timm/lite0", {"lite0.pth": lite0_pth(), "config.json": b"{}"})
            source = "hf://timm/lite0"
            yield Case(
                settings=HubSettings(cache=cache, endpoint=hub.url),
                pinned=torch_file(source=source, revision=commit, file="lite0.pth"),
                missing=torch_file(source=source, revision=commit, file="lite1.pth"),
                moving=torch_file(source=source, revision="main", file="lite0.pth"),
                unpinned=torch_file(source=source, revision=commit, file="lite0.pth", sha256=None),
                name="lite0.pth",
                requests=lambda: len(hub.requests),
            )
    else:
        pytest.fail(f"the hub {kind!r} has no case here yet: give it one that holds the real weights")


def quiet(done: int, total: int) -> None:
    assert 0 <= done <= total


@pytest.mark.parametrize("kind", KINDS)
def test_a_pinned_fetch_hands_over_the_verified_bytes(case: Case) -> None:
    hub = hub_for(case.pinned, case.settings)
    steps: list[tuple[int, int]] = []
    files = hub.fetch(case.pinned, lambda done, total: steps.append((done, total)))
    assert files.source == case.pinned.source
    assert files.paths.keys() == files.sha256.keys()
    assert files.sha256[case.name] == LITE0_SHA256
    for name, path in files.paths.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == files.sha256[name]
    assert steps[-1][0] == steps[-1][1] > 0
    assert all(done <= total for done, total in steps)


@pytest.mark.parametrize("kind", KINDS)
def test_resolve_tells_what_fetch_will_bring_and_whether_it_is_here(case: Case) -> None:
    hub = hub_for(case.pinned, case.settings)
    resolved = hub.resolve(case.pinned)
    files = hub.fetch(case.pinned, quiet)
    assert resolved.revision == files.revision
    assert {file.name for file in resolved.files} == files.paths.keys()
    told = {file.name: file for file in resolved.files}[case.name]
    assert (told.sha256, told.size_bytes) == (LITE0_SHA256, files.paths[case.name].stat().st_size)
    assert resolved.lock()[case.name] == LITE0_SHA256
    before = case.requests()
    assert all(file.cached for file in hub.resolve(case.pinned).files)
    assert hub.fetch(case.pinned, quiet) == files
    assert case.requests() == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_moving_reference_resolves_to_what_is_pinned(case: Case) -> None:
    if case.moving is None:
        assert hub_for(case.pinned, case.settings).resolve(case.pinned).revision == ""
        return
    hub = hub_for(case.moving, case.settings)
    assert hub.resolve(case.moving).revision == case.pinned.revision
    with pytest.raises(MovingReferenceError) as caught:
        hub.fetch(case.moving, quiet)
    assert caught.value.field == "spec.backbone.revision"


@pytest.mark.parametrize("kind", KINDS)
def test_another_digest_is_refused(case: Case) -> None:
    wrong = case.pinned.model_copy(update={"sha256": LITE0_SHA256[::-1]})
    with pytest.raises(IntegrityError) as caught:
        hub_for(wrong, case.settings).fetch(wrong, quiet)
    assert caught.value.field == "spec.backbone.sha256"
    assert LITE0_SHA256 in caught.value.message


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_there_is_named(case: Case) -> None:
    hub = hub_for(case.missing, case.settings)
    for ask in (hub.resolve, lambda backbone: hub.fetch(backbone, quiet)):
        with pytest.raises(SourceNotFoundError) as caught:
            ask(case.missing)
        assert "lite1" in caught.value.message


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_without_a_pin_or_under_another_format_is_refused(case: Case) -> None:
    hub = hub_for(case.pinned, case.settings)
    with pytest.raises(ForbiddenFileError, match="sha256"):
        hub.fetch(case.unpinned, quiet)
    with pytest.raises(ForbiddenFileError, match="pickle"):
        hub.fetch(case.pinned.model_copy(update={"format": "safetensors"}), quiet)


@pytest.mark.parametrize("kind", KINDS)
def test_each_scheme_leads_to_its_hub(kind: str, tmp_path: Path) -> None:
    found = plugins.load(everlearn.hubs, kind, Hub, field="x")
    backbone = torch_file(source=f"{found.scheme}://a/b.pth")
    assert type(hub_for(backbone, HubSettings(cache=tmp_path))) is found


@pytest.mark.parametrize("kind", FILELESS)
def test_a_hub_without_files_has_nothing_to_bring_and_takes_nothing_else(tmp_path: Path, kind: str) -> None:
    backbone = Backbone(source=FILELESS[kind])
    hub = hub_for(backbone, HubSettings(cache=tmp_path))
    assert (hub.resolve(backbone).files, hub.resolve(backbone).lock()) == ((), {"revision": ""})
    assert hub.fetch(backbone, quiet).paths == {}
    other = backbone.model_copy(update={"source": f"{kind}:/etc/passwd"})
    for ask in (hub.resolve, lambda backbone: hub.fetch(backbone, quiet)):
        with pytest.raises(SpecError, match=r"write source: identity|such as mlp:64"):
            ask(other)


def test_an_unknown_scheme_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"'https' sources; known: folder:, hf:, identity:, mlp:, wheel:") as caught:
        hub_for(torch_file(source="https://example.org/x.pth"), HubSettings(cache=tmp_path))
    assert caught.value.field == "spec.backbone.source"


@pytest.mark.parametrize("kind", KINDS)
def test_refusals_are_json_safe_and_say_where(case: Case) -> None:
    hub = hub_for(case.pinned, case.settings)
    for backbone in (case.missing, case.unpinned):
        with pytest.raises(HubError) as caught:
            hub.fetch(backbone, quiet)
        assert json.dumps(caught.value.message)
        assert caught.value.field.startswith("spec.backbone.")
