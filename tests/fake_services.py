"""Models, operations, predictions and exports of the FakeServer: see tests/fake_server.py."""

from __future__ import annotations

import hashlib
import time
import zlib
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import yaml
from google.longrunning import operations_grpc_pb2, operations_proto_pb2
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from everlearn_protos.arrays import from_tensor, to_tensor
from everlearn_protos.v1 import (
    export_pb2,
    export_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    predict_pb2,
    predict_pb2_grpc,
    server_info_pb2,
    server_info_pb2_grpc,
)

if TYPE_CHECKING:
    from tests.fake_server import FakeServer


def abort(
    context: grpc.ServicerContext,
    code: str,
    message: str,
    *,
    reason: str = "",
    field: str = "",
    retry_after_s: float = 0.0,
    metadata: dict[str, str] | None = None,
) -> Any:
    """Ends the call with a rich status."""
    status = rich_status(code, message, reason=reason, field=field, retry_after_s=retry_after_s, metadata=metadata)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(grpc.StatusCode[code], message)


def rich_status(
    code: str,
    message: str,
    *,
    reason: str = "",
    field: str = "",
    retry_after_s: float = 0.0,
    metadata: dict[str, str] | None = None,
) -> Any:
    """google.rpc.Status with the details that everlearn sends."""
    details = []
    if reason or field:
        about = {**(metadata or {}), **({"field": field} if field else {})}
        details.append(error_details_pb2.ErrorInfo(reason=reason or "INVALID", domain="everlearn", metadata=about))
    if field and code == "INVALID_ARGUMENT":
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if retry_after_s:
        delay = duration_pb2.Duration(nanos=int(retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=code_pb2.Code.Value(code), message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


class Models(models_pb2_grpc.ModelServiceServicer):
    def __init__(self, server: FakeServer) -> None:
        self.s = server

    def _plan(self, text: str, context: grpc.ServicerContext) -> tuple[str, models_pb2.Plan]:
        try:
            new = yaml.safe_load(text)
            name = f"models/{new['metadata']['name']}"
        except (yaml.YAMLError, KeyError, TypeError):
            abort(context, "INVALID_ARGUMENT", "no name", reason="INVALID_DECLARATION", field="metadata.name")
        if "sepc" in new:
            abort(context, "INVALID_ARGUMENT", "unknown key sepc; did you mean spec?", field="sepc")
        old = self.s.models.get(name)
        filled = yaml.safe_dump(new, sort_keys=False)
        changes, before = [], yaml.safe_load(old.declaration)["spec"] if old else {}
        for key, value in new["spec"].items():
            if value != before.get(key):
                kind = models_pb2.Change.REPLACE if old and key == "backbone" else models_pb2.Change.LIVE
                was = str(before.get(key, ""))
                change = models_pb2.Change(field=f"spec.{key}", before=was, after=str(value))
                setattr(change, "class", kind)
                changes.append(change)
        action = ("change" if changes else "none") if old else "create"
        replaces = any(getattr(c, "class") == models_pb2.Change.REPLACE for c in changes)
        etag = old.etag if old else ""
        plan = models_pb2.Plan(
            id=hashlib.sha256((filled + etag).encode()).hexdigest()[:12],
            action=action,
            changes=changes,
            deletions=["the memory: 10 samples of 2 classes"] if replaces else [],
            cost={"download_bytes": 1e6},
            declaration=filled,
        )
        return name, plan

    def PlanModel(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        time.sleep(self.s.faults.declare_delay_s)
        return models_pb2.PlanModelResponse(plan=self._plan(request.declaration, context)[1])

    def ApplyModel(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        time.sleep(self.s.faults.declare_delay_s)
        name, plan = self._plan(request.declaration, context)
        if request.plan_id and request.plan_id != plan.id:
            abort(context, "ABORTED", f"plan {request.plan_id} is stale", reason="STALE", field="plan_id")
        if plan.deletions and not request.allow_replace and not request.dry_run:
            abort(context, "FAILED_PRECONDITION", "it replaces", reason="NEEDS_CONSENT", field="allow_replace")
        if request.dry_run or plan.action == "none":
            return models_pb2.ApplyModelResponse(plan=plan, model=self.s.models.get(name))
        generation = self.s.models[name].generation + 1 if name in self.s.models else 1
        model = models_pb2.Model(name=name, declaration=plan.declaration, generation=generation, etag=str(generation))
        model.status.state = models_pb2.ModelStatus.READY
        self.s.models[name] = model
        operation = self._operation(name, model, fails="broken" in plan.declaration)
        return models_pb2.ApplyModelResponse(plan=plan, operation=operation, model=model)

    def _operation(self, name: str, model: models_pb2.Model, *, fails: bool) -> Any:
        steps = []
        for stage, done in (("download", 10), ("build", 100), ("ready", 100)):
            step = operations_proto_pb2.Operation(name="operations/1", done=stage == "ready")
            step.metadata.Pack(models_pb2.ApplyProgress(model=name, stage=stage, bytes_done=done, bytes_total=100))
            steps.append(step)
        if fails:
            status = rich_status(
                "FAILED_PRECONDITION", "digest differs", reason="DIGEST_MISMATCH", field="spec.backbone"
            )
            steps[-1].error.CopyFrom(status)
        else:
            steps[-1].response.Pack(model)
        self.s.operations["operations/1"] = steps
        return steps.pop(0)

    def LockModel(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        time.sleep(self.s.faults.declare_delay_s)
        return models_pb2.LockModelResponse(declaration=request.declaration + "# locked\n", lock={"revision": "a" * 40})

    def _get(self, name: str, context: grpc.ServicerContext) -> models_pb2.Model:
        if name not in self.s.models:
            abort(context, "NOT_FOUND", f"there is no {name}", reason="NOT_FOUND", field="name")
        return self.s.models[name]

    def GetModel(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return self._get(request.name, context)

    def ListModels(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        names = sorted(self.s.models)
        at = int(request.page_token or 0)
        more = str(at + 2) if at + 2 < len(names) else ""
        return models_pb2.ListModelsResponse(
            models=[self.s.models[n] for n in names[at : at + 2]], next_page_token=more
        )

    def DeleteModel(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        model = self._get(request.name, context)
        if request.etag and request.etag != model.etag:
            abort(context, "ABORTED", "stale etag", reason="STALE", field="etag")
        del self.s.models[request.name]
        return models_pb2.DeleteModelResponse()

    def GetVersion(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return models_pb2.Version(name=request.name, number=1, head="balanced_ridge", sample_count=10)

    def ListVersions(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._get(request.parent, context)
        numbers, at = [1, 2, 3], int(request.page_token or 0)
        versions = [
            models_pb2.Version(name=f"{request.parent}/versions/{n}", number=n, gate_passed=True)
            for n in numbers[at : at + 2]
        ]
        return models_pb2.ListVersionsResponse(versions=versions, next_page_token="2" if at == 0 else "")

    def PromoteVersion(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        parent, version = request.name.split("/versions/")
        if version == "9":
            abort(context, "FAILED_PRECONDITION", "accuracy is below the gate", reason="GATE_FAILED")
        model = self._get(parent, context)
        model.status.aliases["stable"] = 3 if version == "latest" else int(version)
        return model

    def RollbackModel(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        model = self._get(request.name, context)
        model.status.aliases["stable"] = request.version or model.status.aliases["stable"] - 1
        model.status.promotion_paused = True
        return model


class Operations(operations_grpc_pb2.OperationsServicer):
    def __init__(self, server: FakeServer) -> None:
        self.s = server

    def GetOperation(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        steps = self.s.operations[request.name]
        return steps.pop(0) if len(steps) > 1 else steps[0]


class Predict(predict_pb2_grpc.PredictServiceServicer):
    def __init__(self, server: FakeServer) -> None:
        self.s = server

    def _wrong(self, request: predict_pb2.PredictRequest) -> str:
        for row, image in enumerate(request.samples.encoded_images.images):
            if not image.startswith(b"\x89PNG"):
                return f"samples.encoded_images.images[{row}]"
        return ""

    def _predict(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        form = request.samples.WhichOneof("form")
        if form == "encoded_images":
            count = len(request.samples.encoded_images.images)
        else:
            count = len(from_tensor(getattr(request.samples, form)))
        labels = ["cat", "dog"]
        top = [predict_pb2.ScoredLabel(label=x, index=i, score=0.75 - i / 2) for i, x in enumerate(labels)]
        response = predict_pb2.PredictResponse(version="models/digits/versions/1", labels=labels, trunk_ms=2.0)
        for _ in range(count):
            response.predictions.add(top=top[: request.top_k or 1])
        if request.scores:
            response.scores.CopyFrom(to_tensor(np.tile(np.float32([0.75, 0.25]), (count, 1))))
        return response

    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.s.calls["Predict"] += 1
        self.s.metadata.append(dict(context.invocation_metadata()))
        if self.s.faults.unavailable_calls:
            self.s.faults.unavailable_calls -= 1
            abort(context, "UNAVAILABLE", "not now")
        if not request.name.startswith("models/digits"):
            abort(context, "NOT_FOUND", f"there is no {request.name}", reason="NOT_FOUND", field="name")
        if field := self._wrong(request):
            abort(context, "INVALID_ARGUMENT", "not a JPEG, PNG or WebP file", reason="INVALID_INPUT", field=field)
        return self._predict(request)

    def PredictStream(self, request_iterator: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        for request in request_iterator:
            if field := self._wrong(request):
                error = predict_pb2.PredictError(code="INVALID_ARGUMENT", field=field, message="not an image")
                yield predict_pb2.PredictStreamResponse(error=error)
            else:
                yield predict_pb2.PredictStreamResponse(response=self._predict(request))


class Export(export_pb2_grpc.ExportServiceServicer):
    def __init__(self, server: FakeServer) -> None:
        self.s = server

    def _export(self) -> export_pb2.Export:
        files = [
            export_pb2.ExportFile(file_name=n, size_bytes=len(d), sha256=hashlib.sha256(d).hexdigest())
            for n, d in self.s.files.items()
        ]
        return export_pb2.Export(
            name="models/digits/exports/1", version="models/digits/versions/1", files=files, probes=16
        )

    def CreateExport(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        operation = operations_proto_pb2.Operation(name="operations/export", done=True)
        operation.response.Pack(self._export())
        self.s.operations[operation.name] = [operation]
        return operation

    def ListExports(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return export_pb2.ListExportsResponse(exports=[self._export()])

    def DownloadExport(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        data, size = self.s.files[request.file_name], 1000
        self.s.downloads.append(request.offset)
        cut = self.s.faults.cut_download_after.pop(0) if self.s.faults.cut_download_after else None
        for sent, offset in enumerate(range(request.offset, len(data), size)):
            if cut is not None and sent >= cut:
                abort(context, "UNAVAILABLE", "cut")
            chunk, crc = data[offset : offset + size], zlib.crc32(data[offset : offset + size])
            if self.s.chunks in self.s.faults.corrupt_download_chunks:
                chunk = bytes([chunk[0] ^ 1]) + chunk[1:]
            self.s.chunks += 1
            yield export_pb2.DownloadExportResponse(
                offset=offset, data=chunk, crc32=crc, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
            )


class Info(server_info_pb2_grpc.ServerInfoServiceServicer):
    def __init__(self, server: FakeServer) -> None:
        self.s = server

    def GetServerInfo(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return server_info_pb2.ServerInfo(
            version="0.1.0", timeline=self.s.timeline, heads=["ridge"], declaration_schema='{"title": "Model"}'
        )
