"""What callers may hand over as a batch to learn."""

from __future__ import annotations

from everlearn_client.errors import InvalidArgument
from everlearn_client.resource_names import step_name
from everlearn_client.samples import (
    MESSAGE_LIMIT_BYTES,
    MESSAGE_TARGET_BYTES,
    Batch,
    Rows,
    SampleInput,
    Texts,
    checked_rows,
    cuts,
)
from everlearn_client.targets import Targets, Truth

BatchInput = Batch | tuple[SampleInput, Truth] | tuple[str, str]
"""Labelled samples, or a single text and its label."""


def as_batch(batch: BatchInput) -> Batch:
    """As a Batch. Raises InvalidArgument for anything else."""
    if isinstance(batch, Batch):
        return batch
    if not isinstance(batch, tuple) or len(batch) != 2:
        raise InvalidArgument(
            f"batches yields a {type(batch).__name__}; each must be Batch(samples, labels) or (samples, labels), or a "
            "text and its label",
            field="batches",
        )
    samples, labels = batch
    if isinstance(samples, str) and isinstance(labels, str):
        return Batch(Texts([samples]), [labels])
    return Batch(samples, labels)


def cut(batch: Batch, *, step: str, number: int | None, max_samples: int) -> list[tuple[Rows, Targets, str]]:
    """As messages, each with its step. `number`: of a batch that must stay one; None where it may be several.

    Raises InvalidArgument.
    """
    rows, targets = checked_rows(batch)
    step = step_name(batch.step) or step
    target = MESSAGE_TARGET_BYTES if number is None else MESSAGE_LIMIT_BYTES
    ranges = list(cuts(rows, targets, target_bytes=target, limit_bytes=MESSAGE_LIMIT_BYTES, rows=max_samples))
    if number is not None and len(ranges) > 1:
        raise InvalidArgument(
            f"batch {number} needs {len(ranges)} messages; with first_sequence each batch is one, so that "
            "numbers mean the same after a restart: cut it with everlearn_client.split_batch first",
            field="samples",
        )
    return [(rows.part(first, last), targets.part(first, last), step) for first, last in ranges]
