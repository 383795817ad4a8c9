"""A model that learns on its trunk in 8 bits: calibrated on the first images, and from there on one graph for all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from tests import tiny
from tests.real_server import RealServer
from typer.testing import CliRunner

from everlearn_client import Client, FailedPrecondition, Features, InvalidArgument
from everlearn_client.cli.app import app
from everlearn_client.edge import EdgeModel, EdgeSettings, SendPolicy
from everlearn_client.edge.session import EdgeSession
from everlearn_client.errors import Held

LABELS = ("ash", "birch", "cedar")
DECLARED = {"samples": 48}
Batch = tuple[npt.NDArray[np.uint8], list[str]]


def batches(seed: int, count: int = 10) -> list[Batch]:
    """Three, one of each label."""
    return [(tiny.images(count, index, seed=seed), [label] * count) for index, label in enumerate(LABELS)]


@pytest.fixture(scope="module")
def taught(server: RealServer, backbone: Path) -> tuple[RealServer, Path]:
    """`eight`, which was calibrated on some of the sixty images that it has learned."""
    server.declare(tiny.declaration(backbone, name="eight", int8_trunk=DECLARED))
    with server.client(client_id="teacher") as client:
        client.learn("eight", [*batches(0), *batches(1)])
    return server, backbone


def test_until_enough_has_come_nothing_is_durable_and_nothing_can_be_asked_of_it(
    server: RealServer, backbone: Path, tmp_path: Path
) -> None:
    server.declare(tiny.declaration(backbone, name="waits", int8_trunk=DECLARED))
    with server.client(client_id="early") as client:
        with pytest.raises(Held, match="30 of 48 images"):
            client.learn("waits", batches(0))
        status = client.models.get("waits").status
        assert (status.sample_count, status.int8.calibrated_on, status.int8.wanted) == (0, 0, 48)
        assert "30 of 48 images" in status.held
        digest = status.input.feature_digest
        batch = Features(tiny.features(4, 0, 16)), ["ash"] * 4
        with pytest.raises(FailedPrecondition, match="not made yet") as refused:
            client.learn("waits", [batch], feature_digest=digest, client_id="splitter")
        assert refused.value.reason == "NOT_CALIBRATED"
        with pytest.raises(FailedPrecondition, match="no features yet"):
            client.embed(["waits"], tiny.images(2, 0))
        with pytest.raises(FailedPrecondition, match="learned nothing yet"):
            client.predict("waits", tiny.images(2, 0))
        with pytest.raises(FailedPrecondition, match="learned nothing yet"):
            client.export("waits")
        # What was held goes first, and the rest calibrates: everything is learned, and once.
        report = client.learn("waits", batches(1))
        assert report.durable_sequence == 6
        status = client.models.get("waits").status
        assert (status.sample_count, status.int8.calibrated_on, status.held) == (60, 50, "")
        assert list(status.samples_per_class) == [20, 20, 20]


def test_the_same_images_sent_again_do_not_calibrate_and_others_under_their_numbers_do(
    server: RealServer, backbone: Path
) -> None:
    server.declare(tiny.declaration(backbone, name="again", int8_trunk=DECLARED))
    for _ in range(3):  # processes that remember nothing: each begins with number 1
        with server.client(client_id="again") as client, pytest.raises(Held, match="30 of 48 images"):
            client.learn("again", batches(0))
    with server.client(client_id="again") as client:
        report = client.learn("again", batches(1))
        assert report.durable_sequence == 3
        assert client.models.get("again").status.sample_count == 30


def test_learning_prediction_features_and_the_file_are_of_one_graph(
    taught: tuple[RealServer, Path], tmp_path: Path
) -> None:
    server, _ = taught
    with server.client(client_id="reader") as client:
        status = client.models.get("eight").status
        export = client.export("eight")
        assert export.precision == "int8"
        assert client.export("eight", precision="int8") == export
        paths = {path.name: path for path in client.download(export, tmp_path)}
        session = EdgeSession(paths["model.onnx"], with_features=True)
        assert session.feature_digest == status.input.feature_digest
        images = np.concatenate([tiny.images(10, index, seed=7) for index in range(3)])
        ((digest, there_Nd),) = client.embed(["eight"], images).features_Nd.items()
        assert digest == session.feature_digest
        np.testing.assert_array_equal(session.features(images), there_Nd)
        served = client.predict("eight", images, version=int(export.version.rpartition("/")[2]), scores=True)
        assert served.scores_NC is not None
        np.testing.assert_allclose(session.scores(images), served.scores_NC, atol=1e-5)
        session.self_test(paths["probes.npz"])
        told = json.loads(paths["export.json"].read_text())
        assert told["trunk"]["calibrated_on"] == 50
        card = paths["MODEL_CARD.md"].read_text()
        assert "learned on this very graph" in card
        assert "in 8 bits (see Precision)" in card
    model = onnx.load(paths["model.onnx"])
    assert any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    kernels = [
        each for each in model.graph.initializer if each.data_type == onnx.TensorProto.INT8 and len(each.dims) == 4
    ]
    assert kernels
    # What may be added up in 16 bits without saturation: two products with the largest activation.
    assert max(int(np.abs(numpy_helper.to_array(each).astype(int)).max()) for each in kernels) <= 64


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_there_is_no_file_in_another_precision(taught: tuple[RealServer, Path], precision: str) -> None:
    server, _ = taught
    with (
        server.client() as client,
        pytest.raises(FailedPrecondition, match="learned on its trunk in 8 bits") as refused,
    ):
        client.export("eight", precision=precision)
    assert refused.value.reason == "ONLY_INT8"


def test_its_features_are_not_those_of_the_trunk_in_fp32_and_the_head_is_solved_on_them(
    taught: tuple[RealServer, Path], tmp_path: Path
) -> None:
    server, backbone = taught
    server.declare(tiny.declaration(backbone, name="plain"))
    with server.client(client_id="teacher") as client:
        client.learn("plain", [*batches(0), *batches(1)])
        digests = {name: client.models.get(name).status for name in ("eight", "plain")}
        assert digests["eight"].trunk_digest != digests["plain"].trunk_digest
        assert digests["eight"].memory_digest != digests["plain"].memory_digest
        images = tiny.images(20, 1, seed=5)
        features = client.embed(["eight", "plain"], images).features_Nd
        ours_Nd, plain_Nd = (features[digests[name].input.feature_digest] for name in ("eight", "plain"))
        assert 0 < np.abs(ours_Nd - plain_Nd).max() < 0.1 * np.abs(plain_Nd).max()
        # The head that fp32 was solved for, on features in 8 bits, is another one than theirs.
        sessions = {}
        for name in ("eight", "plain"):
            paths = client.download(client.export(name, "latest"), tmp_path / name)
            sessions[name] = onnx.load(next(path for path in paths if path.name == "model.onnx"))
        ours, plain = (_head(sessions[name]) for name in ("eight", "plain"))
        steps_C = np.abs(ours).max(axis=0) / 127
        assert (np.abs(ours - plain) > 2 * steps_C).any()


def _head(model: onnx.ModelProto) -> npt.NDArray[np.float64]:
    """Weights [d, C] of an export's head, whatever they are stored in."""
    tensors = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    (weight,) = [name for name, values in tensors.items() if name.startswith("head/") and values.ndim == 2]
    scale = next((values for name, values in tensors.items() if name.startswith("head/") and "scale" in name), 1.0)
    return np.asarray(tensors[weight].astype(np.float64) * scale)


def test_the_sums_do_not_depend_on_the_order_of_what_comes(taught: tuple[RealServer, Path]) -> None:
    server, backbone = taught
    digests = set()
    for turn, order in enumerate(([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0])):
        name = f"order-{turn}"
        server.declare(tiny.declaration(backbone, name=name, labels=list(LABELS), int8_trunk={"samples": 32}))
        first = (np.concatenate([tiny.images(12, index, seed=3) for index in range(3)]), [*LABELS] * 12)
        later = [*batches(4, 5), (tiny.images(3, 1, seed=9), ["birch"] * 3)]
        with server.client(client_id=f"client-{turn}") as client:
            client.learn(name, [first])
            client.learn(name, [later[place] for place in order])
            status = client.models.get(name).status
            digests.add((status.trunk_digest, status.memory_digest, status.sample_count))
    assert len(digests) == 1


def test_a_device_sends_features_that_are_the_servers_own(taught: tuple[RealServer, Path], tmp_path: Path) -> None:
    server, _ = taught
    with server.client(client_id="device-8") as client:
        before = client.models.get("eight").status.sample_count
        policy = SendPolicy(duplicate_bits=None, send="features")
        with EdgeModel("eight", folder=tmp_path, client=client, settings=EdgeSettings(policy=policy)) as edge:
            edge.pull()
            assert edge.precision == "int8"
            for image in tiny.images(12, 8, seed=4):
                assert edge.observe(image, "dogwood") == "send"
            edge.flush()
            assert edge.spool.counts["durable"] == (12, 12)
        assert client.models.get("eight").status.sample_count == before + 12
        taught_ = client.predict("eight", tiny.images(5, 8, seed=9), version="latest")
        assert [best[0].label for best in taught_.top] == ["dogwood"] * 5


def test_where_int8_is_beside_the_servers_trunk_its_features_are_refused_still(
    server: RealServer, backbone: Path, tmp_path: Path
) -> None:
    server.declare(tiny.declaration(backbone, name="beside", int8_export={"min_tested": 1, "max_drop": 1.0}))
    with server.client(client_id="device-9") as client:
        for seed in range(200):
            client.learn("beside", batches(seed, 12))
            if client.models.get("beside").status.int8.released:
                break
        settings = EdgeSettings(policy=SendPolicy(duplicate_bits=None, send="features"), precision="int8")
        with EdgeModel("beside", folder=tmp_path, client=client, settings=settings) as edge:
            edge.pull()
            with pytest.raises(FailedPrecondition, match="not the server's"):
                edge.observe(tiny.images(1, 0)[0], "ash")
        status = client.models.get("beside").status
        assert status.int8.released
        assert status.int8.observed >= 64
        assert status.int8.tested >= 1


def test_describe_says_how_far_it_is(taught: tuple[RealServer, Path]) -> None:
    server, backbone = taught
    server.declare(tiny.declaration(backbone, name="told", int8_trunk=DECLARED))
    server.declare(tiny.declaration(backbone, name="exports", int8_export={}))
    words = {"eight": "int8 trunk: made from 50", "told": "waits for 48", "exports": "does not ship: ranges for int8"}
    for name, told in words.items():
        done = CliRunner().invoke(app, f"describe {name} -s {server.address}")
        assert told in done.output, done.output


def test_nothing_is_erased_from_it_and_no_receipts_are_given(taught: tuple[RealServer, Path], tmp_path: Path) -> None:
    server, _ = taught
    with server.client(client_id="teacher") as client:
        with pytest.raises(FailedPrecondition, match="calibrated on the first samples"):
            client.erase("eight", client_id="teacher")
        with pytest.raises(FailedPrecondition, match="receipts would be of no use"):
            client.learn("eight", batches(5), receipts=tmp_path / "receipts")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"privacy": {"tier": "aggregate"}}, "tier: no_raw"),
        ({"privacy": {"client_sums": True}}, "client_sums"),
        ({"projection": {"dim": 32}}, "projection"),
        ({"adapt": {"kind": "first_session"}}, "adapt.kind: frozen"),
        ({"int8_export": {}}, "int8_export makes a graph"),
        ({"int8_trunk": {"samples": 4}}, "int8_trunk"),
    ],
)
def test_where_it_would_break_a_promise_it_is_refused(
    server: RealServer, backbone: Path, spec: dict[str, object], words: str
) -> None:
    text = tiny.declaration(backbone, name="refused", **{"int8_trunk": {}, **spec})
    with server.client() as client, pytest.raises(InvalidArgument, match=words):
        client.models.apply(text)


def test_it_does_not_move_to_another_backbone(taught: tuple[RealServer, Path], tmp_path: Path) -> None:
    server, _ = taught
    other = tiny.declaration(tiny.write_backbone(tmp_path, 24), name="eight", int8_trunk=DECLARED)
    with server.client() as client, pytest.raises(InvalidArgument, match="would have to meet those first"):
        client.models.upgrade_backbone("eight", other, iter([tiny.images(4, 0)]))


def test_a_plan_says_what_it_means(server: RealServer, client: Client, backbone: Path) -> None:
    plan = client.models.plan(tiny.declaration(backbone, name="planned", int8_trunk={}))
    assert any("first 256 images" in line for line in plan.warnings)
    assert any("no client can be taken" in line for line in plan.recipe)
    again = client.models.plan(tiny.declaration(backbone, name="eight"))
    assert [(change.field, change.note) for change in again.changes] == [("spec.int8_trunk", "the memory starts empty")]


def test_a_file_answers_without_everlearn(taught: tuple[RealServer, Path], tmp_path: Path) -> None:
    server, _ = taught
    with server.client() as client:
        paths = {path.name: path for path in client.download(client.export("eight"), tmp_path)}
        session = onnxruntime.InferenceSession(paths["model.onnx"], providers=["CPUExecutionProvider"])
        images = np.concatenate([tiny.images(10, index, seed=21) for index in range(3)])
        labels = [str(label) for label in session.run(["label"], {"image": images})[0]]
        served = client.predict("eight", images)
        assert labels == [best[0].label for best in served.top]
