"""`client.models`: what an administrator declares, and the versions that learning makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, cast

import grpc

from everlearn_client._upgrade import FedCallback, UpgradeSession
from everlearn_client.errors import from_rpc_error
from everlearn_client.resource_names import model_name, version_name
from everlearn_client.results import Applied
from everlearn_client.samples import SampleInput, to_message
from everlearn_protos.v1 import clients_pb2, clients_pb2_grpc, fleet_pb2, fleet_pb2_grpc, models_pb2_grpc
from everlearn_protos.v1 import models_pb2 as pb

if TYPE_CHECKING:
    from everlearn_client.client import Client

ProgressCallback = Callable[[pb.ApplyProgress], None]
PREPARE_TIMEOUT_S = 3600.0
"""Pulling and building a backbone over a slow link may take long; nothing waits on it but the caller."""
DECLARE_TIMEOUT_S = 300.0
"""Deadline of plan, apply and lock: the server may first fetch the backbone's configuration, or the backbone itself."""
PROBE_TIMEOUT_S = 120.0
"""A probe waits for the threads that solve heads, and takes a second or more with a thousand classes."""


def unheard(_: object) -> None:
    """For callers who do not listen."""


class Models:
    """Declarations and versions. Names may be given short (`digits`) or whole (`models/digits`)."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stub = models_pb2_grpc.ModelServiceStub(client.channel)
        self._clients = clients_pb2_grpc.ClientServiceStub(client.channel)
        self._fleet = fleet_pb2_grpc.FleetServiceStub(client.channel)

    def plan(self, declaration: str, *, timeout_s: float = DECLARE_TIMEOUT_S) -> pb.Plan:
        """What applying this YAML would change, cost and delete; changes nothing."""
        request = pb.PlanModelRequest(declaration=declaration)
        return self._client.call(self._stub.PlanModel, request, timeout_s=timeout_s).plan

    def apply(
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
        response = self._client.call(
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
        ready = self._client.wait(operation, on_progress=progress, timeout_s=timeout_s)
        return Applied(response.plan, cast(pb.Model, ready), None)

    def lock(self, declaration: str, *, timeout_s: float = DECLARE_TIMEOUT_S) -> pb.LockModelResponse:
        """The declaration with its moving references resolved to commits and digests."""
        request = pb.LockModelRequest(declaration=declaration)
        return self._client.call(self._stub.LockModel, request, timeout_s=timeout_s)

    def get(self, model: str) -> pb.Model:
        """Declaration and status."""
        return self._client.call(self._stub.GetModel, pb.GetModelRequest(name=model_name(model)))

    def list(self) -> Iterator[pb.Model]:
        """All models, page by page as they are asked for."""
        token = ""
        while True:
            page = self._client.call(self._stub.ListModels, pb.ListModelsRequest(page_token=token))
            yield from page.models
            token = page.next_page_token
            if not token:
                return

    def delete(self, model: str, *, etag: str = "") -> None:
        """Deletes the model, its sums, versions and exports. Raises Conflict where `etag` is stale."""
        self._client.call(self._stub.DeleteModel, pb.DeleteModelRequest(name=model_name(model), etag=etag))

    def version(self, model: str, version: str | int = "stable") -> pb.Version:
        """One version: a number, `stable` or `latest`."""
        return self._client.call(self._stub.GetVersion, pb.GetVersionRequest(name=version_name(model, version)))

    def versions(self, model: str) -> Iterator[pb.Version]:
        """All versions, page by page as they are asked for."""
        token = ""
        while True:
            request = pb.ListVersionsRequest(parent=model_name(model), page_token=token)
            page = self._client.call(self._stub.ListVersions, request)
            yield from page.versions
            token = page.next_page_token
            if not token:
                return

    def promote(self, model: str, version: str | int = "latest", *, etag: str = "") -> pb.Model:
        """Points `stable` at a version. Raises FailedPrecondition (`GATE_FAILED`) where it does not pass the gate."""
        request = pb.PromoteVersionRequest(name=version_name(model, version), etag=etag)
        return self._client.call(self._stub.PromoteVersion, request)

    def rollback(self, model: str, version: int = 0, *, canary: bool = False, etag: str = "") -> pb.Model:
        """Points `stable` back (0 = the newest earlier one that passed its gate) and pauses automatic promotion; an
        open canary ends. `canary`: withdraws that alone. Raises FailedPrecondition (`NO_CANARY`)."""
        request = pb.RollbackModelRequest(name=model_name(model), version=version, canary=canary, etag=etag)
        return self._client.call(self._stub.RollbackModel, request)

    def clients(self, model: str, *, head_change: bool = False) -> Iterator[clients_pb2.ModelClient]:
        """Who the model learns from, those that sent most first, page by page as they are asked for.

        `head_change`: with how far the head would move without each, where the model keeps privacy.client_sums: the
        server solves a head for each. Raises FailedPrecondition (`NO_CLIENT_SUMS`).
        """
        token = ""
        while True:
            request = clients_pb2.ListClientsRequest(
                parent=model_name(model), page_token=token, head_change=head_change
            )
            page = self._client.call(self._clients.ListClients, request)
            yield from page.clients
            token = page.next_page_token
            if not token:
                return

    def quarantine(self, model: str, client: str) -> clients_pb2.ModelClient:
        """From now on nothing of this client is learned: its batches are refused (`QUARANTINED`) until `release`, over
        restarts of the server too. What was learned of it stays. Raises NotFound for a client that never came."""
        request = clients_pb2.QuarantineClientRequest(parent=model_name(model), client=client)
        return self._client.call(self._clients.QuarantineClient, request).client

    def release(self, model: str, client: str) -> clients_pb2.ModelClient:
        """Ends a client's quarantine. What was refused meanwhile is not learned; it may send that again."""
        request = clients_pb2.ReleaseClientRequest(parent=model_name(model), client=client)
        return self._client.call(self._clients.ReleaseClient, request).client

    def check_in(self, request: fleet_pb2.CheckInRequest) -> fleet_pb2.CheckInResponse:
        """As a device: which version is wanted here, told how the present one fares. A client without a `client_id` of
        its own is not counted."""
        return self._client.call(self._fleet.CheckIn, request)

    def probe(self, model: str, *, timeout_s: float = PROBE_TIMEOUT_S) -> pb.ModelProbe:
        """How well the backbone fits what was learned, and what it costs.

        Raises FailedPrecondition (`EMPTY_MEMORY`, `ONE_CLASS`) where there is too little to judge.
        """
        request = pb.ProbeModelRequest(name=model_name(model))
        return self._client.call(self._stub.ProbeModel, request, timeout_s=timeout_s)

    def probe_inputs(self, model: str, samples: SampleInput) -> pb.InputProbe:
        """What images (files or arrays, at most 256) look like beside what the backbone expects; learns nothing."""
        request = pb.ProbeInputsRequest(name=model_name(model), samples=to_message(samples))
        return self._client.call(self._stub.ProbeInputs, request)

    def upgrade_backbone(
        self,
        model: str,
        declaration: str,
        calibration: Iterable[SampleInput],
        *,
        max_drop: float | None = None,
        min_agreement: float | None = None,
        max_unseen_classes: int = 0,
        dry_run: bool = False,
        check: bool = True,
        progress: ProgressCallback | None = None,
        on_fed: FedCallback | None = None,
    ) -> pb.UpgradeReport:
        """Moves a model with what it has learned to the backbone of `declaration`, by unlabelled samples.

        `calibration`: batches that show every class, 1,000 samples or more; both backbones see them, nothing of them is
        stored. Half a minute or more may pass after the last; the model learns and serves meanwhile. `max_drop`:
        largest bound of the accuracy that this may cost (0.1); `min_agreement`: of old and new decisions (0.8);
        `dry_run`: only the figures. `on_fed` hears how many samples were taken.

        Raises FailedPrecondition (`GATE_FAILED`) with the figures in words where the gate does not pass and nothing was
        changed; with `check=False` the report says so. InvalidArgument for what cannot be moved.
        """
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

        def requests() -> Iterator[pb.UpgradeBackboneRequest]:
            yield session.open_request()
            try:
                for samples in calibration:
                    yield from session.sample_requests(samples)
            except Exception as error:
                session.failure = error
                raise

        call = self._stub.UpgradeBackbone(requests(), metadata=self._client.metadata)
        try:
            for response in call:
                session.hear(response)
        except grpc.RpcError as error:
            raise session.failure or from_rpc_error(error) from None
        finally:
            call.cancel()
        return session.result()
