"""everlearn.v1.ModelService: declarations and versions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

import grpc

from everlearn.errors import InvalidError
from everlearn_protos.v1 import models_pb2
from everlearn_server.engine.engine import Engine
from everlearn_server.engine.input_figures import input_figures
from everlearn_server.rpc import names, wire
from everlearn_server.rpc.messages import (
    input_probe_message,
    model_message,
    operation_message,
    plan_message,
    probe_message,
    version_message,
)
from everlearn_server.rpc.samples import samples_of
from everlearn_server.rpc.upgrade import upgrade


class ModelService:
    """Translates; the engine plans, applies and keeps."""

    NAME = "everlearn.v1.ModelService"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def handler(self) -> grpc.GenericRpcHandler:
        """To register with the server."""
        p = models_pb2
        return wire.service(
            self.NAME,
            {
                "PlanModel": wire.unary(p.PlanModelRequest, self.plan),
                "ApplyModel": wire.unary(p.ApplyModelRequest, self.apply),
                "LockModel": wire.unary(p.LockModelRequest, self.lock),
                "GetModel": wire.unary(p.GetModelRequest, self.get),
                "ListModels": wire.unary(p.ListModelsRequest, self.list),
                "DeleteModel": wire.unary(p.DeleteModelRequest, self.delete),
                "GetVersion": wire.unary(p.GetVersionRequest, self.get_version),
                "ListVersions": wire.unary(p.ListVersionsRequest, self.list_versions),
                "PromoteVersion": wire.unary(p.PromoteVersionRequest, self.promote),
                "RollbackModel": wire.unary(p.RollbackModelRequest, self.roll_back),
                "ProbeModel": wire.unary(p.ProbeModelRequest, self.probe),
                "ProbeInputs": wire.unary(p.ProbeInputsRequest, self.probe_inputs),
                "UpgradeBackbone": wire.bidirectional(self.upgrade),
            },
        )

    async def plan(self, request: models_pb2.PlanModelRequest, _: wire.Context) -> models_pb2.PlanModelResponse:
        """What applying would change."""
        plan = await self._engine.declarations.plan(request.declaration)
        return models_pb2.PlanModelResponse(plan=plan_message(plan))

    async def apply(self, request: models_pb2.ApplyModelRequest, _: wire.Context) -> models_pb2.ApplyModelResponse:
        """Plans, and does it unless it is a dry run."""
        if request.dry_run:
            plan = await self._engine.declarations.plan(request.declaration)
            return models_pb2.ApplyModelResponse(plan=plan_message(plan))
        plan, operation = await self._engine.declarations.apply(
            request.declaration,
            plan_id=request.plan_id,
            allow_replace=request.allow_replace,
            allow_loosen_retention=request.allow_loosen_retention,
        )
        return models_pb2.ApplyModelResponse(
            plan=plan_message(plan),
            operation=operation_message(operation) if operation else None,
            model=await model_message(self._engine, self._engine.model(plan.declaration.metadata.name)),
        )

    async def lock(self, request: models_pb2.LockModelRequest, _: wire.Context) -> models_pb2.LockModelResponse:
        """Pins moving references."""
        text, lock = await self._engine.declarations.lock(request.declaration)
        return models_pb2.LockModelResponse(declaration=text, lock=dict(lock))

    async def get(self, request: models_pb2.GetModelRequest, _: wire.Context) -> models_pb2.Model:
        """One model."""
        return await model_message(self._engine, self._engine.model(names.model_of(request.name)))

    async def list(self, request: models_pb2.ListModelsRequest, _: wire.Context) -> models_pb2.ListModelsResponse:
        """All models by name."""
        some, token = names.page(self._engine.models(), request.page_size, request.page_token)
        models = [await model_message(self._engine, self._engine.model(name), report=False) for name in some]
        return models_pb2.ListModelsResponse(models=models, next_page_token=token)

    async def delete(self, request: models_pb2.DeleteModelRequest, _: wire.Context) -> models_pb2.DeleteModelResponse:
        """Deletes a model and everything it learned."""
        await self._engine.declarations.delete(names.model_of(request.name), request.etag)
        return models_pb2.DeleteModelResponse()

    async def get_version(self, request: models_pb2.GetVersionRequest, _: wire.Context) -> models_pb2.Version:
        """One version."""
        name, version = names.version_of(request.name)
        model = self._engine.model(name)
        return version_message(model, model.book.find(version).record)

    async def list_versions(
        self, request: models_pb2.ListVersionsRequest, _: wire.Context
    ) -> models_pb2.ListVersionsResponse:
        """Stored versions, newest first."""
        model = self._engine.model(names.model_of(request.parent, field="parent"))
        some, token = names.page(model.book.records(), request.page_size, request.page_token)
        return models_pb2.ListVersionsResponse(
            versions=[version_message(model, record) for record in some], next_page_token=token
        )

    async def promote(self, request: models_pb2.PromoteVersionRequest, _: wire.Context) -> models_pb2.Model:
        """Points `stable` at a version."""
        name, version = names.version_of(request.name)
        if not version:
            raise InvalidError("no version is named; use models/{model}/versions/{number or latest}", field="name")
        return await model_message(self._engine, await self._engine.promote(name, version, request.etag))

    async def roll_back(self, request: models_pb2.RollbackModelRequest, _: wire.Context) -> models_pb2.Model:
        """Points `stable` back."""
        name = names.model_of(request.name)
        if request.version < 0:
            raise InvalidError(f"{request.version} is negative; 0 means the one before", field="version")
        if request.canary and request.version:
            raise InvalidError("withdraws the canary, and stable goes nowhere; leave one of them out", field="version")
        if request.canary:
            return await model_message(self._engine, await self._engine.withdraw_canary(name, request.etag))
        return await model_message(self._engine, await self._engine.roll_back(name, request.version, request.etag))

    async def probe(self, request: models_pb2.ProbeModelRequest, _: wire.Context) -> models_pb2.ModelProbe:
        """How well the backbone fits, from the memory alone."""
        name = names.model_of(request.name)
        return probe_message(name, await self._engine.probe(name))

    async def probe_inputs(self, request: models_pb2.ProbeInputsRequest, _: wire.Context) -> models_pb2.InputProbe:
        """What images look like beside what the backbone expects."""
        model = self._engine.model(names.model_of(request.name))
        samples = samples_of(request.samples, field="samples")
        return input_probe_message(*await input_figures(model, samples, self._engine.queue.images))

    def upgrade(
        self, requests: AsyncIterator[bytes], _: wire.Context
    ) -> AsyncGenerator[models_pb2.UpgradeBackboneResponse, None]:
        """To another backbone by a calibration stream."""
        return upgrade(self._engine, requests)
