"""What an erasure says and hears, without a connection: both clients drive it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from everlearn_client.errors import InvalidArgument, ServerBug
from everlearn_client.receipts import read_receipts
from everlearn_client.resource_names import learner_name, model_name
from everlearn_protos.v1 import erasure_pb2 as pb

_MESSAGE_BYTES = 1 << 20
ERASE_TIMEOUT_S = 3600.0
"""Receipts of years may be gigabytes."""


class EraseSession:
    """One call of Erase."""

    def __init__(
        self,
        model: str,
        *,
        client_id: str,
        label: str,
        receipts: str | Path | None,
        partial: bool,
        dry_run: bool,
    ) -> None:
        if bool(client_id) == bool(label):
            raise InvalidArgument("name a client or a label, one of the two", field="client_id")
        name = model_name(model)
        client = learner_name(client_id) if client_id else ""
        self._opening = pb.EraseOpen(name=name, client=client, label=label, partial=partial, dry_run=dry_run)
        self._receipts = receipts
        self._report: pb.EraseReport | None = None
        self.failure: Exception | None = None
        """Of the receipts' file: gRPC would only say that iterating failed."""

    def requests(self) -> Iterator[pb.EraseRequest]:
        """All messages, in order."""
        yield pb.EraseRequest(open=self._opening)
        if self._receipts is None:
            return
        try:
            yield from self._parts(self._receipts)
        except Exception as error:
            self.failure = error
            raise

    def hear(self, response: pb.EraseResponse) -> None:
        """Takes an answer."""
        if response.WhichOneof("response") == "report":
            self._report = response.report

    def result(self) -> pb.EraseReport:
        """The report."""
        if self._report is None:
            raise ServerBug("the server ended the erasure without a report")
        return self._report

    def _parts(self, path: str | Path) -> Iterator[pb.EraseRequest]:
        model, client = self._opening.name.removeprefix("models/"), self._opening.client
        for again in (False, True):  # the server takes the first of a batch
            part, size = pb.BatchReceipts(), 0
            for each in read_receipts(path, model=model, client_id=client):
                if each.again is not again:
                    continue
                if size and size + len(each.sealed) > _MESSAGE_BYTES:
                    yield pb.EraseRequest(receipts=part)
                    part, size = pb.BatchReceipts(), 0
                part.receipts.add(sequence=each.sequence, sealed=each.sealed)
                size += len(each.sealed)
            if size:
                yield pb.EraseRequest(receipts=part)
