"""everlearn.v1.ClientService: who a model learns from, and who no longer."""

from __future__ import annotations

from dataclasses import asdict, replace

import grpc

from everlearn.errors import InvalidError
from everlearn.spec.model import NAME
from everlearn_protos.v1 import clients_pb2 as p
from everlearn_server.engine.clients import ClientFigures, client_figures, quarantine
from everlearn_server.engine.engine import Engine
from everlearn_server.engine.influence import weighed
from everlearn_server.rpc import names, wire
from everlearn_server.rpc.moments import timestamp
from everlearn_server.rpc.rollout import device_message


class ClientService:
    """Translates; `engine.clients` counts and the writer keeps."""

    NAME = "everlearn.v1.ClientService"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def handler(self) -> grpc.GenericRpcHandler:
        """To register with the server."""
        return wire.service(
            self.NAME,
            {
                "ListClients": wire.unary(p.ListClientsRequest, self.list),
                "QuarantineClient": wire.unary(p.QuarantineClientRequest, self.quarantine),
                "ReleaseClient": wire.unary(p.ReleaseClientRequest, self.release),
            },
        )

    async def list(self, request: p.ListClientsRequest, _: wire.Context) -> p.ListClientsResponse:
        """Those that sent most first."""
        model = self._engine.model(names.model_of(request.parent, field="parent"), field="parent")
        found = await client_figures(model, await self._engine.downloads(model.name))
        some, token = names.page(found, request.page_size, request.page_token)
        if request.head_change:
            some = await weighed(model, some)
        return p.ListClientsResponse(clients=[_message(each) for each in some], next_page_token=token)

    async def quarantine(self, request: p.QuarantineClientRequest, _: wire.Context) -> p.QuarantineClientResponse:
        """Nothing of it is learned any more."""
        return p.QuarantineClientResponse(client=await self._set(request.parent, request.client, quarantined=True))

    async def release(self, request: p.ReleaseClientRequest, _: wire.Context) -> p.ReleaseClientResponse:
        """It is learned from again."""
        return p.ReleaseClientResponse(client=await self._set(request.parent, request.client, quarantined=False))

    async def _set(self, parent: str, client: str, *, quarantined: bool) -> p.ModelClient:
        model = self._engine.model(names.model_of(parent, field="parent"), field="parent")
        if not client:
            raise InvalidError("no client is named; `everlearn clients MODEL` lists them", field="client")
        if not names.NAME_PATTERN.fullmatch(client):
            raise InvalidError(names.unlike(client, NAME), field="client")
        downloads = await self._engine.downloads(model.name)
        return _message(await quarantine(model, client, downloads, quarantined=quarantined))


def _message(figures: ClientFigures) -> p.ModelClient:
    told = asdict(replace(figures, downloaded=None, device=None))
    del told["downloaded"], told["device"]
    message = p.ModelClient(**told)
    if figures.downloaded is not None:
        message.downloaded_version = figures.downloaded.version_number
        message.download_time.CopyFrom(timestamp(figures.downloaded.update_time_s))
    if figures.device is not None:
        message.device.CopyFrom(device_message(figures.device))
    return message
