"""The Open Inference Protocol: typed contents, statistics, repository, streaming; as Triton answers."""

from __future__ import annotations

import io
import queue
from typing import Any

import grpc
import pytest
from PIL import Image
from tests.e2e.oip_calls import client, features, refused, refused_wire, server, typed, wire_input  # noqa: F401  # fixtures
from tests.e2e.oip_server import Running
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException


def test_typed_contents_are_taken_and_answered_raw(server: Running, client: Any) -> None:
    file = io.BytesIO()
    Image.new("RGB", (3, 3), (0, 0, 255)).save(file, "PNG")
    tensors = [
        typed(fp32=[0, 0, 1]),
        wire_input("image", "UINT8", [1, 1, 2, 3], uint_contents=[0, 0, 255] * 2),
        wire_input("encoded", "BYTES", [1], bytes_contents=[file.getvalue()]),
    ]
    with grpc.insecure_channel(server.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for tensor in tensors:
            response = stub.ModelInfer(service_pb2.ModelInferRequest(model_name="colours", inputs=[tensor]))
            assert response.raw_output_contents[2] == (2).to_bytes(8, "little")
            assert not response.outputs[0].HasField("contents")


def test_raw_and_typed_together_are_refused(server: Running, client: Any) -> None:
    detail = refused_wire(server, "inputs[0].contents", inputs=[typed(fp32=[0, 0, 1])], raw=[bytes(12)])
    assert "must not be specified when using raw_input_contents" in detail


def test_contents_of_another_type_are_refused(server: Running, client: Any) -> None:
    tensor = wire_input("features", "FP32", [1, 3], fp64_contents=[0, 0, 1])
    assert "fp32_contents" in refused_wire(server, "inputs[0].contents.fp64_contents", inputs=[tensor], raw=[])


def test_a_byte_above_255_is_refused(server: Running, client: Any) -> None:
    tensor = wire_input("image", "UINT8", [1, 1, 1, 3], uint_contents=[0, 256, 0])
    assert "256 at element 1" in refused_wire(server, "inputs[0].contents.uint_contents", inputs=[tensor], raw=[])


def test_more_raw_entries_than_inputs_are_refused(server: Running, client: Any) -> None:
    tensor = wire_input("features", "FP32", [1, 3])
    refused_wire(server, "raw_input_contents", inputs=[tensor], raw=[bytes(12), bytes(12)])


@pytest.mark.parametrize("raw", [b"", b"\x01", b"\x05\0\0\0ab", b"\x01\0\0\0a\x01\0\0\0b", b"\x01\0\0\0axx"])
def test_raw_bytes_that_do_not_add_up_are_refused(server: Running, client: Any, raw: bytes) -> None:
    refused_wire(server, "raw_input_contents[0]", inputs=[wire_input("encoded", "BYTES", [1])], raw=[raw])


# --- statistics


def test_statistics_count_successes_failures_and_stages(client: Any) -> None:
    before = client.get_inference_statistics("colours", "1").model_stats[0]
    client.infer("colours", [features(rows=4)], "1")
    with pytest.raises(InferenceServerException):
        client.infer("colours", [features(width=5)], "1")
    after = client.get_inference_statistics("colours", "1").model_stats[0]
    assert (after.name, after.version, after.last_inference) == ("colours", "1", 10**12)
    assert after.inference_count - before.inference_count == 4
    assert after.execution_count - before.execution_count == 1
    grown = {
        name: (getattr(after.inference_stats, name).count - getattr(before.inference_stats, name).count)
        for name in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    }
    assert set(grown.values()) == {1}
    assert after.inference_stats.queue.ns - before.inference_stats.queue.ns == 2_000_000
    assert after.inference_stats.compute_infer.ns - before.inference_stats.compute_infer.ns == 3_500_000


def test_statistics_without_a_name_list_every_version_that_serves(client: Any) -> None:
    stats = client.get_inference_statistics().model_stats
    assert [(entry.name, entry.version) for entry in stats] == [("colours", "1"), ("colours", "2")]
    refused(lambda: client.get_inference_statistics("nothing"), "NOT_FOUND")


# --- repository


def test_the_repository_index_has_tritons_words_for_states(client: Any) -> None:
    index = client.get_model_repository_index().models
    assert [(m.name, m.version, m.state) for m in index] == [
        ("asleep", "", "UNAVAILABLE"),
        ("colours", "1", "READY"),
        ("colours", "2", "READY"),
    ]
    assert "learned nothing" in index[0].reason


def test_unload_and_load_take_the_model_out_and_in_again(client: Any) -> None:
    client.unload_model("colours")
    assert client.is_model_ready("colours") is False
    assert client.get_model_repository_index().models[1].state == "UNAVAILABLE"
    refused(lambda: client.infer("colours", [features()]), "FAILED_PRECONDITION", "unloaded")
    client.load_model("colours")
    assert client.is_model_ready("colours") is True
    refused(lambda: client.load_model("nothing"), "NOT_FOUND")
    refused(lambda: client.unload_model("nothing"), "NOT_FOUND")


def test_load_with_a_configuration_or_files_is_refused(client: Any) -> None:
    where = "declared through everlearn.v1"
    refused(lambda: client.load_model("colours", config="{}"), "INVALID_ARGUMENT", "'config'", where)
    files = {"file:1/model.onnx": b"x"}
    refused(lambda: client.load_model("colours", config="{}", files=files), "INVALID_ARGUMENT", where)


# --- what is not offered


def test_shared_memory_and_settings_are_unimplemented(client: Any) -> None:
    calls = [
        client.get_system_shared_memory_status,
        lambda: client.register_system_shared_memory("a", "/a", 8),
        client.unregister_system_shared_memory,
        client.get_cuda_shared_memory_status,
        lambda: client.register_cuda_shared_memory("a", b"AAAA", 0, 8),
        client.unregister_cuda_shared_memory,
        client.get_trace_settings,
        client.update_trace_settings,
        client.get_log_settings,
        lambda: client.update_log_settings({"log_info": True}),
    ]
    for call in calls:
        refused(call, "UNIMPLEMENTED", "not offered")


# --- ModelStreamInfer


def streamed(client: Any, requests: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for request in requests:
        client.async_stream_infer(**request)
    got = [answers.get(timeout=120) for _ in requests]
    client.stop_stream()
    assert answers.empty()
    return got


def test_a_stream_answers_in_order_and_survives_a_bad_request(client: Any) -> None:
    good = {"model_name": "colours", "inputs": [features()]}
    bad = {"model_name": "colours", "inputs": [features(width=5)]}
    requests = [{**(bad if n % 3 == 1 else good), "request_id": str(n)} for n in range(30)]
    for n, (result, error) in enumerate(streamed(client, requests)):
        if n % 3 == 1:
            assert "inputs[0].shape" in error.message()
        else:
            assert error is None
            assert result.get_response().id == str(n)
            assert result.as_numpy("label_index")[0] == 1


def test_a_stream_answer_says_that_it_is_the_final_one(client: Any) -> None:
    request = {"model_name": "colours", "inputs": [features()], "enable_empty_final_response": True}
    ((result, error),) = streamed(client, [request])
    assert error is None
    assert result.get_response().parameters["triton_final_response"].bool_param is True


def test_a_stream_that_the_client_cancels_leaves_the_server_answering(server: Running, client: Any) -> None:
    server.serving.wait_s = 0.2
    client.start_stream(lambda result, error: None)
    for _ in range(20):
        client.async_stream_infer("colours", [features()])
    client.stop_stream(cancel_requests=True)
    server.serving.wait_s = 0.0
    assert client.infer("colours", [features()]).as_numpy("label_index")[0] == 1
