"""Files of models, made wrong by the thousand, through what a server does with them: `run(kind, files, seed)`.

    onnx          hub -> loader -> a trunk, in a forked process that is limited as the server's own child is
    safetensors   the header, in a forked process that stands for the server, and then the same way
    tokenizer     in a forked process that stands for the server: read, and made to read two long texts

A refusal is one of our own errors. A child may die of a file, for that is what it is there for, and is counted; what
stands for the server may not.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import random
import resource
import selectors
import signal
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

CPU_S = 20
"""Of one file; the server gives its child ten minutes by the clock."""
LATE_S = 240.0
TEXT_CPU_S = 3.0
"""Of 8 KiB; an honest tokenizer needs some milliseconds."""
EXAMPLES = 8


def run(kind: str, files: int, seed: int, *, unchecked: bool = False) -> dict[str, Any]:
    """In a process of its own. `unchecked`: a server that takes tokenizers unread, as a control.

    `counts` by what became of a file; `violations` is empty where all held; `deaths`: files that a child died of.
    """
    command = [sys.executable, "-m", "tests.faults.mutated_files", kind, str(files), str(seed), str(int(unchecked))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    if done.returncode:
        raise AssertionError(f"the process that forks ended with {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """The process that has imported everything and forks for each file."""
    kind, files, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if sys.argv[4:] == ["1"]:
        _check_nothing()
    counts, violations, deaths = Counter[str](), list[str](), list[str]()
    with tempfile.TemporaryDirectory(prefix="mutated-") as name:
        make, take = {"onnx": _onnx, "safetensors": _safetensors, "tokenizer": _tokenizer}[kind](Path(name))
        rng = random.Random(seed)
        for _ in range(files):
            data = make(rng)
            what, is_the_servers = _forked(take, data)
            counts[what.partition(":")[0]] += 1
            if what.startswith(("killed", "late", "failed")):
                deaths.append(f"{what} {data[:4000].hex()}")
                if is_the_servers:
                    violations.append(f"the server itself: {what}: {data[:60].hex()}")
            elif what.startswith("refused") and (len(what) > 700 or "\n" in what):
                violations.append(f"a refusal that is none: {what[:900]!r}")
    told = {"files": files, "counts": dict(counts), "violations": violations[:20], "deaths": deaths[:EXAMPLES]}
    print(json.dumps(told))


def _check_nothing() -> None:
    from everlearn.inputs import text

    text.check_tokenizer = lambda data: None
    # Nor does it see the library panic.
    text.TextTokenizer.ids = lambda self, text: self._tokenizer.encode(text).ids  # type: ignore[method-assign]


Take = Callable[[bytes, Callable[[], None]], None]
Made = tuple[Callable[[random.Random], bytes], Take]


def _forked(take: Take, data: bytes) -> tuple[str, bool]:
    """What became of a file, and whether it was the server itself that it happened to."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        _be_forked(take, data, theirs)
    os.close(theirs)
    said = _read(ours)
    os.close(ours)
    if said is None:
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    text = (said or b"").decode(errors="replace")
    is_the_servers = not text.startswith(">")
    text = text.removeprefix(">")
    if said is None:
        return "late", is_the_servers
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}", is_the_servers
    return text or f"failed with {status}", is_the_servers


def _be_forked(take: Take, data: bytes, theirs: int) -> None:
    from everlearn.errors import EverlearnError

    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S + int(_cpu_s()) + 1,) * 2)
        try:
            take(data, lambda: _say(theirs, ">"))
            _say(theirs, "taken")
        except EverlearnError as error:
            _say(theirs, f"refused: {error.message}")
        except Exception as error:
            _say(theirs, f"failed: {type(error).__name__} {str(error)[:200]}")
    finally:
        os._exit(0)


def _say(descriptor: int, text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(descriptor, text.encode(errors="replace")[:2000])


def _read(descriptor: int) -> bytes | None:
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while selector.select(LATE_S):
            if not (part := os.read(descriptor, 4096)):
                return said
            said += part
    return None


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# -- kinds


def _onnx(folder: Path) -> Made:
    from tests import tiny
    from tests.faults.hostile_models import base
    from tests.faults.mutations import altered, invalid_on_the_wire, mutated

    from everlearn.backbones import child  # imported before the forks, as all that they need
    from everlearn.backbones.onnx import OnnxLoader

    honest = base()

    def make(rng: random.Random) -> bytes:
        dice = rng.random()
        if dice < 0.5:
            return altered(honest, rng)
        data = honest.SerializeToString()
        return mutated(data, rng) if dice < 0.85 else invalid_on_the_wire(data, rng)

    def take(data: bytes, in_the_child: Callable[[], None]) -> None:
        backbone, files = _fetched(folder, data, "onnx", "onnx")
        in_the_child()
        child._limit(files)
        OnnxLoader().build(backbone, files, tiny.FRONT, bits=12)

    return make, take


def _safetensors(folder: Path) -> Made:
    import safetensors.torch
    import timm
    from tests.faults.mutations import mutated

    from everlearn.backbones import child
    from everlearn.backbones.timm import TimmLoader
    from everlearn.values import FrontConfig

    honest = safetensors.torch.save(timm.create_model("test_resnet").state_dict())
    (length,) = struct.unpack("<Q", honest[:8])
    header, body = honest[8 : 8 + length], honest[8 + length :]

    def make(rng: random.Random) -> bytes:
        dice = rng.random()
        if dice < 0.2:
            return mutated(honest, rng)
        changed = _strange_json(header, rng) if dice < 0.7 else mutated(header, rng)
        said = len(changed) if rng.random() < 0.9 else rng.choice((0, 7, 2**31, 2**63, len(changed) + 1))
        return struct.pack("<Q", said) + changed + body

    def take(data: bytes, in_the_child: Callable[[], None]) -> None:
        backbone, files = _fetched(folder, data, "safetensors", "timm")
        in_the_child()
        child._limit(files)
        TimmLoader().build(backbone, files, FrontConfig(height=32, width=32), bits=12)

    return make, take


def _tokenizer(_: Path) -> Made:
    from tests.encoders import tiny_tokenizer
    from tests.faults.hostile_tokenizers import STRANGE_STEPS
    from tests.faults.mutations import mutated

    from everlearn.inputs.text import TextTokenizer

    honest = tiny_tokenizer()
    texts = ("a" * 8191 + "!", "rain é \u202e\U0001f980 " * 600)

    def make(rng: random.Random) -> bytes:
        dice = rng.random()
        if dice < 0.25:
            return mutated(honest, rng)
        told = json.loads(honest)
        for name in rng.sample(list(STRANGE_STEPS), rng.randint(0, 2)):
            told[name] = rng.choice(STRANGE_STEPS[name])
        return _strange_json(json.dumps(told).encode(), rng) if dice < 0.7 else json.dumps(told).encode()

    def take(data: bytes, in_the_child: Callable[[], None]) -> None:
        tokenizer, began_s = TextTokenizer(data, 64), _cpu_s()
        for text in texts:
            assert len(tokenizer.ids(text)) <= 64 + 2 * 16
        assert _cpu_s() - began_s < TEXT_CPU_S, f"{_cpu_s() - began_s:.1f} s for {len(texts)} texts"

    return make, take


def _fetched(folder: Path, data: bytes, kind: str, loader: str) -> tuple[Any, Any]:
    """What the server itself does before a child sees a file."""
    from everlearn.hubs import hub_for
    from everlearn.hubs.base import HubSettings
    from everlearn.spec.model import Backbone

    path = folder / f"model.{kind}"
    path.write_bytes(data)
    told: dict[str, Any] = {"architecture": "test_resnet"} if loader == "timm" else {}
    digest = hashlib.sha256(data).hexdigest()
    backbone = Backbone.model_validate(
        {"source": f"folder:{path}", "sha256": digest, "format": kind, "loader": loader, **told}
    )
    return backbone, hub_for(backbone, HubSettings(cache=folder)).fetch(backbone, lambda done, total: None)


_VALUES = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    2**64,
    10**400,
    1e308,
    "",
    "a" * 5000,
    "\x00",
    "F32",
    [],
    {},
    [[]],
    [0] * 99,
)


def _strange_json(data: bytes, rng: random.Random) -> bytes:
    """One to three values or names made strange."""
    told = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        holder, key = rng.choice(list(_places(told)))
        dice = rng.random()
        if dice < 0.2:
            del holder[key]
        elif dice < 0.3 and isinstance(holder, dict):
            holder[rng.choice(("", "__metadata__", "../x", "a" * 300, "\x00"))] = holder[key]
        elif dice < 0.5 and isinstance(holder[key], int):
            holder[key] = holder[key] + rng.choice((-8, -1, 1, 4, 2**40, -(2**70)))
        else:
            holder[key] = copy.deepcopy(rng.choice(_VALUES))  # or one of them comes to hold itself
        if not (isinstance(told, dict) and told):
            break
    text = json.dumps(told)
    if rng.random() < 0.05:
        text = text.replace('"', '"a": 1, "', 1) if rng.random() < 0.5 else "[" * 50_000 + text
    return text.encode()


def _places(told: Any) -> list[tuple[Any, Any]]:
    below = list(told.items()) if isinstance(told, dict) else list(enumerate(told)) if isinstance(told, list) else []
    return [place for key, value in below[:400] for place in ((told, key), *_places(value))]


if __name__ == "__main__":
    main()
