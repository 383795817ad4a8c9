"""Finds plug-ins by file name: kind `lda` of folder `heads` is the one subclass of its base in `heads/lda.py`.

No registry, no decorator, no list to edit: a new file is a new kind, and the contract tests pick it up by themselves.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from types import ModuleType
from typing import TypeVar

from everlearn.errors import SpecError

T = TypeVar("T")


def kinds(package: ModuleType) -> list[str]:
    """Names of the plug-ins in a folder, sorted. Imports none of them.

    Every module but `base`, private ones, and those that the package's NOT_KINDS names as shared by its plug-ins.
    """
    shared = {"base", *getattr(package, "NOT_KINDS", ())}
    names = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in names if name not in shared and not name.startswith("_"))


def load(package: ModuleType, kind: str, base: type[T], *, field: str) -> type[T]:
    """The class that implements `kind`.

    Raises SpecError, naming `field` and the known kinds, if there is none.
    """
    known = kinds(package)
    if kind not in known:
        raise SpecError(f"unknown kind {kind!r}; known: {', '.join(known)}", field=field)
    module = importlib.import_module(f"{package.__name__}.{kind}")
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define exactly one {base.__name__}, found {len(found)}")
    return found[0]
