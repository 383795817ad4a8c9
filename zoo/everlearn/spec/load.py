"""Text <-> Model. `parse` refuses everything it does not know; `dump` writes what `parse` reads back the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import ValidationError

from everlearn.errors import SpecError
from everlearn.spec import document as documents
from everlearn.spec.model import Model
from everlearn.spec.problems import Problem, explain, odd_numbers

MAX_PROBLEMS = 20
"""Named in one error; a text that is something else entirely has thousands."""

_STATUS = "is written by the server and never declared; remove it"


def parse(text: str) -> Model:
    """Reads a declaration from YAML (1.1) or JSON text.

    Raises SpecError with every problem on a line of its own, each with the path of its field:

    >>> parse("metadata: {name: shelf}\\nspec: {backbone: {source: hf://timm/x, revison: main}}")
    Traceback (most recent call last):
    everlearn.errors.SpecError: spec.backbone.revison: unknown key; did you mean 'revision'? (line 2)
    """
    document = documents.read(text)
    if not isinstance(document.data, dict):
        form = (
            "empty" if document.data is None else f"a {'list' if isinstance(document.data, tuple) else 'single value'}"
        )
        raise SpecError(f"the declaration is {form}; it must be a mapping with the keys metadata and spec")
    problems = list(document.problems)
    data = dict(document.data)
    if "status" in data:
        problems.append(("status", _STATUS))
        del data["status"]
    model: Model | None = None
    try:
        model = Model.model_validate(data)
    except ValidationError as error:
        known = {path for path, _ in problems}
        problems += [problem for problem in explain(error, document) if problem[0] not in known]
    problems += odd_numbers(document, (path for path, _ in problems))
    if model is None or problems:
        raise _error(problems)
    return model


def revalidate(data: Mapping[str, Any]) -> Model:
    """A Model of Python data (tuples, not lists), such as `model.model_dump()` after an edit.

    Raises SpecError as `parse` does.
    """
    try:
        return Model.model_validate(data)
    except ValidationError as error:
        raise _error(explain(error, documents.Document())) from None


def _error(problems: Sequence[Problem]) -> SpecError:
    lines = [f"{path}: {message}" if path else message for path, message in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        lines.append(f"and {len(problems) - MAX_PROBLEMS} more")
    return SpecError("\n".join(lines), field=problems[0][0], problems=tuple(problems))


def dump(model: Model, status: Mapping[str, object] | None = None) -> str:
    """Readable YAML in the order of declaration, without the fields that are None; `parse(dump(m)) == m`.

    `status`, where given, is written last, for people to read: such a text is an answer and not a declaration.
    """
    data = model.model_dump(mode="json", exclude={"status"}, exclude_none=True)
    if status is not None:
        data["status"] = dict(status)
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))


def scalar(value: object) -> str:
    """One value as a YAML scalar or flow collection on one line; empty for None.

    >>> scalar(("a", "no", 1))
    "[a, 'no', 1]"
    """
    if value is None:
        return ""
    text = str(yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=2**30))
    return text.removesuffix("\n").removesuffix("\n...")


class _Dumper(yaml.SafeDumper):
    """Lists of scalars on one line, as people write them; tuples are lists; no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def flow_list(self, data: Sequence[object]) -> yaml.Node:
        flat = not any(isinstance(item, list | tuple | dict) for item in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flat)

    def escaped_text(self, data: str) -> yaml.Node:
        # PyYAML quotes U+0085 and its like singly, and then reads a line break.
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.escaped_text)
_Dumper.add_representer(list, _Dumper.flow_list)
_Dumper.add_representer(tuple, _Dumper.flow_list)
