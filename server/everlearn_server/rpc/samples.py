"""Wire samples <-> values. Arrays are views on the message's bytes: nothing is copied here."""

from __future__ import annotations

from typing import Any

import numpy as np

from everlearn.errors import InputError
from everlearn.inputs.samples import EncodedImages, Features, Images, Pixels, Samples, Tensors, Texts, Waiting
from everlearn.truth import LabelSets, Truth, Values
from everlearn_protos.arrays import from_tensor
from everlearn_protos.v1 import learn_pb2, tensor_pb2


def samples_of(message: tensor_pb2.Samples, *, field: str) -> Samples:
    """Raises InputError, with the path below `field`, for no form, a wrong dtype or rank, or inconsistent bytes."""
    form = message.WhichOneof("form")
    if message.ids:
        raise InputError(
            "ids are of samples that were predicted before, and for learning alone; send the samples in a form",
            field=f"{field}.ids",
        )
    if form is None:
        raise InputError("no samples; set encoded_images, images, pixels, texts, tensors or features", field=field)
    if form == "encoded_images":
        return EncodedImages(tuple(message.encoded_images.images))
    if form == "images":
        return Images(_array(message.images, np.dtype(np.uint8), 4, f"{field}.images"))
    if form == "pixels":
        return Pixels(_array(message.pixels, np.dtype(np.float32), 4, f"{field}.pixels"))
    if form == "texts":
        return Texts(tuple(message.texts.texts))
    if form == "tensors":
        # As many axes as the model's own samples have: whoever knows the model checks them.
        return Tensors(_array(message.tensors, np.dtype(np.float32), None, f"{field}.tensors"))
    return Features(_array(message.features, np.dtype(np.float32), 2, f"{field}.features"))


def learned_of(message: tensor_pb2.Samples, *, field: str) -> Samples | Waiting:
    """As `samples_of`, and ids of samples that were predicted before."""
    if not message.ids:
        return samples_of(message, field=field)
    if message.WhichOneof("form") is not None:
        raise InputError(f"ids and {message.WhichOneof('form')} are both set; send one of them", field=f"{field}.ids")
    return Waiting(tuple(message.ids))


def truth_of(batch: learn_pb2.Batch) -> Truth:
    """What is true of a batch's samples. Raises InputError where it comes in two forms, or as no array of floats."""
    forms = [name for name in ("labels", "label_sets") if len(getattr(batch, name))]
    forms += ["values"] if batch.HasField("values") else []
    if len(forms) > 1:
        raise InputError(f"{' and '.join(forms)} are both set; send the one of the model's task", field="batch.labels")
    if forms == ["label_sets"]:
        return LabelSets(tuple(tuple(each.labels) for each in batch.label_sets))
    if forms == ["values"]:
        return Values(_array(batch.values, np.dtype(np.float32), 2, "batch.values"))
    return tuple(batch.labels)


def _array(tensor: tensor_pb2.Tensor, dtype: np.dtype[np.generic], rank: int | None, field: str) -> Any:
    try:
        array = from_tensor(tensor)
    except ValueError as error:
        raise InputError(str(error), field=field) from None
    if array.dtype != dtype:
        raise InputError(f"data_type is {array.dtype}; it must be {dtype}", field=f"{field}.data_type")
    if rank is None and array.ndim < 2:
        raise InputError(f"shape {list(array.shape)} has no axis of a sample; send [N, *shape]", field=f"{field}.shape")
    if rank is not None and array.ndim != rank:
        raise InputError(
            f"shape {list(array.shape)} has {array.ndim} axes; it must have {rank}", field=f"{field}.shape"
        )
    return array
