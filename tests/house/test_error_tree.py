"""The tree of errors is drawn as it is, and each error has a status and survives a process boundary."""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil
import re

import grpc
import pytest

import everlearn
import everlearn_server
from everlearn import errors
from everlearn.errors import EverlearnError
from everlearn_server.errors import STATUS_OF, status_of


def _kinds(base: type[EverlearnError] = EverlearnError) -> list[type[EverlearnError]]:
    return [base, *(each for derived in base.__subclasses__() for each in _kinds(derived))]


def _made(kind: type[EverlearnError]) -> EverlearnError:
    """An instance with a value for each argument that the kind demands."""
    demanded = [
        name
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
    ]
    return kind("what was wrong; what would be right", field="spec.head", **dict.fromkeys(demanded, 3))


def _drawn() -> dict[str, str]:
    """Error -> its parent, as the module's docstring draws them."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        drawn = re.match(r"^( {4}[| ]*)(\+-- )?(\w+Error)\b", line)
        if drawn:
            depth = (len(drawn[1]) - 4) // 4 + bool(drawn[2])
            path[depth:] = [drawn[3]]
            parents[drawn[3]] = path[depth - 1] if depth else ""
    return parents


def test_the_drawing_is_the_tree() -> None:
    actual = {kind.__name__: kind.__base__.__name__ for kind in _kinds()}  # type: ignore[union-attr]  # all have one
    assert _drawn() == {**actual, "EverlearnError": ""}


def test_all_errors_live_in_one_file() -> None:
    for package in (everlearn, everlearn_server):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if ".migrations." not in found.name:  # alembic runs its scripts itself
                importlib.import_module(found.name)
    assert {kind.__module__ for kind in _kinds()} == {"everlearn.errors"}


@pytest.mark.parametrize("kind", [kind for kind in _kinds() if kind is not EverlearnError])
def test_each_error_has_a_status_of_its_own(kind: type[EverlearnError]) -> None:
    row = next(listed for listed, _ in STATUS_OF if issubclass(kind, listed))
    assert row is not EverlearnError
    assert status_of(_made(kind)) is not grpc.StatusCode.INTERNAL


def test_no_row_of_the_status_table_is_hidden_by_one_above() -> None:
    listed = [kind for kind, _ in STATUS_OF]
    hidden = [(below, above) for n, below in enumerate(listed) for above in listed[:n] if issubclass(below, above)]
    assert hidden == []


def test_what_nobody_raised_on_purpose_is_internal() -> None:
    assert status_of(ValueError("oops")) is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("kind", _kinds())
def test_each_error_pickles(kind: type[EverlearnError]) -> None:
    error = _made(kind)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    assert again.field == "spec.head"
