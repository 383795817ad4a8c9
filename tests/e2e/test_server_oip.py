"""The Open Inference Protocol against the real server, through the unmodified tritonclient; health and reflection."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tests import tiny
from tests.e2e.server_calls import encoded
from tests.real_server import RealServer

from everlearn_client import Client, Features, Pixels
from everlearn_protos.oip import SERVICE

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
IMAGES = np.concatenate([tiny.images(1, label, seed=4) for label in range(3)])


@pytest.fixture(scope="module", autouse=True)
def model(server: RealServer, client: Client, backbone: Path) -> None:
    """`tiny` knows three classes; `blank` has learned nothing."""
    server.declare(tiny.declaration(backbone))
    server.declare(tiny.declaration(backbone, name="blank"))
    for label in range(3):
        client.learn("tiny", [(tiny.images(8, label), [f"c{label}"] * 8)])


@pytest.fixture(scope="module")
def oip(server: RealServer) -> Iterator[Any]:
    with triton.InferenceServerClient(server.address) as connected:
        yield connected


def an_input(name: str, datatype: str, array: Any) -> Any:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def refused(call: Callable[[], object], code: str) -> str:
    with pytest.raises(triton.InferenceServerException) as caught:
        call()
    assert code in str(caught.value.status())
    return str(caught.value.message())


def health_of(server: RealServer, service: str) -> int:
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=120).status)


def test_the_server_and_its_models_say_whether_they_are_ready(oip: Any) -> None:
    assert oip.is_server_live()
    assert oip.is_server_ready()
    assert oip.is_model_ready("tiny")
    assert not oip.is_model_ready("blank")
    assert not oip.is_model_ready("nobody")
    assert oip.get_server_metadata().name == "everlearn"


def test_metadata_tells_inputs_outputs_and_versions(oip: Any, client: Client) -> None:
    metadata = oip.get_model_metadata("tiny")
    assert [(tensor.name, tensor.datatype) for tensor in metadata.inputs] == [
        ("image", "UINT8"),
        ("encoded", "BYTES"),
        ("pixels", "FP32"),
        ("features", "FP32"),
    ]
    assert list(metadata.inputs[2].shape) == [-1, 3, 16, 16]
    assert list(metadata.inputs[3].shape) == [-1, 16]
    assert list(metadata.outputs[0].shape) == [-1, 3]
    assert str(client.models.version("tiny").number) in metadata.versions
    assert oip.get_model_config("tiny").config.name == "tiny"


def test_every_input_form_is_answered_as_our_own_predict_answers(oip: Any, client: Client, backbone: Path) -> None:
    files = np.array([encoded(image) for image in IMAGES], dtype=object)
    pixels = np.ascontiguousarray(((IMAGES.astype(np.float32) / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2))
    features = tiny.features(3, 1, 16)
    forms: list[tuple[Any, Any]] = [
        (an_input("image", "UINT8", IMAGES), IMAGES),
        (an_input("encoded", "BYTES", files), list(files)),
        (an_input("pixels", "FP32", pixels), Pixels(pixels)),
        (an_input("features", "FP32", features), Features(features)),
    ]
    for made, samples in forms:
        result = oip.infer("tiny", [made])
        ours = client.predict("tiny", samples, scores=True)
        np.testing.assert_array_equal(result.as_numpy("scores"), ours.scores_NC)
        assert [label.decode() for label in result.as_numpy("label")] == [best[0].label for best in ours.top]
        assert list(result.as_numpy("label_index")) == [best[0].index for best in ours.top]
        assert f"models/tiny/versions/{result.get_response().model_version}" == ours.version


def test_class_count_names_the_best_classes(oip: Any) -> None:
    wanted = [triton.InferRequestedOutput("scores", class_count=2)]
    found = oip.infer("tiny", [an_input("image", "UINT8", IMAGES[:1])], outputs=wanted).as_numpy("scores")
    texts = [entry.decode() for entry in found.ravel()]
    assert len(texts) == 2
    assert texts[0].split(":")[1:] == ["0", "c0"]


def test_versions_are_asked_for_by_number_and_unknown_ones_are_not_found(oip: Any, client: Client) -> None:
    image = [an_input("image", "UINT8", IMAGES[:1])]
    for version in client.models.versions("tiny"):
        assert oip.infer("tiny", image, str(version.number)).get_response().model_version == str(version.number)
    refused(lambda: oip.infer("tiny", image, "99999"), "NOT_FOUND")
    assert "nobody" in refused(lambda: oip.infer("nobody", image), "NOT_FOUND")
    refused(lambda: oip.infer("blank", image), "FAILED_PRECONDITION")
    refused(lambda: oip.get_model_metadata("nobody"), "NOT_FOUND")


def test_a_wrong_input_is_refused_by_name_and_the_next_is_answered(oip: Any) -> None:
    broken = np.array([encoded(IMAGES[0]), b"no image"], dtype=object)
    assert "inputs[0][1]" in refused(lambda: oip.infer("tiny", [an_input("encoded", "BYTES", broken)]), "INVALID")
    bad = np.full((2, 16), np.nan, np.float32)
    assert "features" in refused(lambda: oip.infer("tiny", [an_input("features", "FP32", bad)]), "INVALID")
    assert oip.infer("tiny", [an_input("image", "UINT8", IMAGES)]).as_numpy("label").shape == (3,)


def test_a_request_may_be_larger_than_a_message_of_our_own(oip: Any) -> None:
    large = np.broadcast_to(IMAGES[0, :1, :1], (3, 1000, 1000, 3))
    assert large.nbytes > 4 * 2**20
    found = oip.infer("tiny", [an_input("image", "UINT8", np.ascontiguousarray(large))])
    assert found.as_numpy("label_index").tolist() == [0] * 3


def test_a_stream_answers_in_order_and_survives_a_wrong_request(server: RealServer) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton.InferenceServerClient(server.address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number, name in enumerate(["tiny", "nobody", "tiny"]):
            client.async_stream_infer(name, [an_input("image", "UINT8", IMAGES[:1])], request_id=str(number))
        heard = [answers.get(timeout=120) for _ in range(3)]
        client.stop_stream()
    assert [error is None for _, error in heard] == [True, False, True]
    assert heard[2][0].get_response().id == "2"


def test_the_repository_lists_models_and_their_versions(oip: Any, client: Client) -> None:
    models = list(oip.get_model_repository_index().models)
    states = {(model.name, model.version): model.state for model in models}
    assert states[("tiny", str(client.models.version("tiny").number))] == "READY"
    blank = next(model for model in models if model.name == "blank")
    assert blank.state == "UNAVAILABLE"
    assert "learned nothing" in blank.reason


def test_unloading_stops_serving_and_loading_begins_again(oip: Any, server: RealServer) -> None:
    image = [an_input("image", "UINT8", IMAGES[:1])]
    oip.unload_model("tiny")
    assert not oip.is_model_ready("tiny")
    assert health_of(server, "models/tiny") == NOT_SERVING
    refused(lambda: oip.infer("tiny", image), "FAILED_PRECONDITION")
    oip.load_model("tiny")
    assert oip.is_model_ready("tiny")
    assert health_of(server, "models/tiny") == SERVING
    assert oip.infer("tiny", image).as_numpy("label").shape == (1,)
    refused(lambda: oip.load_model("nobody"), "NOT_FOUND")


def test_statistics_count_what_was_inferred(oip: Any, client: Client) -> None:
    version = str(client.models.version("tiny").number)

    def count() -> int:
        return int(oip.get_inference_statistics("tiny", version).model_stats[0].inference_count)

    before = count()
    oip.infer("tiny", [an_input("image", "UINT8", IMAGES)], version)
    assert count() == before + 3


def test_health_tells_of_the_server_each_service_and_each_model(
    server: RealServer, client: Client, backbone: Path
) -> None:
    for service in ("", SERVICE, "everlearn.v1.LearnService", "everlearn.v1.PredictService", "models/tiny"):
        assert health_of(server, service) == SERVING
    server.declare(tiny.declaration(backbone, name="young"))
    assert health_of(server, "models/young") == NOT_SERVING
    client.learn("young", [(tiny.images(4, 0), ["a"] * 4)])
    assert _in_time(lambda: health_of(server, "models/young") == SERVING), "the first stable version makes it serve"
    client.models.delete("young")
    assert _in_time(lambda: health_of(server, "models/young") == NOT_SERVING)


def test_health_survives_a_restart(server: RealServer) -> None:
    server.restart()
    assert health_of(server, "models/tiny") == SERVING
    assert health_of(server, "models/blank") == NOT_SERVING


def test_reflection_lists_every_service_and_resolves_it(server: RealServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = set(database.get_services())
        assert services == {
            SERVICE,
            "everlearn.v1.ModelService",
            "everlearn.v1.LearnService",
            "everlearn.v1.PredictService",
            "everlearn.v1.ExportService",
            "everlearn.v1.ClientService",
            "everlearn.v1.ErasureService",
            "everlearn.v1.FleetService",
            "everlearn.v1.ServerInfoService",
            "google.longrunning.Operations",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        pool = DescriptorPool(database)
        methods = {name: [method.name for method in pool.FindServiceByName(name).methods] for name in services}
    assert "Learn" in methods["everlearn.v1.LearnService"]
    assert "ModelStreamInfer" in methods[SERVICE]


def _in_time(condition: Callable[[], bool]) -> bool:
    for _ in range(3_000):
        if condition():
            return True
        time.sleep(0.02)
    return False
