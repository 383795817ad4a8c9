"""Tools that know no .proto file find the service: reflection v1alpha from the private pool, and health v1."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tests.e2e.oip_server import REFLECTION, Running, running_server

from everlearn_protos.oip import SERVICE
from everlearn_server.rpc.oip_reflection import reflection_pool


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running_server() as running:
        yield running


def test_reflection_lists_the_service_and_resolves_its_descriptor(server: Running) -> None:
    with grpc.insecure_channel(server.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) == {SERVICE, "grpc.health.v1.Health", REFLECTION}
        service = DescriptorPool(database).FindServiceByName(SERVICE)
    assert [method.name for method in service.methods][:3] == ["ServerLive", "ServerReady", "ModelReady"]
    assert len(service.methods) == 20
    assert service.methods_by_name["ModelStreamInfer"].client_streaming
    assert "raw_input_contents" in service.methods_by_name["ModelInfer"].input_type.fields_by_name


def test_a_service_without_a_descriptor_is_refused_when_the_pool_is_made() -> None:
    with pytest.raises(KeyError):
        reflection_pool(["inference.NoSuchService"])


def test_health_knows_the_server_and_the_service(server: Running) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=120)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="unknown"), timeout=120)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_draining_server_is_live_and_not_ready(server: Running) -> None:
    import tritonclient.grpc as triton

    server.service.drain()
    with triton.InferenceServerClient(server.address) as client:
        assert client.is_server_live() is True
        assert client.is_server_ready() is False
        assert client.is_model_ready("colours") is False
