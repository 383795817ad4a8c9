"""The JSON Schema that editors get."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from everlearn.spec.schema import json_schema


def every_schema(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        yield part
        for below in part.values():
            yield from every_schema(below)
    elif isinstance(part, list):
        for below in part:
            yield from every_schema(below)


def test_it_names_its_draft_and_itself_without_a_host() -> None:
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"].startswith("urn:")
    assert json.loads(json.dumps(schema)) == schema


def test_every_object_is_closed_and_every_field_is_documented() -> None:
    schema = json_schema()
    objects = [part for part in every_schema(schema) if "properties" in part]
    assert len(objects) == 29
    for part in objects:
        assert part["additionalProperties"] is False
        for name, field in part["properties"].items():
            section = schema["$defs"][field["$ref"].removeprefix("#/$defs/")] if "$ref" in field else {}
            assert field.get("description") or section.get("description"), name


def test_every_reference_leads_somewhere() -> None:
    schema = json_schema()
    references = {part["$ref"] for part in every_schema(schema) if isinstance(part.get("$ref"), str)}
    assert references
    assert all(reference.removeprefix("#/$defs/") in schema["$defs"] for reference in references)


def test_status_is_not_offered_because_it_is_not_declared() -> None:
    assert set(json_schema()["properties"]) == {"apiVersion", "kind", "metadata", "spec"}
    assert json_schema()["required"] == ["metadata", "spec"]


def test_limits_and_choices_reach_the_editor() -> None:
    definitions = json_schema()["$defs"]
    size = definitions["Input"]["properties"]["size"]["anyOf"]
    assert {"maximum": 1024, "minimum": 16, "type": "integer"} in size
    assert definitions["Backbone"]["properties"]["format"]["enum"] == ["safetensors", "onnx", "torch"]
    assert definitions["Metadata"]["properties"]["name"]["pattern"]


def test_the_short_form_of_unknown_is_no_typo() -> None:
    declared = json_schema()["$defs"]["ModelSpec"]["properties"]["unknown"]
    assert declared["anyOf"] == [{"enum": ["answer", "abstain"]}, {"$ref": "#/$defs/Unknown"}]
    assert declared["description"]
