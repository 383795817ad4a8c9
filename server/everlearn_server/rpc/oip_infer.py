"""One inference call: what a ModelInferRequest asks for, and the response that carries the scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from everlearn.errors import InputError
from everlearn.metrics.label_sets import THRESHOLD
from everlearn.values import UNKNOWN
from everlearn_protos.oip import message
from everlearn_server.engine.serving import Snapshot
from everlearn_server.rpc.oip_tensors import output_specs, pack_bytes, refuse_shared_memory

MAX_CLASSIFICATIONS = 65_536
"""`score:index:label` strings in one response; each is made by Python on the loop that answers everyone."""
MAX_TIMEOUT_US = 24 * 3600 * 1_000_000
"""Longest `timeout` that means anything: a day."""


@dataclass(frozen=True)
class Output:
    """One requested output. `classes`: so many best as `score:index:label` (0: the tensor itself)."""

    name: str
    classes: int = 0


def read_outputs(request: Any, snapshot: Snapshot) -> list[Output]:
    """The requested outputs in the requested order; all of them where none is requested.

    Raises InputError (unknown, twice, classification of another output than `scores`), NotFoundError (shared memory).
    """
    specs = output_specs(snapshot)
    if not request.outputs:
        return [Output(name) for name in specs]
    outputs: list[Output] = []
    for index, tensor in enumerate(request.outputs):
        field = f"outputs[{index}]"
        if tensor.name not in specs:
            raise InputError(
                f"unexpected inference output '{tensor.name[:64]}' for model '{snapshot.model}'; it has "
                + ", ".join(f"'{name}'" for name in specs),
                field=f"{field}.name",
            )
        if any(output.name == tensor.name for output in outputs):
            raise InputError(f"output '{tensor.name}' is requested twice; request it once", field=f"{field}.name")
        refuse_shared_memory(tensor.parameters, f"{field}.parameters")
        outputs.append(Output(tensor.name, _classes(tensor, field)))
    return outputs


def read_timeout_s(request: Any) -> float | None:
    """The parameter `timeout` in seconds; None where there is none, or 0, which is how Triton says none.

    Raises InputError (not an integer, negative, over MAX_TIMEOUT_US).
    """
    timeout_us = _integer(request.parameters, "timeout", "parameters")
    if not timeout_us:
        return None
    if not 0 < timeout_us <= MAX_TIMEOUT_US:
        raise InputError(
            f"parameter 'timeout' is {timeout_us}; it must be 0 (none) to {MAX_TIMEOUT_US} microseconds",
            field="parameters[timeout]",
        )
    return timeout_us / 1e6


def build_response(
    request_id: str,
    snapshot: Snapshot,
    outputs: list[Output],
    scores_BC: npt.NDArray[np.float32],
    novelty_B: npt.NDArray[np.float32] | None = None,
) -> Any:
    """The ModelInferResponse. All tensors are raw: tritonclient's as_numpy reads nothing else.

    Raises InputError where more than MAX_CLASSIFICATIONS strings are asked for.
    """
    response = message("ModelInferResponse")(
        model_name=snapshot.model, model_version=str(snapshot.version), id=request_id
    )
    batch = len(scores_BC)
    best_B = scores_BC.argmax(axis=1)
    if novelty_B is not None:  # as the exported file has it
        best_B = np.where(novelty_B <= 1, best_B, UNKNOWN)
    for output in outputs:
        if output.name == "present":
            _add(response, "present", "BOOL", list(scores_BC.shape), (scores_BC >= THRESHOLD).tobytes())
        elif output.classes:
            count = min(output.classes, scores_BC.shape[1])
            _add(response, "scores", "BYTES", [batch, count], _classification(snapshot, scores_BC, count))
        elif output.name in ("scores", "values"):
            raw = np.ascontiguousarray(scores_BC, "<f4").tobytes()
            _add(response, output.name, "FP32", list(scores_BC.shape), raw)
        elif output.name == "novelty" and novelty_B is not None:
            _add(response, "novelty", "FP32", [batch], np.ascontiguousarray(novelty_B, "<f4").tobytes())
        elif output.name == "label_index":
            _add(response, "label_index", "INT64", [batch], best_B.astype("<i8").tobytes())
        else:
            labels = (*snapshot.head.labels, "")  # the last, at -1, of what is unknown
            _add(response, "label", "BYTES", [batch], pack_bytes(labels[index].encode() for index in best_B))
    return response


def _add(response: Any, name: str, datatype: str, shape: list[int], raw: bytes) -> None:
    response.outputs.add(name=name, datatype=datatype, shape=shape)
    response.raw_output_contents.append(raw)


def _classification(snapshot: Snapshot, scores_BC: npt.NDArray[np.float32], count: int) -> bytes:
    if len(scores_BC) * count > MAX_CLASSIFICATIONS:
        raise InputError(
            f"{len(scores_BC)} samples with {count} classes each are more than {MAX_CLASSIFICATIONS} strings; ask for "
            "fewer classes, or for 'scores' without classification",
            field="outputs.parameters[classification]",
        )
    # Stable: of equal scores the lower index comes first, as argmax has it.
    order_BK = np.argsort(-scores_BC, axis=1, kind="stable")[:, :count]
    labels = snapshot.head.labels
    return pack_bytes(
        f"{row_C[index]:f}:{index}:{labels[index]}".encode()
        for row_C, order_K in zip(scores_BC, order_BK, strict=True)
        for index in order_K
    )


def _classes(tensor: Any, field: str) -> int:
    classes = _integer(tensor.parameters, "classification", f"{field}.parameters")
    if classes is None:
        return 0
    field = f"{field}.parameters[classification]"
    if classes < 0:
        raise InputError(f"parameter 'classification' is {classes}; it must be 0 (none) or a count", field=field)
    if classes and tensor.name != "scores":
        raise InputError(
            f"output '{tensor.name}' cannot be returned as classes; ask for the classes of 'scores'", field=field
        )
    return classes


def _integer(parameters: Any, name: str, field: str) -> int | None:
    if name not in parameters:
        return None
    parameter = parameters[name]
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in {"int64_param", "uint64_param"}:
        raise InputError(
            f"parameter '{name}' is a {kind or 'parameter without value'}; it must be an int64_param",
            field=f"{field}[{name}]",
        )
    return int(getattr(parameter, kind))
