"""tritonclient, unmodified, against our server: each row of the conformance table (serving.md 2.4, column Triton)."""

from __future__ import annotations

import io
import queue
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from PIL import Image
from tests.e2e.oip_server import LABELS, SIDE, Running, running_server
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running_server() as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[Any]:
    server.serving.__init__()  # type: ignore[misc]  # a fresh state for each test on one server
    with triton.InferenceServerClient(server.address) as connected:
        yield connected


def features(rows: int = 1, width: int = 3, dtype: str = "FP32", name: str = "features") -> Any:
    tensor = triton.InferInput(name, [rows, width], dtype)
    values = np.tile(np.array([0.1, 0.7, 0.2], np.float32), (rows, 2))[:, :width]
    tensor.set_data_from_numpy(values.astype({"FP32": np.float32, "FP64": np.float64, "INT64": np.int64}[dtype]))
    return tensor


def refused(call: Any, status: str, *texts: str) -> str:
    with pytest.raises(InferenceServerException) as caught:
        call()
    assert caught.value.status() == f"StatusCode.{status}"
    for text in texts:
        assert text in caught.value.message()
    return str(caught.value.message())


# --- ModelReady


def test_an_unknown_model_is_not_ready_rather_than_an_error(client: Any) -> None:
    assert client.is_model_ready("nothing") is False


def test_an_unknown_version_is_not_ready_rather_than_an_error(client: Any) -> None:
    assert client.is_model_ready("colours", "99") is False
    assert client.is_model_ready("colours", "1") is True
    assert client.is_model_ready("colours") is True


def test_a_model_that_learned_nothing_is_not_ready(client: Any) -> None:
    assert client.is_model_ready("asleep") is False


# --- metadata and configuration


def test_the_server_is_live_and_ready_and_names_its_extensions(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    metadata = client.get_server_metadata()
    assert (metadata.name, metadata.version) == ("everlearn", "9.9")
    assert "classification" in metadata.extensions


def test_model_metadata_is_full_and_lists_the_versions(client: Any) -> None:
    metadata = client.get_model_metadata("colours")
    assert list(metadata.versions) == ["1", "2"]
    assert [(i.name, i.datatype, list(i.shape)) for i in metadata.inputs] == [
        ("image", "UINT8", [-1, -1, -1, 3]),
        ("encoded", "BYTES", [-1]),
        ("pixels", "FP32", [-1, 3, SIDE, SIDE]),
        ("features", "FP32", [-1, 3]),
    ]
    assert [(o.name, o.datatype, list(o.shape)) for o in metadata.outputs] == [
        ("scores", "FP32", [-1, 3]),
        ("label", "BYTES", [-1]),
        ("label_index", "INT64", [-1]),
    ]


def test_metadata_of_an_unknown_model_or_version_is_not_found(client: Any) -> None:
    refused(lambda: client.get_model_metadata("nothing"), "NOT_FOUND", "nothing")
    refused(lambda: client.get_model_metadata("colours", "99"), "NOT_FOUND", "99")
    refused(lambda: client.get_model_metadata("asleep"), "FAILED_PRECONDITION", "learned nothing")


def test_model_config_marks_every_input_optional(client: Any) -> None:
    config = client.get_model_config("colours").config
    assert config.name == "colours"
    assert [tensor.name for tensor in config.input] == ["image", "encoded", "pixels", "features"]
    assert all(tensor.optional for tensor in config.input)
    assert [list(tensor.dims) for tensor in config.output] == [[-1, 3], [-1], [-1]]
    as_json = client.get_model_config("colours", as_json=True)
    assert as_json["config"]["input"][0]["data_type"] == "TYPE_UINT8"


# --- ModelInfer


def test_infer_of_an_unknown_model_is_not_found(client: Any) -> None:
    refused(lambda: client.infer("nothing", [features()]), "NOT_FOUND", "'nothing' is not declared")


def test_infer_of_an_unknown_version_is_not_found(client: Any) -> None:
    refused(lambda: client.infer("colours", [features()], "99"), "NOT_FOUND", "no version '99'")


def test_infer_of_a_model_that_is_not_ready_is_a_failed_precondition(client: Any) -> None:
    refused(lambda: client.infer("asleep", [features()]), "FAILED_PRECONDITION", "learned nothing")


def test_the_response_names_the_version_that_answered_and_echoes_the_id(client: Any) -> None:
    response = client.infer("colours", [features()], request_id="request-7").get_response()
    assert (response.model_name, response.model_version, response.id) == ("colours", "2", "request-7")
    response = client.infer("colours", [features()], "1").get_response()
    assert (response.model_version, response.id) == ("1", "")


def test_all_outputs_come_raw_and_readable(client: Any) -> None:
    result = client.infer("colours", [features(rows=2)])
    np.testing.assert_array_equal(result.as_numpy("scores"), np.array([[0.2, 1.4, 0.4]] * 2, np.float32))
    assert [label.decode() for label in result.as_numpy("label")] == ["grün", "grün"]
    np.testing.assert_array_equal(result.as_numpy("label_index"), [1, 1])


def test_a_subset_of_outputs_comes_in_the_order_of_the_request(client: Any) -> None:
    wanted = [triton.InferRequestedOutput("label_index"), triton.InferRequestedOutput("scores")]
    response = client.infer("colours", [features()], outputs=wanted).get_response()
    assert [output.name for output in response.outputs] == ["label_index", "scores"]
    assert [len(raw) for raw in response.raw_output_contents] == [8, 12]


def test_every_form_of_input_is_scored(client: Any) -> None:
    red_HWC = np.zeros((8, 6, 3), np.uint8)
    red_HWC[..., 0] = 255
    image = triton.InferInput("image", [1, 8, 6, 3], "UINT8")
    image.set_data_from_numpy(red_HWC[None])
    pixels = triton.InferInput("pixels", [1, 3, SIDE, SIDE], "FP32")
    pixels.set_data_from_numpy(np.stack([np.full((SIDE, SIDE), v, np.float32) for v in (1, 0, 0)])[None])
    file = io.BytesIO()
    Image.fromarray(red_HWC).save(file, "PNG")
    encoded = triton.InferInput("encoded", [2], "BYTES")
    encoded.set_data_from_numpy(np.array([file.getvalue()] * 2, object))
    for tensor, rows in ((image, 1), (pixels, 1), (encoded, 2)):
        scores = client.infer("colours", [tensor]).as_numpy("scores")
        np.testing.assert_allclose(scores, [[2, 0, 0]] * rows)


def test_a_wrong_datatype_is_refused(client: Any) -> None:
    text = "inputs[0].datatype: inference input 'features' data-type is 'FP64', model 'colours' expects 'FP32'"
    assert refused(lambda: client.infer("colours", [features(dtype="FP64")]), "INVALID_ARGUMENT") == text


def test_a_wrong_rank_is_refused(client: Any) -> None:
    tensor = triton.InferInput("pixels", [3, SIDE, SIDE], "FP32")
    tensor.set_data_from_numpy(np.zeros((3, SIDE, SIDE), np.float32))
    text = refused(lambda: client.infer("colours", [tensor]), "INVALID_ARGUMENT")
    assert text == (
        "inputs[0].shape: unexpected shape for input 'pixels' for model 'colours'. Expected [-1, 3, 4, 4] "
        "(-1 is any size of at least 1), got [3, 4, 4]"
    )


def test_a_wrong_dimension_is_refused(client: Any) -> None:
    call = lambda: client.infer("colours", [features(width=5)])  # noqa: E731
    refused(call, "INVALID_ARGUMENT", "inputs[0].shape", "Expected [-1, 3]", "got [1, 5]")


@pytest.mark.parametrize("shape", [[0, 3], [-1, 3], [1025, 3], [2**62, 3]])
def test_a_batch_of_no_samples_or_of_too_many_is_refused(server: Running, client: Any, shape: list[int]) -> None:
    refused_wire(server, "inputs[0].shape", inputs=[wire_input("features", "FP32", shape)], raw=[b""])


def test_bytes_where_numbers_are_wanted_are_refused(client: Any) -> None:
    tensor = triton.InferInput("features", [1, 3], "BYTES")
    tensor.set_data_from_numpy(np.array([[b"a", b"b", b"c"]], object))
    refused(lambda: client.infer("colours", [tensor]), "INVALID_ARGUMENT", "'BYTES'", "expects 'FP32'")


def test_raw_data_that_is_too_short_is_refused(server: Running, client: Any) -> None:
    detail = refused_wire(
        server, "raw_input_contents[0]", inputs=[wire_input("features", "FP32", [1, 3])], raw=[b"1234"]
    )
    assert "Expected 12 for shape [1, 3], got 4" in detail


def test_an_input_without_data_is_refused(server: Running, client: Any) -> None:
    detail = refused_wire(server, "inputs[0].contents", inputs=[wire_input("features", "FP32", [1, 3])], raw=[])
    assert "Expected 3 for shape [1, 3], got 0" in detail


def test_a_request_without_inputs_is_refused(server: Running, client: Any) -> None:
    assert "expected 1 input but got 0" in refused_wire(server, "inputs", inputs=[], raw=[])


def test_a_wrong_input_name_is_refused(client: Any) -> None:
    call = lambda: client.infer("colours", [features(name="picture")])  # noqa: E731
    refused(call, "INVALID_ARGUMENT", "inputs[0].name", "unexpected inference input 'picture'", "'pixels'")


def test_two_inputs_are_refused_because_they_are_two_forms_of_one(client: Any) -> None:
    image = triton.InferInput("image", [1, 2, 2, 3], "UINT8")
    image.set_data_from_numpy(np.zeros((1, 2, 2, 3), np.uint8))
    refused(lambda: client.infer("colours", [features(), image]), "INVALID_ARGUMENT", "expected 1 input but got 2")


def test_an_unknown_requested_output_is_refused(client: Any) -> None:
    call = lambda: client.infer("colours", [features()], outputs=[triton.InferRequestedOutput("logits")])  # noqa: E731
    refused(call, "INVALID_ARGUMENT", "outputs[0].name", "unexpected inference output 'logits'", "'label_index'")


def test_an_output_requested_twice_is_refused(client: Any) -> None:
    wanted = [triton.InferRequestedOutput("label"), triton.InferRequestedOutput("label")]
    refused(lambda: client.infer("colours", [features()], outputs=wanted), "INVALID_ARGUMENT", "twice")


def test_class_count_returns_the_best_classes_with_their_labels(client: Any) -> None:
    wanted = [triton.InferRequestedOutput("scores", class_count=2)]
    best = client.infer("colours", [features(rows=2)], outputs=wanted).as_numpy("scores")
    assert best.shape == (2, 2)
    assert [entry.decode() for entry in best[0]] == [f"1.400000:1:{LABELS[1]}", f"0.400000:2:{LABELS[2]}"]
    every = [triton.InferRequestedOutput("scores", class_count=99)]
    assert client.infer("colours", [features()], outputs=every).as_numpy("scores").shape == (1, 3)


def test_classes_of_another_output_are_refused(client: Any) -> None:
    wanted = [triton.InferRequestedOutput("label", class_count=2)]
    refused(lambda: client.infer("colours", [features()], outputs=wanted), "INVALID_ARGUMENT", "classes of 'scores'")


def test_a_shared_memory_region_that_nobody_registered_is_not_found(client: Any) -> None:
    tensor = triton.InferInput("features", [1, 3], "FP32")
    tensor.set_shared_memory("region", 12)
    text = "Unable to find shared memory region: 'region'"
    refused(lambda: client.infer("colours", [tensor]), "NOT_FOUND", text)
    output = triton.InferRequestedOutput("scores")
    output.set_shared_memory("region", 12)
    refused(lambda: client.infer("colours", [features()], outputs=[output]), "NOT_FOUND", text)


def test_an_image_that_cannot_be_decoded_is_refused_with_its_place(client: Any) -> None:
    tensor = triton.InferInput("encoded", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([b"not an image"], object))
    refused(lambda: client.infer("colours", [tensor]), "INVALID_ARGUMENT", "inputs[0][0]: ", "JPEG")


# --- time, load and parameters


def test_the_timeout_parameter_and_the_deadline_both_bound_the_wait(server: Running, client: Any) -> None:
    client.infer("colours", [features()])
    client.infer("colours", [features()], timeout=500_000)
    client.infer("colours", [features()], timeout=60_000_000, client_timeout=20)
    none, parameter_s, deadline_s = server.serving.timeouts_s
    assert none is None
    assert parameter_s == 0.5
    assert deadline_s is not None
    assert 0 < deadline_s < 21  # gRPC rounds a deadline up on the wire


def test_a_request_that_waits_longer_than_its_timeout_is_told_so(server: Running, client: Any) -> None:
    server.serving.wait_s = 0.2
    refused(lambda: client.infer("colours", [features()], timeout=1000), "DEADLINE_EXCEEDED", "waited")


def test_a_full_queue_is_answered_with_the_time_to_retry(server: Running, client: Any) -> None:
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    server.serving.full = True
    error = wire_error(server, service_pb2.ModelInferRequest(model_name="colours", inputs=[typed(fp32=[0, 0, 1])]))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    packed = {any_.TypeName(): any_ for any_ in rpc_status.from_call(error).details}
    retry = error_details_pb2.RetryInfo.FromString(packed["google.rpc.RetryInfo"].value)
    assert retry.retry_delay.ToNanoseconds() == 250_000_000


def test_priority_and_sequence_parameters_are_taken_and_change_nothing(client: Any) -> None:
    result = client.infer(
        "colours", [features()], priority=3, sequence_id=7, sequence_start=True, sequence_end=True, parameters={"x": 1}
    )
    assert result.as_numpy("label_index")[0] == 1


def test_a_timeout_that_is_no_number_is_refused(server: Running, client: Any) -> None:
    request = service_pb2.ModelInferRequest(model_name="colours", inputs=[typed(fp32=[0, 0, 1])])
    request.parameters["timeout"].string_param = "soon"
    error = wire_error(server, request)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "parameters[timeout]" in error.details()


def test_a_fault_of_ours_is_internal_with_an_id_and_without_its_text(server: Running, client: Any) -> None:
    server.serving.crash = RuntimeError("secret payload")
    text = refused(lambda: client.infer("colours", [features()]), "INTERNAL", "internal error ")
    assert "secret" not in text


# --- typed contents


def wire_input(name: str, datatype: str, shape: list[int], **contents: Any) -> Any:
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    if contents:
        tensor.contents.CopyFrom(service_pb2.InferTensorContents(**contents))
    return tensor


def typed(*, fp32: list[float]) -> Any:
    return wire_input("features", "FP32", [1, 3], fp32_contents=fp32)


def wire_error(server: Running, request: Any) -> Any:
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=20)
    return caught.value


def refused_wire(server: Running, field: str, *, inputs: list[Any], raw: list[bytes]) -> str:
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    error = wire_error(
        server, service_pb2.ModelInferRequest(model_name="colours", inputs=inputs, raw_input_contents=raw)
    )
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
    packed = {any_.TypeName(): any_ for any_ in rpc_status.from_call(error).details}
    violations = error_details_pb2.BadRequest.FromString(packed["google.rpc.BadRequest"].value).field_violations
    info = error_details_pb2.ErrorInfo.FromString(packed["google.rpc.ErrorInfo"].value)
    assert (info.domain, info.reason) == ("everlearn", "INVALID_INPUT")
    assert violations[0].field.startswith(field)
    assert error.details().startswith(field)
    return str(error.details())


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
    got = [answers.get(timeout=20) for _ in requests]
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
