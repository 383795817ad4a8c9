"""Which tensors a model takes and gives, and tensor bytes to samples and back. Texts follow Triton's.

Axes: B samples in a request, C classes, d features, H W height and width in pixels.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from everlearn.errors import InputError, NotFoundError
from everlearn.inputs.samples import EncodedImages, Features, Images, Pixels, Samples, Tensors, Texts
from everlearn.values import Front, Task, TensorFront, TextFront
from everlearn_server.engine.serving import Snapshot

MAX_BATCH = 1024
"""Samples in one request."""

Datatype = Literal["UINT8", "FP32", "INT64", "BYTES", "BOOL"]


@dataclass(frozen=True)
class TensorSpec:
    """Name, datatype and shape as ModelMetadata tells them; -1 is any size."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


_NUMPY: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("u1"), "FP32": np.dtype("<f4")}
_CONTENTS = {"UINT8": "uint_contents", "FP32": "fp32_contents", "BYTES": "bytes_contents"}


def input_specs(snapshot: Snapshot) -> Mapping[str, TensorSpec]:
    """The inputs of a model; a request gives exactly one."""
    return _input_specs(snapshot.front, snapshot.trunk.feature_dim)


def output_specs(snapshot: Snapshot) -> Mapping[str, TensorSpec]:
    """The outputs of a model version."""
    head = snapshot.head
    return _output_specs(len(head.labels), head.task, tells_novelty=head.tells_novelty)


@lru_cache(maxsize=1024)
def _input_specs(front: Front, feature_dim: int) -> Mapping[str, TensorSpec]:
    features = TensorSpec("features", "FP32", (-1, feature_dim))
    if isinstance(front, TensorFront):
        specs = [TensorSpec("tensor", "FP32", (-1, *front.shape)), features]
    elif isinstance(front, TextFront):
        specs = [TensorSpec("text", "BYTES", (-1,)), features]
    else:
        specs = [
            TensorSpec("image", "UINT8", (-1, -1, -1, 3)),
            TensorSpec("encoded", "BYTES", (-1,)),
            TensorSpec("pixels", "FP32", (-1, *front.sample_shape)),
            features,
        ]
    return {spec.name: spec for spec in specs}


@lru_cache(maxsize=1024)
def _output_specs(classes: int, task: Task, *, tells_novelty: bool) -> Mapping[str, TensorSpec]:
    scores = TensorSpec("values" if task == "regression" else "scores", "FP32", (-1, classes))
    answers = {
        "classification": [TensorSpec("label", "BYTES", (-1,)), TensorSpec("label_index", "INT64", (-1,))],
        "multilabel": [TensorSpec("present", "BOOL", (-1, classes))],
        "regression": [],
    }
    novelty = (TensorSpec("novelty", "FP32", (-1,)),) if tells_novelty else ()
    specs = (scores, *answers[task], *novelty)
    return {spec.name: spec for spec in specs}


def read_samples(request: Any, raw: list[memoryview], snapshot: Snapshot) -> Samples:
    """The one input of a ModelInferRequest as samples: views on the message where alignment allows, never two copies.

    Raises InputError (name, datatype, shape, byte count, value out of range), NotFoundError (shared memory).
    """
    specs = input_specs(snapshot)
    model = snapshot.model
    if len(request.inputs) != 1:
        raise InputError(
            f"expected 1 input but got {len(request.inputs)} inputs for model '{model}'; give one of {_names(specs)}",
            field="inputs",
        )
    tensor = request.inputs[0]
    spec = specs.get(tensor.name)
    if spec is None:
        raise InputError(
            f"unexpected inference input '{_short(tensor.name)}' for model '{model}'; give one of {_names(specs)}",
            field="inputs[0].name",
        )
    refuse_shared_memory(tensor.parameters, "inputs[0].parameters")
    shape = _checked_shape(tensor, spec, model)
    if raw:
        return _from_raw(spec, shape, tensor, raw, model)
    return _from_contents(spec, shape, tensor.contents, model)


def refuse_shared_memory(parameters: Any, field: str) -> None:
    """Raises NotFoundError where a tensor refers to a shared-memory region: none can be registered here."""
    if "shared_memory_region" in parameters:
        region = _short(parameters["shared_memory_region"].string_param)
        raise NotFoundError(
            f"Unable to find shared memory region: '{region}'; this server has none, send the tensor in the message",
            field=f"{field}[shared_memory_region]",
        )


def pack_bytes(elements: Iterable[bytes]) -> bytes:
    """Raw BYTES: each element after its length as little-endian uint32.

    >>> pack_bytes([b"ab", b""])
    b'\\x02\\x00\\x00\\x00ab\\x00\\x00\\x00\\x00'
    """
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


def _checked_shape(tensor: Any, spec: TensorSpec, model: str) -> tuple[int, ...]:
    if tensor.datatype != spec.datatype:
        raise InputError(
            f"inference input '{spec.name}' data-type is '{_short(tensor.datatype)}', model '{model}' expects "
            f"'{spec.datatype}'",
            field="inputs[0].datatype",
        )
    shape = tuple(tensor.shape[: len(spec.shape) + 1])
    fits = len(shape) == len(spec.shape) and all(
        size == wanted if wanted >= 0 else size >= 1 for size, wanted in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        got = list(shape) if len(tensor.shape) == len(shape) else f"{len(tensor.shape)} axes"
        raise InputError(
            f"unexpected shape for input '{spec.name}' for model '{model}'. Expected {list(spec.shape)} "
            f"(-1 is any size of at least 1), got {got}",
            field="inputs[0].shape",
        )
    if shape[0] > MAX_BATCH:
        raise InputError(
            f"inference request batch-size must be <= {MAX_BATCH} for model '{model}', got {shape[0]}",
            field="inputs[0].shape",
        )
    return shape


def _from_raw(spec: TensorSpec, shape: tuple[int, ...], tensor: Any, raw: list[memoryview], model: str) -> Samples:
    if tensor.HasField("contents"):
        raise InputError(
            f"contents field must not be specified when using raw_input_contents for '{spec.name}' for model '{model}'",
            field="inputs[0].contents",
        )
    if len(raw) != 1:
        raise InputError(
            f"expected 1 raw_input_contents entry, one for each input, but got {len(raw)} for model '{model}'",
            field="raw_input_contents",
        )
    if spec.datatype == "BYTES":
        return _from_bytes(spec, _unpack_bytes(spec, raw[0], shape[0], model), model, "raw_input_contents[0]")
    dtype = _NUMPY[spec.datatype]
    expected = math.prod(shape) * dtype.itemsize
    if len(raw[0]) != expected:
        raise InputError(
            f"input byte size mismatch for input '{spec.name}' for model '{model}'. Expected {expected} for shape "
            f"{list(shape)}, got {len(raw[0])}",
            field="raw_input_contents[0]",
        )
    array = np.frombuffer(raw[0], dtype)
    if not array.flags.aligned:
        # A view begins wherever the field lies in the message, and kernels want alignment. Copying the bytes costs
        # half of what NumPy takes to copy an unaligned array.
        array = np.frombuffer(bytes(raw[0]), dtype)
    return _samples(spec.name, array.reshape(shape))


def _unpack_bytes(spec: TensorSpec, raw: memoryview, count: int, model: str) -> tuple[bytes, ...]:
    elements: list[bytes] = []
    at = 0
    while at + 4 <= len(raw) and len(elements) < count:
        size = int.from_bytes(raw[at : at + 4], "little")
        at += 4
        if at + size > len(raw):
            raise InputError(
                f"unexpected end of input '{spec.name}' for model '{model}': element {len(elements)} says it has "
                f"{size} bytes, {len(raw) - at} are left",
                field="raw_input_contents[0]",
            )
        elements.append(bytes(raw[at : at + size]))
        at += size
    if len(elements) != count or at != len(raw):
        raise InputError(
            f"unexpected number of string elements in input '{spec.name}' for model '{model}'. Expected {count} with "
            f"a 4-byte little-endian length each, got {len(elements)} and {len(raw) - at} further bytes",
            field="raw_input_contents[0]",
        )
    return tuple(elements)


def _from_contents(spec: TensorSpec, shape: tuple[int, ...], contents: Any, model: str) -> Samples:
    wanted = _CONTENTS[spec.datatype]
    others = [field.name for field, _ in contents.ListFields() if field.name != wanted]
    if others:
        raise InputError(
            f"input '{spec.name}' for model '{model}' has {others[0]}; {spec.datatype} goes into {wanted} or "
            "raw_input_contents",
            field=f"inputs[0].contents.{others[0]}",
        )
    values = getattr(contents, wanted)
    field = f"inputs[0].contents.{wanted}"
    if len(values) != math.prod(shape):
        raise InputError(
            f"unexpected number of elements for input '{spec.name}' for model '{model}'. Expected {math.prod(shape)} "
            f"for shape {list(shape)}, got {len(values)}",
            field=field,
        )
    if spec.datatype == "BYTES":
        return _from_bytes(spec, tuple(values), model, field)
    if spec.datatype == "FP32":
        return _samples(spec.name, np.array(values, np.float32).reshape(shape))
    wide = np.array(values, np.uint32)
    if wide.max() > 255:
        index = int(wide.argmax())
        raise InputError(
            f"input '{spec.name}' for model '{model}' has {int(wide[index])} at element {index}; UINT8 is 0 to 255",
            field=field,
        )
    return _samples(spec.name, wide.astype(np.uint8).reshape(shape))


def _samples(name: str, array: npt.NDArray[Any]) -> Samples:
    if name == "image":
        return Images(array)
    if sys.byteorder == "big":
        array = array.astype(np.float32)
    forms: dict[str, type[Pixels] | type[Tensors] | type[Features]] = {"pixels": Pixels, "tensor": Tensors}
    return forms.get(name, Features)(array)


def _from_bytes(spec: TensorSpec, elements: tuple[bytes, ...], model: str, field: str) -> Samples:
    if spec.name == "encoded":
        return EncodedImages(elements)
    texts: list[str] = []
    for index, element in enumerate(elements):
        try:
            texts.append(element.decode())
        except UnicodeDecodeError:
            raise InputError(
                f"input '{spec.name}' for model '{model}' has an element {index} that is not UTF-8; encode it so",
                field=field,
            ) from None
    return Texts(tuple(texts))


def _names(specs: Mapping[str, TensorSpec]) -> str:
    return ", ".join(f"'{name}'" for name in specs)


def _short(text: str) -> str:
    return text if len(text) <= 64 else text[:61] + "..."
