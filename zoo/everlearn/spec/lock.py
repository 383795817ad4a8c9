"""Pins a declaration to what its source means now, and refuses one that is not pinned."""

from __future__ import annotations

import functools
import hashlib
import json
import operator
from collections.abc import Mapping
from typing import Any, Final

import yaml

from everlearn.errors import IntegrityError, MovingReferenceError, SpecError
from everlearn.spec import rules
from everlearn.spec.document import compose
from everlearn.spec.load import dump, parse, revalidate, scalar
from everlearn.spec.model import Backbone, Model

OWN: Final = "spec.backbone"
STUDENT: Final = "spec.distill_to.backbone"
"""Where a declaration names a backbone."""


def sides_digest(sha256: Mapping[str, str]) -> str:
    """One sha256 over names and digests of the files that lie beside a backbone's weights."""
    return hashlib.sha256(json.dumps(dict(sorted(sha256.items()))).encode()).hexdigest()


def sides_pin(backbone: Backbone, sha256: Mapping[str, str]) -> str | None:
    """The digest to pin of a source's files beside the weights; None where something else pins them, or none count."""
    sides = {name: digest for name, digest in sha256.items() if name.endswith(".json")}
    local = rules.scheme(backbone.source) in ("wheel", "folder")
    return sides_digest(sides) if local and sides and backbone.loader == rules.TRANSFORMERS else None


def is_pinned(backbone: Backbone) -> bool:
    """Whether the revision can never mean anything else: a full commit, an exact version, a folder, or no file."""
    kind, revision = rules.scheme(backbone.source), backbone.revision or ""
    if kind == "hf":
        return rules.COMMIT.fullmatch(revision) is not None
    return kind in ("folder", rules.IDENTITY, rules.MLP) or revision != ""


def require_pinned(model: Model) -> None:
    """Raises MovingReferenceError for hf without a full commit, SpecError for a wheel or folder that is not pinned."""
    for at, backbone in backbones(model).items():
        _require(backbone, at)


def backbones(model: Model) -> dict[str, Backbone]:
    """What a declaration pins, by the field where it stands: the model's own backbone, and its student's."""
    found = {OWN: model.spec.backbone}
    if model.spec.distill_to is not None:
        found[STUDENT] = model.spec.distill_to.backbone
    return found


def _require(backbone: Backbone, at: str) -> None:
    kind, how = rules.scheme(backbone.source), "run `everlearn lock` to write"
    if kind == "hf" and not is_pinned(backbone):
        named = (
            f"{backbone.revision!r} is a branch, a tag or half a commit" if backbone.revision else "no commit is given"
        )
        raise MovingReferenceError(
            f"{named}, and that can mean other files tomorrow; {how} the 40-hex commit", field=f"{at}.revision"
        )
    if not is_pinned(backbone):
        raise SpecError(f"a wheel needs its exact version; {how} it", field=f"{at}.revision")
    has_file = kind not in (rules.IDENTITY, rules.MLP)
    if backbone.sha256 is None and has_file and (kind != "hf" or backbone.format == "torch"):
        raise SpecError(f"the weights of a {kind} source need their sha256; {how} it", field=f"{at}.sha256")
    if backbone.loader == rules.TRANSFORMERS and kind != "hf" and backbone.sides_sha256 is None:
        raise SpecError(
            f"the files beside the weights of a {kind} source need a digest too; {how} it", field=f"{at}.sides_sha256"
        )


def pin(
    model: Model, *, revision: str, sha256: str | None = None, sides_sha256: str | None = None, at: str = OWN
) -> Model:
    """The declaration with what the hub resolved: commit or version (empty for a folder) and the files' digests.

    `at`: of which of its `backbones`. Raises IntegrityError where the declaration already pins something else.
    """
    backbone = backbones(model)[at]
    if revision and is_pinned(backbone) and backbone.revision != revision:
        raise IntegrityError(
            f"pinned to {backbone.revision}, but the source is at {revision}; delete the line to take that",
            field=f"{at}.revision",
        )
    for name, found in (("sha256", sha256), ("sides_sha256", sides_sha256)):
        pinned = getattr(backbone, name)
        if found and pinned and pinned != found:
            raise IntegrityError(
                f"pinned to {pinned}, but the file is {found}; delete the line to take that",
                field=f"{at}.{name}",
            )
    data = model.model_dump()
    _mapping(data, at).update(_pins(revision, sha256, sides_sha256))
    return revalidate(data)


def pin_text(
    text: str, *, revision: str, sha256: str | None = None, sides_sha256: str | None = None, at: str = OWN
) -> str:
    """The same declaration pinned as by `pin`, with the user's comments and layout kept wherever that is possible.

    Raises SpecError as `parse` does, IntegrityError as `pin` does.
    """
    model = parse(text)
    pinned = pin(model, revision=revision, sha256=sha256, sides_sha256=sides_sha256, at=at)
    if pinned == model:
        return text
    pins = _pins(revision, sha256, sides_sha256)
    for edited in (_edit_json(text, at, pins), _edit_yaml(text, at, pins)):
        if edited is not None and _means(edited, pinned):
            return edited
    return dump(pinned)


def _pins(revision: str, sha256: str | None, sides_sha256: str | None) -> dict[str, str]:
    pins = {"revision": revision, "sha256": sha256, "sides_sha256": sides_sha256}
    return {name: value for name, value in pins.items() if value}


def _mapping(data: Any, at: str) -> dict[str, Any]:
    found: dict[str, Any] = functools.reduce(operator.getitem, at.split("."), data)
    return found


def _means(text: str, model: Model) -> bool:
    try:
        return parse(text) == model
    except SpecError:
        return False


def _edit_json(text: str, at: str, pins: dict[str, str]) -> str | None:
    try:
        data: Any = json.loads(text)
    except ValueError:
        return None
    _mapping(data, at).update(pins)
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def _edit_yaml(text: str, at: str, pins: dict[str, str]) -> str | None:
    """Replaces or inserts the values where the parser says they stand; None if the backbone is no plain mapping."""
    backbone = functools.reduce(_child, at.split("."), compose(text))
    if not isinstance(backbone, yaml.MappingNode):
        return None
    edits: list[tuple[int, int, str]] = []
    entries = {key.value: (key, value) for key, value in backbone.value}
    for name, value in pins.items():
        if name in entries:
            old = entries[name][1]
            gap = "" if old.end_mark.index > old.start_mark.index else " "
            edits.append((old.start_mark.index, old.end_mark.index, gap + scalar(value)))
        else:
            edits.append(_insertion(text, backbone, name, value))
    # Python's sort is stable, and from the end no edit moves another's place.
    for start, end, new in sorted(edits, key=lambda edit: edit[0], reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _insertion(text: str, backbone: yaml.MappingNode, name: str, value: str) -> tuple[int, int, str]:
    """Behind the source: on a line of its own in a block mapping, after a comma in a flow mapping."""
    key, source = next(entry for entry in backbone.value if entry[0].value == "source")
    if backbone.flow_style:
        return source.end_mark.index, source.end_mark.index, f", {name}: {scalar(value)}"
    line_end = text.find("\n", source.end_mark.index)
    line_end = len(text) if line_end < 0 else line_end
    return line_end, line_end, f"\n{' ' * key.start_mark.column}{name}: {scalar(value)}"


def _child(node: yaml.Node | None, name: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for key, value in node.value if key.value == name), None)
