"""Each client's own sums, where a model keeps them: they open, and add up to ledger and memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from sqlalchemy import Connection, select

from everlearn.errors import DataLossError
from everlearn.learners.inspection import left_over
from everlearn.spec.model import ModelSpec
from everlearn_server.check.findings import Report
from everlearn_server.check.releases import Bytes
from everlearn_server.store.client_keys import ClientSealer, opener
from everlearn_server.store.rows import ModelRow
from everlearn_server.store.schema import client_sums, stream


def check(
    connection: Connection, model: ModelRow, spec: ModelSpec | None, memory: bytes | None, store: Bytes, report: Report
) -> None:
    """`memory`: the model's, intact; None where it is not, or there is none."""
    where = f"model {model.name}, clients' own sums"
    rows = dict(
        connection.execute(
            select(client_sums.c.client, client_sums.c.sample_count).where(client_sums.c.model == model.name)
        ).all()
    )
    if spec is None or not spec.privacy.client_sums:
        if rows:
            report.note(
                where, f"those of {len(rows)} clients are kept, which nobody declares; the next start drops them"
            )
        return
    learned = select(stream.c.client, stream.c.sample_count).where(stream.c.model == model.name)
    for client, samples in connection.execute(learned):
        if rows.get(client, 0) != samples:
            told = f"{samples} samples were learned of it, and its own sums are of {rows.get(client, 0)}"
            report.damage(f"model {model.name}, client {client}", told)
    if store.keys is None:
        if rows:
            report.note(where, "without keys/master they cannot be opened and were not checked")
        return
    opens = opener(connection, store.keys, model.name)
    opened = list[str]()
    parts = _parts(connection, model, opens, store, report, opened)
    if memory is None:
        deque(parts, maxlen=0)  # looked at, and no more
        return
    broken = left_over(spec, memory, parts)
    if len(opened) == len(rows):  # of parts that are missing more would be said than is known
        report.damage(where, broken)


def _parts(
    connection: Connection, model: ModelRow, opens: ClientSealer, store: Bytes, report: Report, opened: list[str]
) -> Iterator[tuple[str, bytes]]:
    """Those that open, whose clients `opened` gets; a finding for each that does not."""
    for row in connection.execute(select(client_sums).where(client_sums.c.model == model.name)):
        where = f"model {model.name}, own sums of client {row.client}"
        sealed = store.of_row(row.digest, row.content, report, where)
        if sealed is None:
            continue
        try:
            plain = opens.unseal(row.client, sealed)
        except DataLossError as error:
            report.damage(where, error.message)
            continue
        if plain is None:
            report.damage(where, "its key is gone")
        else:
            opened.append(row.client)
            yield row.client, plain
