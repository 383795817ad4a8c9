"""Who calls, where the caller says so: a header beside the request, for methods whose message names no client."""

from __future__ import annotations

from typing import Final

from everlearn.errors import InvalidError
from everlearn.spec.model import NAME
from everlearn_server.rpc import names, wire

HEADER: Final = "everlearn-client"
FIELD: Final = f"metadata.{HEADER}"


def client_of(context: wire.Context) -> str:
    """The name that the caller gives itself; empty where it gives none. Nothing proves it.

    Raises InvalidError for what is no name, and for two of them.
    """
    given = [value for key, value in context.invocation_metadata() or () if key == HEADER]
    if not given:
        return ""
    if len(given) > 1:
        raise InvalidError(f"given {len(given)} times; give the client's name once, or leave it out", field=FIELD)
    name = given[0] if isinstance(given[0], str) else ""
    if not names.NAME_PATTERN.fullmatch(name):
        raise InvalidError(names.unlike(name, NAME), field=FIELD)
    return name
