"""What the house's tests look for in source code. Each rule is a function from a syntax tree to offending lines."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("zoo/everlearn", "server/everlearn_server", "clients/python/everlearn_client", "protos/everlearn_protos")

Rule = Callable[[ast.Module], Iterator[int]]

_CODE_CARRIERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
_ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv"}


def tracked_files() -> list[Path]:
    """Every file of the repository and those about to join it."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout.decode()
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def python_files(*, tests: bool = False) -> list[Path]:
    """Our own Python, without what a generator wrote."""
    tops = tuple(f"{ROOT / package}/" for package in PACKAGES)
    return [
        path
        for path in tracked_files()
        if path.suffix == ".py" and "_pb2" not in path.name and (tests or str(path).startswith(tops))
    ]


def offences(rule: Rule, files: list[Path]) -> list[str]:
    """`path:line` of each offence."""
    return [
        f"{path.relative_to(ROOT)}:{line}"
        for path in files
        for line in rule(ast.parse(path.read_text("utf-8"), str(path)))
    ]


def carries_code(tree: ast.Module) -> Iterator[int]:
    """Modules and calls through which data can become running code."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found = any(alias.name.split(".")[0] in _CODE_CARRIERS for alias in names)
            case ast.ImportFrom(module=str(module)):
                found = module.split(".")[0] in _CODE_CARRIERS
            case ast.Call():
                found = _call_carries_code(node)
            case _:
                found = False
        if found:
            yield node.lineno


def _call_carries_code(call: ast.Call) -> bool:
    options = {word.arg: word.value for word in call.keywords}
    name = ast.unparse(call.func)
    if name in ("eval", "exec", "__import__"):
        return True
    if name in ("torch.load", "torch.jit.load", "torch.hub.load") and not _is(options.get("weights_only"), True):
        return True
    # Anything but a literal False might be True.
    return any(word in options and not _is(options[word], False) for word in ("allow_pickle", "trust_remote_code"))


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def reads_environment(tree: ast.Module) -> Iterator[int]:
    """`os.environ` and its kin. A statement `os.environ.setdefault(...)` reads nothing: it tells another library."""
    told = [
        node.value.func.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and node.value.func.attr == "setdefault"
    ]
    for node in ast.walk(tree):
        match node:
            case _ if node in told:
                continue
            case ast.Attribute(value=ast.Name(id="os"), attr=name) if name in _ENVIRONMENT:
                yield node.lineno
            case ast.ImportFrom(module="os", names=names) if any(alias.name in _ENVIRONMENT for alias in names):
                yield node.lineno


def prints(tree: ast.Module) -> Iterator[int]:
    """Calls of `print`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield node.lineno


def long_functions(tree: ast.Module, *, limit: int) -> Iterator[int]:
    """Functions of more than `limit` lines, their docstring counted."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if (node.end_lineno or node.lineno) - node.lineno + 1 > limit:
            yield node.lineno


def undocumented(tree: ast.Module) -> Iterator[int]:
    """Public modules, classes, functions and methods without a docstring."""
    if tree.body and not ast.get_docstring(tree):
        yield 1
    yield from _undocumented_in(tree.body)


def _undocumented_in(body: list[ast.stmt]) -> Iterator[int]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node) and not _is_variant(node):
            yield node.lineno
        if isinstance(node, ast.ClassDef):
            yield from _undocumented_in(node.body)


def _is_variant(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    # An overload, a setter and an override are documented where they come from.
    names = {ast.unparse(each).rsplit(".", 1)[-1] for each in node.decorator_list}
    return bool(names & {"overload", "setter", "override"})
