"""F15: what rots on the disk is found, never served, and told; what is whole goes on. F14: a crash around a release."""

from __future__ import annotations

import shutil
import signal
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests import tiny
from tests.data_folders import blob, flip, flip_column
from tests.ports import free_port
from tests.real_server import RealServer

from everlearn_client import Client, DataLoss, NotFound, Unavailable
from everlearn_client.results import Predictions
from everlearn_server.check.folder import check

FAULTY = str(Path(__file__).with_name("faulty_server.py"))
IMAGES = np.concatenate([tiny.images(3, label, seed=77) for label in (0, 1, 2)])
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Whole:
    """A folder before any damage, and what its server said."""

    folder: Path
    stable: int
    before: int
    """The version that was stable before."""
    scores_of: dict[int, Scores]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """`tiny` (two promoted versions and an export) and `other`, each on a backbone of its own."""
    home = tmp_path_factory.mktemp("rot")
    manual = {"serving": {"promotion": "manual", "keep_versions": 50}}
    with RealServer(home / "data") as server, server.client() as client:
        server.declare(tiny.declaration(tiny.write_backbone(home), **manual))
        server.declare(tiny.declaration(tiny.write_backbone(home, seed=1), name="other"))
        numbers = []
        for labels in ((0, 1), (0, 1, 2)):
            teach(client, "tiny", labels)
            numbers.append(client.models.promote("tiny", "latest").status.aliases["stable"])
        client.export("tiny", version="stable")
        teach(client, "other", (0, 1, 2))
        scores_of = {version: scores(client, str(version)) for version in numbers}
        assert health(server, "data") == SERVING
        assert "DATA_LOSS" not in server.log
    before, stable = numbers
    return Whole(folder=home / "data", stable=stable, before=before, scores_of=scores_of)


def scores(client: Client, version: str) -> Scores:
    found = client.predict("tiny", IMAGES, version=version, scores=True).scores_NC
    assert found is not None
    return found


def teach(client: Client, model: str, labels: tuple[int, ...]) -> None:
    for label in labels:
        client.learn(model, [(tiny.images(10, label), [f"class-{label}"] * 10)], client_id="a")


@pytest.fixture
def server(whole: Whole, tmp_path: Path) -> Iterator[RealServer]:
    """Not started: on a copy that a test damages first."""
    shutil.copytree(whole.folder, tmp_path / "data")
    listen = f"127.0.0.1:{free_port()}"
    server = RealServer(tmp_path / "data", arguments=["--metrics-listen", listen])
    yield server
    if server._process is not None and server.process.poll() is None:
        server.terminate()


def number(answer: Predictions) -> int:
    """Of the version that answered."""
    return int(answer.version.rpartition("/")[2])


def metrics(server: RealServer) -> str:
    with urllib.request.urlopen(f"http://{server.arguments[1]}/metrics") as answer:
        return answer.read().decode()


def health(server: RealServer, name: str) -> int:
    with grpc.insecure_channel(server.address) as channel:
        request = health_pb2.HealthCheckRequest(service=name)
        return int(health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status)


def alarmed(server: RealServer, kind: str) -> None:
    """Log, metric, health and the model's status say it; the server and the other model are as ever."""
    assert "DATA_LOSS" in server.log
    assert f'everlearn_data_loss{{kind="{kind}",model="tiny"}} 1.0' in metrics(server)
    assert health(server, "data") == NOT_SERVING
    assert (health(server, ""), health(server, "models/other")) == (SERVING, SERVING)
    with server.client() as client:
        conditions = client.models.get("tiny").status.conditions
        assert ("DataIntact", "DATA_LOSS") in {(each.type, each.reason) for each in conditions}
        teach(client, "other", (0,))
        assert [top[0].label for top in client.predict("other", IMAGES).top][:3] == ["class-0"] * 3


def test_f15_a_damaged_head_is_never_served_and_the_previous_good_version_is(server: RealServer, whole: Whole) -> None:
    flip_column(server.folder, "version", "head", f"model = 'tiny' AND number = {whole.stable}")
    server.start()
    with server.client() as client:
        answer = client.predict("tiny", IMAGES, scores=True)
        assert number(answer) == whole.before
        assert np.array_equal(answer.scores_NC, whole.scores_of[whole.before])
        with pytest.raises(NotFound):
            client.predict("tiny", IMAGES, version=whole.stable)
        assert whole.stable not in [version.number for version in client.models.versions("tiny")]
        teach(client, "tiny", (2,))  # the memory is whole: it goes on learning
        assert client.models.get("tiny").status.sample_count == 60
    alarmed(server, "version")
    assert health(server, "models/tiny") == SERVING


def test_control_a_server_that_trusts_its_disk_serves_the_damaged_head(server: RealServer, whole: Whole) -> None:
    flip_column(server.folder, "version", "head", f"model = 'tiny' AND number = {whole.stable}")
    server.program = [FAULTY, "trusting"]
    server.start()
    with server.client() as client:
        answer = client.predict("tiny", IMAGES, scores=True)
    assert number(answer) == whole.stable
    assert not np.array_equal(answer.scores_NC, whole.scores_of[whole.stable])


def test_f15_a_damaged_memory_serves_what_was_published_and_refuses_to_learn(server: RealServer, whole: Whole) -> None:
    flip_column(server.folder, "memory", "content", "model = 'tiny'")
    server.start()
    with server.client() as client:
        answer = client.predict("tiny", IMAGES, scores=True)
        assert number(answer) == whole.stable
        assert np.array_equal(answer.scores_NC, whole.scores_of[whole.stable])
        with pytest.raises(DataLoss, match="restore a backup"):
            teach(client, "tiny", (0,))
    alarmed(server, "memory")
    assert health(server, "models/tiny") == SERVING


def test_f15_a_damaged_trunk_serves_nothing_until_it_is_built_anew(server: RealServer) -> None:
    flip(blob(server.folder, "SELECT trunk_digest FROM model WHERE name = 'tiny'"))
    server.start()
    with server.client() as client:
        with pytest.raises(DataLoss, match="apply the declaration again"):
            client.predict("tiny", IMAGES)
        alarmed(server, "trunk")
        assert health(server, "models/tiny") == NOT_SERVING
        client.models.apply(client.models.get("tiny").declaration)
        assert client.predict("tiny", IMAGES).top[0][0].label == "class-0"
        assert health(server, "data") == SERVING
        assert "everlearn_data_loss{" not in metrics(server)


def test_f15_a_damaged_export_is_not_handed_out_and_is_made_anew(server: RealServer, tmp_path: Path) -> None:
    file = blob(server.folder, "SELECT sha256 FROM export_file WHERE file_name = 'model.onnx'")
    good = file.read_bytes()
    flip(file)
    server.start()
    with server.client() as client:
        (export,) = client.exports("tiny")
        with pytest.raises(DataLoss, match="export the version again"):
            client.download(export, tmp_path / "out")
        assert not list((tmp_path / "out").glob("*.onnx"))
        alarmed(server, "export")
        again = client.export("tiny", version=export.version.rpartition("/")[2])
        client.download(again, tmp_path / "out")
        assert (tmp_path / "out" / "model.onnx").read_bytes() == good
        assert health(server, "data") == SERVING


def test_f14_a_crash_between_a_promotion_and_its_alias_leaves_the_old_version_in_place(
    server: RealServer, whole: Whole
) -> None:
    crashed_while_promoting(server, whole, "alias:1")
    with server.client() as client:
        client.models.rollback("tiny", whole.before)
        assert number(client.predict("tiny", IMAGES)) == whole.before


def test_control_an_alias_that_is_moved_before_the_crash_is_noticed(server: RealServer, whole: Whole) -> None:
    with pytest.raises(AssertionError):
        crashed_while_promoting(server, whole, "alias_kept:1")


def crashed_while_promoting(server: RealServer, whole: Whole, fault: str) -> None:
    """The server is killed as it moves `stable`; started again, the version serves that was stable."""
    server.program = [FAULTY, fault]
    server.start()
    with server.client() as client, pytest.raises(Unavailable):
        client.models.rollback("tiny", whole.before)
    assert server.wait() == -signal.SIGKILL
    assert check(server.folder).damaged == []
    server.program = ["-m", "everlearn_server.cli"]
    server.start()
    with server.client() as client:
        assert number(client.predict("tiny", IMAGES)) == whole.stable


def test_f14_a_crash_inside_an_export_is_gone_on_with_and_the_old_version_serves(
    server: RealServer, whole: Whole
) -> None:
    stable, before = whole.stable, whole.before
    server.program = [FAULTY, "kill:blob_renamed:1"]
    server.start()
    with server.client() as client, pytest.raises(Unavailable):
        client.export("tiny", version=before)
    assert server.wait() == -signal.SIGKILL
    report = check(server.folder)
    assert report.damaged == []
    assert any("no row names it" in finding.problem for finding in report.findings), "the blob that was written"
    server.program = ["-m", "everlearn_server.cli"]
    server.start()
    with server.client() as client:
        assert number(client.predict("tiny", IMAGES)) == stable
        export = client.export("tiny", version=before)  # joins what the restart has begun anew, or is it
        assert export.version == f"models/tiny/versions/{before}"
    server.terminate()
    assert check(server.folder).findings == []


def test_control_an_export_that_is_named_before_its_files_are_stored_is_found(server: RealServer, whole: Whole) -> None:
    server.program = [FAULTY, "unstored"]
    server.start()
    with server.client() as client, pytest.raises(Unavailable):
        client.export("tiny", version=whole.before)
    assert server.wait() == -signal.SIGKILL
    assert any("blob" in finding.problem for finding in check(server.folder).damaged), check(server.folder).findings
