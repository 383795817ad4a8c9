"""everlearn.v1.ErasureService: the wire side of erasures."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

import grpc

from everlearn.errors import InvalidError
from everlearn.spec.model import NAME
from everlearn_protos.v1 import erasure_pb2
from everlearn_server.engine.engine import Engine
from everlearn_server.engine.erasure_receipt import Asked, Told
from everlearn_server.engine.rewinding import Rewound
from everlearn_server.rpc import names, wire
from everlearn_server.rpc.moments import timestamp
from everlearn_server.store.rows import ErasureRow

_NAMED = 20
"""Ranges of missing sequences that are told."""


class ErasureService:
    """Translates; the engine's Erasure does the work."""

    NAME = "everlearn.v1.ErasureService"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def handler(self) -> grpc.GenericRpcHandler:
        """To register with the server."""
        return wire.service(
            self.NAME,
            {
                "Erase": wire.bidirectional(self.erase),
                "ListErasures": wire.unary(erasure_pb2.ListErasuresRequest, self.list),
            },
        )

    async def erase(
        self, requests: AsyncIterator[bytes], _: wire.Context
    ) -> AsyncGenerator[erasure_pb2.EraseResponse, None]:
        """First EraseOpen, then receipts."""
        first = await anext(aiter(requests), None)
        message = wire.parse(erasure_pb2.EraseRequest, first or b"")
        if message.WhichOneof("request") != "open":
            raise InvalidError("a stream begins with `open`", field="open")
        name, asked = names.model_of(message.open.name, field="open.name"), _asked(message.open)
        erasure = await self._engine.erasures.begin(name, asked)
        async for data in requests:
            part = wire.parse(erasure_pb2.EraseRequest, data)
            if part.WhichOneof("request") != "receipts":
                raise InvalidError("after `open` a stream carries `receipts` only", field="receipts")
            counted = await erasure.feed([(each.sequence, each.sealed) for each in part.receipts.receipts])
            yield erasure_pb2.EraseResponse(counted=counted)
        told = await self._engine.erasures.finish(name, erasure)
        yield erasure_pb2.EraseResponse(report=self._report(name, asked, told))

    async def list(self, request: erasure_pb2.ListErasuresRequest, _: wire.Context) -> erasure_pb2.ListErasuresResponse:
        """Oldest first."""
        rows = await self._engine.erasures.listed(names.model_of(request.parent, field="parent"))
        some, token = names.page(rows, request.page_size, request.page_token)
        return erasure_pb2.ListErasuresResponse(erasures=[self._erasure(row) for row in some], next_page_token=token)

    def _report(self, name: str, asked: Asked, told: Told) -> erasure_pb2.EraseReport:
        return erasure_pb2.EraseReport(
            name=f"models/{name}",
            client=asked.client,
            label=asked.label,
            how=told.how,
            exact=told.exact,
            statement=told.statement,
            samples=told.samples,
            samples_learned=told.samples_learned,
            durable_sequence=told.durable_sequence,
            receipts=told.receipts,
            unwitnessed=told.unwitnessed,
            erased_before=told.erased_before,
            not_durable=told.not_durable,
            foreign=told.foreign,
            why_foreign=told.why_foreign,
            missing=[erasure_pb2.SequenceRange(first=first, last=last) for first, last in told.missing[:_NAMED]],
            incomplete_because=told.incomplete_because,
            versions=told.versions,
            exports=told.exports,
            stable=told.stable,
            erasure=self._erasure(told.row) if told.row else None,
            rewound=_rewound(told.rewound) if told.rewound else None,
            copies=[
                erasure_pb2.Copy(
                    client=each.client,
                    version=each.version_number,
                    download_time=timestamp(each.update_time_s),
                )
                for each in told.copies
            ],
        )

    def _erasure(self, row: ErasureRow) -> erasure_pb2.Erasure:
        return erasure_pb2.Erasure(
            id=row.id,
            receipt=row.receipt_json,
            signature=row.signature,
            public_key=self._engine.erasures.signer(row),
        )


def _rewound(rewound: Rewound) -> erasure_pb2.Rewound:
    return erasure_pb2.Rewound(
        commit=rewound.commit_id,
        because=rewound.because,
        samples_before=rewound.samples_before,
        samples_after=rewound.samples_after,
        learned_again=rewound.learned_again,
    )


def _asked(opening: erasure_pb2.EraseOpen) -> Asked:
    """Raises InvalidError."""
    if bool(opening.client) == bool(opening.label):
        raise InvalidError("name a client or a label, one of the two", field="open.client")
    if opening.client and not names.NAME_PATTERN.fullmatch(opening.client):
        raise InvalidError(names.unlike(opening.client, NAME), field="open.client")
    if opening.label and opening.partial:
        raise InvalidError("a class is taken out as a whole; leave `partial` out", field="open.partial")
    return Asked(client=opening.client, label=opening.label, partial=opening.partial, dry_run=opening.dry_run)
