"""Labelled batches as bytes and back: the wire's own message, so that a device's disk and the wire agree."""

from __future__ import annotations

from typing import cast

import numpy as np
from google.protobuf.message import DecodeError

from everlearn_client._inputs import BatchInput, as_batch
from everlearn_client.errors import DataLoss, InvalidArgument
from everlearn_client.resource_names import step_name
from everlearn_client.samples import Batch, Features, Pixels, SampleInput, Tensors, Texts, checked_rows, split_batch
from everlearn_client.targets import Truth
from everlearn_protos.arrays import from_tensor
from everlearn_protos.v1 import learn_pb2, tensor_pb2


def pack(batch: BatchInput, *, target_bytes: int, max_samples: int) -> list[tuple[bytes, int]]:
    """A batch as messages near `target_bytes`, each with its number of samples; paths are read now.

    Raises InvalidArgument where the batch is wrong, or a file cannot be read.
    """
    packed = []
    for part in split_batch(as_batch(batch), target_bytes=target_bytes, max_samples=max_samples):
        rows, targets = checked_rows(part)
        try:
            samples = rows.message()
        except OSError as error:
            raise InvalidArgument(f"{error.filename} cannot be read: {error.strerror}", field="samples") from None
        message = learn_pb2.Batch(samples=samples, step=step_name(part.step))
        targets.put(message)
        packed.append((message.SerializeToString(deterministic=True), len(rows)))
    return packed


def unpack(payload: bytes) -> Batch:
    """What `pack` packed. Raises DataLoss for anything else."""
    try:
        message = learn_pb2.Batch.FromString(payload)
        return Batch(_samples(message.samples), _truth(message), message.step)
    except (DecodeError, ValueError) as error:
        raise DataLoss(f"a record of the spool is no batch: {error}") from None


def _samples(samples: tensor_pb2.Samples) -> SampleInput:
    match samples.WhichOneof("form"):
        case "encoded_images":
            return list(samples.encoded_images.images)
        case "images":
            return from_tensor(samples.images).astype(np.uint8, copy=False)
        case "pixels":
            return Pixels(from_tensor(samples.pixels).astype(np.float32, copy=False))
        case "features":
            return Features(from_tensor(samples.features).astype(np.float32, copy=False))
        case "tensors":
            return Tensors(from_tensor(samples.tensors).astype(np.float32, copy=False))
        case "texts":
            return Texts(list(samples.texts.texts))
    raise ValueError("it has no samples")


def _truth(message: learn_pb2.Batch) -> Truth:
    if message.HasField("values"):
        return from_tensor(message.values).astype(np.float32, copy=False)
    if message.label_sets:
        return [list(each.labels) for each in message.label_sets]
    return cast(Truth, list(message.labels))
