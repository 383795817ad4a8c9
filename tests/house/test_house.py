"""Sentences about the house, each with a check. A rule that finds nothing is shown to find something, too."""

from __future__ import annotations

import ast
import doctest
import functools
import importlib
import importlib.util
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.house import rules
from tests.house.rules import ROOT

import everlearn

CONTROLS = [
    (rules.carries_code, "import pickle"),
    (rules.carries_code, "from joblib import load"),
    (rules.carries_code, "torch.load(path)"),
    (rules.carries_code, "torch.load(path, weights_only=False)"),
    (rules.carries_code, "np.load(path, allow_pickle=True)"),
    (rules.carries_code, "np.load(path, allow_pickle=wanted)"),
    (rules.carries_code, "AutoModel.from_pretrained(name, trust_remote_code=True)"),
    (rules.carries_code, "def f():\n  return eval(text)"),
    (rules.reads_environment, "import os\nos.environ['HOME']"),
    (rules.reads_environment, "import os\nos.getenv('HOME')"),
    (rules.reads_environment, "from os import environ"),
    (rules.reads_environment, "import os\nhome = os.environ.setdefault('HOME', '/')"),
    (rules.prints, "print('x')"),
    (rules.undocumented, "'''Doc.'''\ndef f(): ..."),
    (rules.undocumented, "'''Doc.'''\nclass A:\n  '''Doc.'''\n  def f(self): ..."),
    (functools.partial(rules.long_functions, limit=2), "def f():\n  a = 1\n  return a"),
]
HARMLESS = [
    (rules.carries_code, "torch.load(path, weights_only=True); np.load(path, allow_pickle=False); model.eval()"),
    (rules.reads_environment, "settings.environ"),
    (rules.reads_environment, "import os\nos.environ.setdefault('A_LIBRARYS_OWN', '1')"),
    (rules.prints, "console.print('x')"),
    (functools.partial(rules.long_functions, limit=2), "def f():\n  return 1"),
]
# Commands talk to people and read the environment; settings read it for the service.
_SPEAKS = re.compile(r"/(cli|command|settings)(\.py$|/)|/__main__\.py$")
_TORCH_FREE = """
import importlib, pkgutil, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm"):
            raise ModuleNotFoundError(f"No module named {name!r} (as in an installation without torch)", name=name)

sys.meta_path.insert(0, Refuse())
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), name + "."):
        # alembic runs its scripts itself.
        if ".migrations." not in found.name:
            importlib.import_module(found.name)
assert not {"torch", "timm"} & sys.modules.keys()
"""


def _libraries() -> list[Path]:
    return [path for path in rules.python_files() if not _SPEAKS.search(str(path))]


@pytest.mark.parametrize(("rule", "source"), CONTROLS)
def test_each_rule_finds_what_it_looks_for(rule: rules.Rule, source: str) -> None:
    assert list(rule(ast.parse(source)))


@pytest.mark.parametrize(("rule", "source"), HARMLESS)
def test_no_rule_finds_what_is_harmless(rule: rules.Rule, source: str) -> None:
    assert not list(rule(ast.parse(source)))


def test_no_data_can_become_running_code() -> None:
    assert rules.offences(rules.carries_code, rules.python_files()) == []


def test_the_environment_is_read_in_settings_and_commands_only() -> None:
    assert rules.offences(rules.reads_environment, _libraries()) == []


def test_libraries_do_not_print() -> None:
    assert rules.offences(rules.prints, _libraries()) == []


def test_everything_public_says_what_it_is_for() -> None:
    assert rules.offences(rules.undocumented, rules.python_files()) == []


def test_no_file_is_longer_than_400_lines() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in rules.python_files(tests=True)
        if (lines := len(path.read_text("utf-8").splitlines())) > 400
    }
    assert long == {}


def test_no_function_is_longer_than_60_lines() -> None:
    rule = functools.partial(rules.long_functions, limit=60)
    # A migration is a list of tables, frozen once it has run anywhere.
    files = [path for path in rules.python_files(tests=True) if "migrations" not in path.parts]
    assert rules.offences(rule, files) == []


def test_no_file_names_this_machine_or_an_index_of_packages() -> None:
    # Put together here, or this file would be the first offender.
    folders = "|".join(["work", "root", "opt/py" + "pi", "tmp/w"])
    found = re.compile(rf"py[p]i\.org/simple|files\.pythonhosted|(?<![\w./*-])/({folders})/")
    assert found.search("cd /" + "root/x")
    offenders = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in rules.tracked_files()
        for number, line in enumerate(path.read_bytes().decode("utf-8", "replace").splitlines(), 1)
        if found.search(line)
    ]
    assert offenders == []


def test_imports_point_one_way() -> None:
    command = Path(sys.executable).with_name("lint-imports")
    linted = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_generated_code_is_what_the_pinned_generator_writes() -> None:
    python = _generator()
    if python is None:
        assert "CI" not in os.environ, (
            "CI must check the generated code: `make protos` makes the generator's environment"
        )
        pytest.skip("the generator is not installed here; `make protos` installs it")
    checked = subprocess.run([python, "protos/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def _generator() -> Path | None:
    if importlib.util.find_spec("grpc_tools"):
        return Path(sys.executable)
    apart = ROOT / ".venv" / "protos" / "bin" / "python"
    return apart if apart.exists() else None


def test_the_client_loads_neither_torch_nor_onnx_nor_an_image_library() -> None:
    heavy = ("torch", "onnx", "onnxruntime", "PIL", "scipy", "pydantic", "sqlalchemy", "everlearn", "everlearn_server")
    code = f"import everlearn_client, sys; print(*(sys.modules.keys() & set({heavy!r})))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.split()) == (0, []), ran.stderr


@pytest.mark.parametrize(
    "packages",
    [
        ["everlearn_server", "everlearn_client", "everlearn_protos"],
        ["everlearn.spec", "everlearn.hubs", "everlearn.inputs", "everlearn.memories", "everlearn.heads"],
        ["everlearn.runtime", "everlearn.export", "everlearn.metrics"],
        ["everlearn.backbones.base", "everlearn.backbones.onnx", "everlearn.backbones.child"],
    ],
    ids=lambda packages: packages[0],
)
def test_it_runs_without_torch(packages: list[str]) -> None:
    ran = subprocess.run([sys.executable, "-c", _TORCH_FREE, *packages], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_the_refusal_of_torch_works() -> None:
    ran = subprocess.run([sys.executable, "-c", _TORCH_FREE, "torch"], capture_output=True, text=True)
    assert "installation without torch" in ran.stderr


def _zoo_modules() -> list[str]:
    return [found.name for found in pkgutil.walk_packages(everlearn.__path__, "everlearn.")]


@pytest.mark.parametrize("name", _zoo_modules())
def test_examples_in_docstrings_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
