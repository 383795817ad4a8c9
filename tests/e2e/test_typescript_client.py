"""An export in Node and in the browser's runtime: the files as they are, checked, with the server's answers.

`make typescript` fetches what it needs (npm, once); without that, or without Node, this says that it was not tested.
"""

from __future__ import annotations

import base64
import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests import tiny
from tests.e2e.typescript import RUNTIMES, Quiet, ask, built, check, exported, image_of, serving, tensor_of
from tests.real_server import RealServer
from typer.testing import CliRunner

from everlearn_client import Client, Tensors
from everlearn_server.command import app as server_app

LABELS = ("ash", "birch", "cédre")


@pytest.fixture
def node() -> str:
    """The program, with the client built beside it."""
    return built()


@pytest.fixture(scope="module")
def folder(server: RealServer, backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a model that abstains, as `everlearn export` leaves it."""
    server.declare(tiny.declaration(backbone, unknown="abstain"))
    with server.client(client_id="teacher") as teacher:
        teacher.learn("tiny", [(tiny.images(40, index), [label] * 40) for index, label in enumerate(LABELS)])
    return exported(server, "tiny", tmp_path_factory.mktemp("export"))


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    """Of a plain web server that has the folder."""
    with serving(functools.partial(Quiet, directory=str(folder))) as where:
        yield where


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_it_answers_as_the_server_does_and_abstains_as_the_server_does(
    node: str, server: RealServer, client: Client, folder: Path, runtime: str
) -> None:
    known = [tiny.images(1, index, seed=5)[0] for index in range(3)]
    foreign = np.indices((16, 16)).sum(axis=0)[:, :, None] % 2 * np.full(3, 255)
    images = [*known, foreign.astype(np.uint8)]
    key = client.info().public_key
    told = ask(
        node, folder=folder, runtime=runtime, options={"serverKey": key}, samples=[image_of(image) for image in images]
    )
    assert (told["name"], told["task"], tuple(told["labels"]), told["signed"]) == (
        "tiny",
        "classification",
        LABELS,
        True,
    )
    version = told["number"]
    assert told["version"] == f"models/tiny/versions/{version}"
    served = [client.predict("tiny", image[None], scores=True, version=version) for image in images]
    for answer, prediction in zip(told["answers"], served, strict=True):
        check(answer, prediction)
    assert [answer["abstained"] for answer in told["answers"]][-1]
    assert any(not answer["abstained"] for answer in told["answers"])


def test_from_a_web_server_with_an_alpha_channel_and_any_size_it_is_the_same(
    node: str, client: Client, folder: Path, address: str
) -> None:
    large = tiny.images(1, 1, seed=3, side=40)[0]
    opaque = np.concatenate([large, np.full((40, 40, 1), 255, np.uint8)], axis=2)
    samples = [image_of(large) | {"topK": 3}, image_of(opaque) | {"topK": 3}]
    told = ask(node, url=address, options={"serverKey": client.info().public_key}, samples=samples)
    plain, with_alpha = told["answers"]
    assert plain == with_alpha
    served = client.predict("tiny", large[None], top_k=3)
    assert [each["label"] for each in plain["top"]] == [each.label for each in served.top[0]]


def test_what_is_not_what_was_exported_or_signed_is_not_run(
    node: str, client: Client, folder: Path, tmp_path: Path
) -> None:
    key, other = client.info().public_key, "ab" * 32
    assert ask(node, folder=folder, options={"serverKey": key})["signed"] is True
    wrong = ask(node, folder=folder, options={"serverKey": other})
    assert (wrong["error"], other in wrong["message"]) == ("DataLoss", True)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    model = bytearray((copy / "model.onnx").read_bytes())
    model[len(model) // 2] ^= 1
    (copy / "model.onnx").write_bytes(model)
    for options in ({"serverKey": key}, {}):
        flipped = ask(node, folder=copy, options=options)
        assert flipped["error"] == "DataLoss"
        assert "not what was exported" in flipped["message"]
    manifest = (copy / "model.manifest.json").read_text()
    (copy / "model.manifest.json").write_text(manifest.replace("tiny", "tini"))
    assert "not signed" in ask(node, folder=copy, options={"serverKey": key})["message"]
    (copy / "model.manifest.json").unlink()
    assert ask(node, folder=copy)["error"] == "Unavailable"
    assert ask(node, folder=copy, options={"sha256": "00" * 32})["error"] == "DataLoss"
    assert ask(node, folder=folder, options={"serverKey": "short"})["error"] == "InvalidArgument"


def test_who_trusts_an_earlier_key_follows_to_the_one_that_signs_now(
    node: str, server: RealServer, client: Client, folder: Path, tmp_path: Path
) -> None:
    first = client.info().public_key
    done = CliRunner().invoke(server_app, ["rotate-signing-key", "--data", str(server.folder)])
    assert done.exit_code == 0, done.output
    second = client.info().public_key
    rotated = exported(server, "tiny", tmp_path / "rotated")
    for key in (first, second):
        told = ask(node, folder=rotated, options={"serverKey": key})
        assert (told["signed"], told["serverKey"]) == (True, second)
    assert second in ask(node, folder=folder, options={"serverKey": second})["message"]  # signed before, by the first
    chain = json.loads((rotated / "model.keys.json").read_text())
    (rotated / "model.keys.json").write_text(json.dumps([{**chain[0], "by_old": chain[0]["by_new"]}]))
    assert "not signed by both keys" in ask(node, folder=rotated, options={"serverKey": first})["message"]
    (rotated / "model.keys.json").unlink()
    assert "not signed by the server" in ask(node, folder=rotated, options={"serverKey": first})["message"]


def test_what_the_model_does_not_take_is_told(node: str, folder: Path) -> None:
    told = ask(node, folder=folder, samples=[tensor_of(np.zeros((1, 4), np.float32))])
    assert told["error"] == "InvalidArgument"
    assert "uint8 [N, H, W, 3]" in told["message"]
    short = {"image": {"data": base64.b64encode(b"12345").decode(), "width": 16, "height": 16}}
    assert "no image of 16 x 16" in ask(node, folder=folder, samples=[short])["message"]


def test_other_tasks_and_plain_numbers(node: str, server: RealServer, client: Client, tmp_path: Path) -> None:
    read = {"modality": "tensor", "shape": [4], "range": [[-4, 4]]}
    body = {"backbone": {"source": "identity"}, "input": read}
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (200, 4)).astype(np.float32)
    several = [[name for name, column in (("hot", 0), ("wet", 1)) if row[column] > 0] for row in values]
    outputs = [{"name": "sum", "min": -20, "max": 20}, {"name": "first", "min": -10, "max": 10}]
    sums = np.stack([values.sum(axis=1), values[:, 0]], axis=1)
    cases = (
        ("several", {"task": "multilabel"}, several),
        ("values", {"task": "regression", "outputs": outputs, "head": {"kind": "ridge"}}, sums),
    )
    for name, spec, truth in cases:
        server.declare(json.dumps({"metadata": {"name": name}, "spec": {**body, **spec}}))
        client.learn(name, [(Tensors(values), truth)])
        into = exported(server, name, tmp_path / name)
        told = ask(node, folder=into, samples=[tensor_of(values[:20])])
        served = client.predict(name, Tensors(values[:20]), version=told["number"])
        for row, answer in enumerate(told["answers"]):
            assert (answer["label"], answer["abstained"]) == (None, False)
            if served.values_NK is not None:
                expected = dict(zip(served.labels, served.values_NK[row].tolist(), strict=True))
                assert answer["values"] == pytest.approx(expected, abs=1e-3)
            else:
                assert [each["label"] for each in answer["top"]] == [each.label for each in served.top[row]]
        assert len(told["answers"]) == 20
