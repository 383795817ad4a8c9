"""Hostile image files against the real server: each is refused by its name, and the server is none the worse."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from tests import tiny
from tests.e2e.server_calls import Stubs, encoded, predict_request, refusal_of
from tests.faults import hostile_images
from tests.real_server import RealServer

GOOD = encoded(tiny.images(1, 0)[0])
FIELD = "samples.encoded_images.images[1]"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("images")
    with RealServer(folder / "data") as running:
        running.declare(tiny.declaration(tiny.write_backbone(folder)))
        with running.client(client_id="beginner") as client:
            client.learn("tiny", [(tiny.images(4, label), [f"{label}"] * 4) for label in range(2)])
        yield running


@pytest.fixture(scope="module")
def stubs(server: RealServer) -> Iterator[Stubs]:
    with Stubs(server.address) as connected:
        yield connected


@pytest.fixture
def unharmed(server: RealServer, stubs: Stubs) -> Iterator[None]:
    """The same process goes on, no larger than before, and says nothing of it."""
    process = psutil.Process(server.pid)
    stubs.predictions.Predict(predict_request("tiny", [GOOD, GOOD]))
    before = process.memory_info().rss
    yield
    assert stubs.predictions.Predict(predict_request("tiny", [GOOD, GOOD])).predictions
    assert process.memory_info().rss - before < 50 * 2**20
    assert "Traceback" not in server.log
    assert "internal error" not in server.log


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("family", ["bombs", "broken", "something_else"])
def test_every_hostile_file_is_refused_by_its_place_in_the_batch(server: RealServer, stubs: Stubs, family: str) -> None:
    files: dict[str, bytes] = getattr(hostile_images, family)()
    for name, data in files.items():
        assert len(data) <= 2 * 2**20 or family == "bombs", name
        begun_s = server.cpu_s
        found = refusal_of(lambda data=data: stubs.predictions.Predict(predict_request("tiny", [GOOD, data])))
        assert (found.code, found.violations) == ("INVALID_ARGUMENT", (FIELD,)), f"{name}: {found}"
        assert "image" in found.message, name
        assert len(found.message) < 300, name
        assert server.cpu_s - begun_s < 0.5, f"{name} took too much time"


@pytest.mark.usefixtures("unharmed")
def test_strange_files_are_answered_one_way_or_the_other(stubs: Stubs) -> None:
    for name, data in hostile_images.odd().items():
        try:
            assert stubs.predictions.Predict(predict_request("tiny", [GOOD, data])).predictions
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, name  # noqa: PT017  # both ends are right


def test_there_are_enough_of_them() -> None:
    families = (hostile_images.bombs(), hostile_images.broken(), hostile_images.something_else())
    assert sum(map(len, families)) >= 60


def test_a_progressive_picture_of_ten_scans_is_no_bomb(stubs: Stubs) -> None:
    data = hostile_images.saved("JPEG", progressive=True)
    assert data.count(b"\xff\xda") >= 8
    assert stubs.predictions.Predict(predict_request("tiny", [data])).predictions


def test_without_the_count_of_scans_the_same_file_costs_seconds() -> None:
    """The control: what five thousand scans would cost is extrapolated from forty."""
    import io

    from PIL import Image

    begun_s = time.thread_time()
    Image.open(io.BytesIO(hostile_images._scans(40)), formats=["JPEG"]).load()
    assert (time.thread_time() - begun_s) / 40 * 5000 > 5


def test_files_are_made_anew_and_none_is_committed() -> None:
    assert not [path for path in Path(__file__).parent.rglob("*") if path.suffix in (".png", ".jpg", ".webp", ".onnx")]
