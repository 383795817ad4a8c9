"""What a model says of itself: ModelMetadata and ModelConfig, in the words that Triton's tools know."""

from __future__ import annotations

import json
from typing import Any

from everlearn_protos.oip import message
from everlearn_server.engine.serving import Snapshot
from everlearn_server.rpc.oip_tensors import TensorSpec, input_specs, output_specs

PLATFORM = "onnxruntime_onnx"
"""Triton's name for a model that runs in ONNX Runtime; tools choose by it."""

_CONFIG_TYPE = {
    "UINT8": "TYPE_UINT8",
    "FP32": "TYPE_FP32",
    "INT64": "TYPE_INT64",
    "BYTES": "TYPE_STRING",
    "BOOL": "TYPE_BOOL",
}


def metadata_message(snapshot: Snapshot, versions: list[int]) -> Any:
    """`inference.ModelMetadataResponse`."""
    response = message("ModelMetadataResponse")(
        name=snapshot.model, versions=[str(version) for version in versions], platform=PLATFORM
    )
    for target, specs in ((response.inputs, input_specs(snapshot)), (response.outputs, output_specs(snapshot))):
        for spec in specs.values():
            target.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    return response


def config_message(snapshot: Snapshot) -> Any:
    """`inference.ModelConfigResponse`.

    `max_batch_size` is 0 and `dims` have the batch axis: Triton's other form puts [1] where a sample is one value, and
    then its clients send [B, 1] for image files and expect [B, 1] labels, against ModelMetadata.
    """
    response = message("ModelConfigResponse")()
    config = response.config
    config.name = snapshot.model
    config.platform = PLATFORM
    config.backend = "onnxruntime"
    for spec in input_specs(snapshot).values():
        config.input.add(**_config_tensor(spec), optional=True)
    for spec in output_specs(snapshot).values():
        config.output.add(**_config_tensor(spec))
    config.parameters["feature_digest"].string_value = snapshot.feature_digest
    if snapshot.head.task != "classification":  # whose labels are an output themselves
        config.parameters["task"].string_value = snapshot.head.task
        names = "outputs" if snapshot.head.task == "regression" else "labels"
        config.parameters[names].string_value = json.dumps(snapshot.head.labels, ensure_ascii=False)
    return response


def _config_tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "data_type": _CONFIG_TYPE[spec.datatype], "dims": spec.shape}
