"""Resource names (AIP-122): `models/{model}`, `models/{model}/versions/{version}`; learners' ids, names of steps."""

from __future__ import annotations

import re

from everlearn_client.errors import InvalidArgument

_PART = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def model_name(model: str) -> str:
    """`digits` or `models/digits` -> `models/digits`. Raises InvalidArgument for anything else.

    >>> model_name("digits")
    'models/digits'
    """
    part = model.removeprefix("models/")
    if not _PART.fullmatch(part):
        raise InvalidArgument(
            f"{model!r} is not a model's name: lower-case letters, digits, '.', '_', '-', at most 63", field="model"
        )
    return f"models/{part}"


def version_name(model: str, version: str | int) -> str:
    """Name of a version: a number, `stable`, `latest` or `canary`. Raises InvalidArgument.

    >>> version_name("digits", 3)
    'models/digits/versions/3'
    """
    if str(version) not in ("stable", "latest", "canary") and not (str(version).isdecimal() and int(version) > 0):
        raise InvalidArgument(
            f"{version!r} is not a version: a number from 1, 'stable', 'latest' or 'canary'", field="version"
        )
    return f"{model_name(model)}/versions/{version}"


def learner_name(client_id: str) -> str:
    """Checks a learner's identity. Raises InvalidArgument."""
    if not _PART.fullmatch(client_id):
        raise InvalidArgument(
            f"{client_id!r} is not a learner's id: lower-case letters, digits, '.', '_', '-', at most 63",
            field="client_id",
        )
    return client_id


def step_name(step: str) -> str:
    """Checks the name of a step; empty for none. Raises InvalidArgument."""
    if not isinstance(step, str) or (step and not _PART.fullmatch(step)):
        raise InvalidArgument(
            f"{step!r} is not a step's name: lower-case letters, digits, '.', '_', '-', at most 63", field="step"
        )
    return step
