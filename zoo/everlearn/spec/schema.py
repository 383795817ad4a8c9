"""The JSON Schema of a declaration, for editors: completion, documentation on hover, typos underlined."""

from __future__ import annotations

from typing import Any

from everlearn.spec.fields import UNDECLARED
from everlearn.spec.model import Model


def json_schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12, of what `parse` takes.

    Rules between fields (a folder has no revision, ...) are not in it: the server tells those.
    """
    body = Model.model_json_schema()
    for name in UNDECLARED:
        body["properties"].pop(name)
    declared = body["$defs"]["ModelSpec"]["properties"]
    whole = declared["unknown"]
    # `unknown: abstain` is short for a mapping with that kind.
    told = {"description": whole.pop("description")}
    declared["unknown"] = {"anyOf": [{"enum": ["answer", "abstain"]}, whole], **told}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:everlearn:v1:Model",
        **body,
        "title": "everlearn model",
    }
