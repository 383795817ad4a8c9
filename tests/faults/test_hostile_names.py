"""Five hundred hostile names in every field that takes one: refused with the field, and no path is made of them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from tests import tiny
from tests.e2e.server_calls import refusal_of
from tests.e2e.test_server_every_method import reflected
from tests.real_server import RealServer

from everlearn_protos.oip import message

TAKES_A_NAME = frozenset({"name", "names", "parent", "version", "model", "client", "model_name", "declaration"})
"""Fields that a resource's name goes into; in a declaration it is metadata.name."""
NOT_ALL = 60
"""Names tried on a method that is not one of ALL."""
ALL = ("GetModel", "Predict", "Learn", "DeleteModel", "PlanModel")
SECRET = "a file that nobody may read"


def hostile_names() -> list[str]:
    """Paths, encodings, controls, other alphabets, lengths; the same every time."""
    rng = random.Random(20261121)
    steps = ("../", "..\\", "%2e%2e%2f", "%252e%252e%252f", "..%c0%af", "....//", "./", "/", "~/", "\\\\host\\share\\")
    ends = ("etc/passwd", "secret.txt", "data/everlearn.sqlite", "con", "x", "")
    paths = [step * count + end for step in steps for count in (1, 2, 5) for end in ends]
    others = "\u0430\uff41\U0001d41a\u1d43\u0431\u0301\u200b\u202e\u0000\ufeff"  # another a, and nothing one sees
    letters = [f"a{letter}" for letter in others]
    controls = [f"tiny{chr(code)}" for code in (*range(1, 33), 127, 0x85, 0xA0, 0x2028, 0xFFFD)]
    signs = [f"tiny{sign}" for sign in "/\\:*?\"<>|;&$`'!@#%^()[]{}=+,~"]
    forms = ["", ".", "..", "-tiny", ".tiny", "_tiny", "Tiny", "TINY", "tiny ", " tiny", "a" * 64, "a" * 100_000]
    queries = ["' OR 1=1 --", '"; DROP TABLE model; --', "${jndi:ldap://x}", "{{7*7}}", "<script>", "$(id)", "`id`"]
    known = [*paths, *letters, *controls, *signs, *forms, *queries, "http://127.0.0.1/x", "file:///etc/passwd"]
    alphabet = "ab1./\\%:~ \t\n\x00é🦀ß-_"
    while len(known) < 500:
        name = "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 90)))
        if not set(name) <= set("ab1._-"):
            known.append(name)
    return known


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("names")
    (folder / "secret.txt").write_text(SECRET)
    with RealServer(folder / "data") as running:
        running.declare(tiny.declaration(tiny.write_backbone(folder)))
        yield running


@pytest.fixture(scope="module")
def channel(server: RealServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as connected:
        yield connected


def fields_of(channel: grpc.Channel) -> list[tuple[Any, tuple[str, ...]]]:
    """Every method of our own services with the path of each field that takes a name."""
    found: list[tuple[Any, tuple[str, ...]]] = []
    for method in reflected(channel):
        if not method.full_name.startswith("everlearn."):
            continue
        for field in method.input_type.fields:
            if field.message_type is not None and field.containing_oneof is not None:
                below = [(field.name, each.name) for each in field.message_type.fields if _takes_a_name(each)]
                found += [(method, path) for path in below]
            elif _takes_a_name(field):
                found.append((method, (field.name,)))
    return found


def _takes_a_name(field: Any) -> bool:
    return field.name in TAKES_A_NAME and field.type == field.TYPE_STRING


def asked(method: Any, path: tuple[str, ...], name: str) -> bytes:
    """A request that is right but for the name, which stands where a resource's name has its own part."""
    request = GetMessageClass(method.input_type)()
    holder = request
    for step in path[:-1]:
        holder = getattr(holder, step)
    last = path[-1]
    if last == "declaration":
        text = json.dumps({"metadata": {"name": name}, "spec": {"backbone": {"source": "identity"}}})
        setattr(holder, last, text)
    elif last == "client":
        fields = {field.name for field in holder.DESCRIPTOR.fields}
        of_model = next(field for field in ("model", "parent", "name") if field in fields)
        setattr(holder, of_model, "models/tiny")
        holder.client = name
    elif last == "names":
        holder.names.append(f"models/{name}")
    elif "Export" in method.name and last == "name":
        holder.name = f"models/{name}/exports/1"
    else:
        setattr(holder, last, f"models/{name}")
    data: bytes = request.SerializeToString()
    return data


def refused(channel: grpc.Channel, method: Any, data: bytes) -> Any:
    path = f"/{method.containing_service.full_name}/{method.name}"
    if method.client_streaming:
        return refusal_of(lambda: list(channel.stream_stream(path)(iter([data]), timeout=20)))
    if method.server_streaming:
        return refusal_of(lambda: list(channel.unary_stream(path)(data, timeout=20)))
    return refusal_of(lambda: channel.unary_unary(path)(data, timeout=20))


def test_no_hostile_name_is_taken_anywhere(server: RealServer, channel: grpc.Channel) -> None:
    names = hostile_names()
    assert len(names) >= 500
    before = {path for path in server.folder.parent.rglob("*") if server.folder not in path.parents}
    fields = [(method, path) for method, path in fields_of(channel) if method.name != "PredictStream"]
    assert len(fields) >= 18

    def ask(method: Any, path: tuple[str, ...]) -> int:
        some = names if method.name in ALL else random.Random(method.full_name).sample(names, NOT_ALL)
        for name in some:
            found = refused(channel, method, asked(method, path, name))
            what = f"{method.name}.{'.'.join(path)} = {name[:60]!r}: {found}"
            assert found.code == "INVALID_ARGUMENT", what
            assert found.violations, what
            assert SECRET not in found.message, what
            assert len(found.message) < 1100, what
        return len(some)

    with ThreadPoolExecutor(4) as pool:
        asked_for = sum(pool.map(lambda each: ask(*each), fields))
    assert asked_for > 3000
    assert {path for path in server.folder.parent.rglob("*") if server.folder not in path.parents} == before
    assert not [path for path in server.folder.rglob("*") if "passwd" in path.name or "secret" in path.name]
    assert "internal error" not in server.log
    with server.client() as client:
        assert [model.name for model in client.models.list()] == ["models/tiny"]


def test_other_protocols_find_no_model_of_such_a_name(channel: grpc.Channel) -> None:
    ready = channel.unary_unary("/inference.GRPCInferenceService/ModelReady")
    infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    for name in hostile_names()[:120]:
        request = message("ModelReadyRequest")(name=name, version=name[:50])
        answer = ready(request.SerializeToString(), timeout=20)
        assert not message("ModelReadyResponse").FromString(answer).ready
        data = message("ModelInferRequest")(model_name=name).SerializeToString()
        found = refusal_of(lambda data=data: infer(data, timeout=20))
        assert found.code in ("NOT_FOUND", "INVALID_ARGUMENT"), found
