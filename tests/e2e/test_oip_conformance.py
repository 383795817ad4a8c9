"""tritonclient, unmodified, against our server: each row of the conformance table (serving.md 2.4, column Triton)."""

from __future__ import annotations

import io
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from PIL import Image
from tests.e2e.oip_calls import client, features, refused, refused_wire, server, typed, wire_error, wire_input  # noqa: F401  # fixtures
from tests.e2e.oip_server import LABELS, SIDE, Running
from tritonclient.grpc import service_pb2


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
