"""`client.models` of AsyncClient: what an administrator declares, and the versions that learning makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import TYPE_CHECKING, cast

import grpc

from everlearn_client._models import DECLARE_TIMEOUT_S, PREPARE_TIMEOUT_S, PROBE_TIMEOUT_S, ProgressCallback, unheard
from everlearn_client._upgrade import FedCallback, UpgradeSession
from everlearn_client.errors import from_rpc_error
from everlearn_client.resource_names import model_name, version_name
from everlearn_client.results import Applied
from everlearn_client.samples import SampleInput, to_message
from everlearn_protos.v1 import clients_pb2, clients_pb2_grpc, fleet_pb2, fleet_pb2_grpc, models_pb2_grpc
from everlearn_protos.v1 import models_pb2 as pb

if TYPE_CHECKING:
    from everlearn_client.aio import AsyncClient


class AsyncModels:
    """Declarations and versions. Names may be given short (`digits`) or whole (`models/digits`)."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._stub = models_pb2_grpc.ModelServiceStub(client.channel)
        self._clients = clients_pb2_grpc.ClientServiceStub(client.channel)
        self._fleet = fleet_pb2_grpc.FleetServiceStub(client.channel)

    async def plan(self, declaration: str, *, timeout_s: float = DECLARE_TIMEOUT_S) -> pb.Plan:
        """What applying this YAML would change, cost and delete; changes nothing."""
        request = pb.PlanModelRequest(declaration=declaration)
        return (await self._client.call(self._stub.PlanModel, request, timeout_s=timeout_s)).plan

    async def apply(
        self,
        declaration: str,
        *,
        dry_run: bool = False,
        plan_id: str = "",
        allow_replace: bool = False,
        allow_loosen_retention: bool = False,
        wait: bool = True,
        progress: ProgressCallback | None = None,
        timeout_s: float = PREPARE_TIMEOUT_S,
    ) -> Applied:
        """Applies this YAML and, unless `wait=False`, waits until the backbone is ready.

        Raises Conflict for a stale `plan_id`, FailedPrecondition (`NEEDS_CONSENT`) without the consent it needs.
        """
        response = await self._client.call(
            self._stub.ApplyModel,
            pb.ApplyModelRequest(
                declaration=declaration,
                dry_run=dry_run,
                plan_id=plan_id,
                allow_replace=allow_replace,
                allow_loosen_retention=allow_loosen_retention,
            ),
            timeout_s=min(timeout_s, DECLARE_TIMEOUT_S),
        )
        model = response.model if response.HasField("model") else None
        operation = response.operation if response.HasField("operation") else None
        if operation is None or not wait:
            return Applied(response.plan, model, operation)
        ready = await self._client.wait(operation, on_progress=progress, timeout_s=timeout_s)
        return Applied(response.plan, cast(pb.Model, ready), None)

    async def lock(self, declaration: str, *, timeout_s: float = DECLARE_TIMEOUT_S) -> pb.LockModelResponse:
        """The declaration with its moving references resolved to commits and digests."""
        request = pb.LockModelRequest(declaration=declaration)
        return await self._client.call(self._stub.LockModel, request, timeout_s=timeout_s)

    async def get(self, model: str) -> pb.Model:
        """Declaration and status."""
        return await self._client.call(self._stub.GetModel, pb.GetModelRequest(name=model_name(model)))

    async def list(self) -> AsyncIterator[pb.Model]:
        """All models, page by page as they are asked for."""
        token = ""
        while True:
            page = await self._client.call(self._stub.ListModels, pb.ListModelsRequest(page_token=token))
            for item in page.models:
                yield item
            token = page.next_page_token
            if not token:
                return

    async def delete(self, model: str, *, etag: str = "") -> None:
        """Deletes the model, its sums, versions and exports. Raises Conflict where `etag` is stale."""
        await self._client.call(self._stub.DeleteModel, pb.DeleteModelRequest(name=model_name(model), etag=etag))

    async def version(self, model: str, version: str | int = "stable") -> pb.Version:
        """One version: a number, `stable` or `latest`."""
        return await self._client.call(self._stub.GetVersion, pb.GetVersionRequest(name=version_name(model, version)))

    async def versions(self, model: str) -> AsyncIterator[pb.Version]:
        """All versions, page by page as they are asked for."""
        token = ""
        while True:
            request = pb.ListVersionsRequest(parent=model_name(model), page_token=token)
            page = await self._client.call(self._stub.ListVersions, request)
            for item in page.versions:
                yield item
            token = page.next_page_token
            if not token:
                return

    async def promote(self, model: str, version: str | int = "latest", *, etag: str = "") -> pb.Model:
        """Points `stable` at a version. Raises FailedPrecondition (`GATE_FAILED`) where it does not pass the gate."""
        request = pb.PromoteVersionRequest(name=version_name(model, version), etag=etag)
        return await self._client.call(self._stub.PromoteVersion, request)

    async def rollback(self, model: str, version: int = 0, *, canary: bool = False, etag: str = "") -> pb.Model:
        """Points `stable` back (0 = the newest earlier one that passed its gate) and pauses automatic promotion; an
        open canary ends. `canary`: withdraws that alone. Raises FailedPrecondition (`NO_CANARY`)."""
        request = pb.RollbackModelRequest(name=model_name(model), version=version, canary=canary, etag=etag)
        return await self._client.call(self._stub.RollbackModel, request)

    async def clients(self, model: str, *, head_change: bool = False) -> AsyncIterator[clients_pb2.ModelClient]:
        """Who the model learns from, those that sent most first, page by page as they are asked for.

        `head_change`: with how far the head would move without each, where the model keeps privacy.client_sums: the
        server solves a head for each. Raises FailedPrecondition (`NO_CLIENT_SUMS`).
        """
        token = ""
        while True:
            request = clients_pb2.ListClientsRequest(
                parent=model_name(model), page_token=token, head_change=head_change
            )
            page = await self._client.call(self._clients.ListClients, request)
            for item in page.clients:
                yield item
            token = page.next_page_token
            if not token:
                return

    async def quarantine(self, model: str, client: str) -> clients_pb2.ModelClient:
        """From now on nothing of this client is learned: its batches are refused (`QUARANTINED`) until `release`, over
        restarts of the server too. What was learned of it stays. Raises NotFound for a client that never came."""
        request = clients_pb2.QuarantineClientRequest(parent=model_name(model), client=client)
        return (await self._client.call(self._clients.QuarantineClient, request)).client

    async def release(self, model: str, client: str) -> clients_pb2.ModelClient:
        """Ends a client's quarantine. What was refused meanwhile is not learned; it may send that again."""
        request = clients_pb2.ReleaseClientRequest(parent=model_name(model), client=client)
        return (await self._client.call(self._clients.ReleaseClient, request)).client

    async def check_in(self, request: fleet_pb2.CheckInRequest) -> fleet_pb2.CheckInResponse:
        """As a device: which version is wanted here, told how the present one fares. A client without a `client_id` of
        its own is not counted."""
        return await self._client.call(self._fleet.CheckIn, request)

    async def probe(self, model: str, *, timeout_s: float = PROBE_TIMEOUT_S) -> pb.ModelProbe:
        """How well the backbone fits what was learned, and what it costs.

        Raises FailedPrecondition (`EMPTY_MEMORY`, `ONE_CLASS`) where there is too little to judge.
        """
        request = pb.ProbeModelRequest(name=model_name(model))
        return await self._client.call(self._stub.ProbeModel, request, timeout_s=timeout_s)

    async def probe_inputs(self, model: str, samples: SampleInput) -> pb.InputProbe:
        """What images (files or arrays, at most 256) look like beside what the backbone expects; learns nothing."""
        request = pb.ProbeInputsRequest(name=model_name(model), samples=to_message(samples))
        return await self._client.call(self._stub.ProbeInputs, request)

    async def upgrade_backbone(
        self,
        model: str,
        declaration: str,
        calibration: Iterable[SampleInput] | AsyncIterable[SampleInput],
        *,
        max_drop: float | None = None,
        min_agreement: float | None = None,
        max_unseen_classes: int = 0,
        dry_run: bool = False,
        check: bool = True,
        progress: ProgressCallback | None = None,
        on_fed: FedCallback | None = None,
    ) -> pb.UpgradeReport:
        """As `Models.upgrade_backbone`."""
        session = UpgradeSession(
            model,
            declaration,
            max_drop=max_drop,
            min_agreement=min_agreement,
            max_unseen_classes=max_unseen_classes,
            dry_run=dry_run,
            check=check,
            progress=progress or unheard,
            on_fed=on_fed or unheard,
        )

        async def requests() -> AsyncIterator[pb.UpgradeBackboneRequest]:
            yield session.open_request()
            try:
                if isinstance(calibration, AsyncIterable):
                    async for samples in calibration:
                        for request in session.sample_requests(samples):
                            yield request
                else:
                    for samples in calibration:
                        for request in session.sample_requests(samples):
                            yield request
            except Exception as error:
                session.failure = error
                call.cancel()

        call = self._stub.UpgradeBackbone(requests(), metadata=self._client.metadata)
        try:
            async for response in call:
                session.hear(response)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        except asyncio.CancelledError:
            if session.failure is not None:
                raise session.failure from None
            raise
        finally:
            call.cancel()
        return session.result()
