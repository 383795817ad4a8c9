"""Who a model learns from: what each client has sent, what it showed, how far it moves the head, and whether anything
of it is learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from everlearn.metrics.prequential import ClientRecord, Prequential
from everlearn_server.engine.device_reports import Use
from everlearn_server.engine.hold import Hold
from everlearn_server.engine.integration import Integration
from everlearn_server.engine.live_model import LiveModel
from everlearn_server.store.rows import DownloadRow

_NOTHING = ClientRecord(tested=0, correct=0)


@dataclass(frozen=True, kw_only=True)
class DeviceFigures:
    """What a client said of itself as a device."""

    labels: Mapping[str, str]
    heard_time_s: float
    running: int
    """0 for no version."""
    use: Use
    """Of that version."""
    given_up: Mapping[int, str]
    is_canary: bool
    """Chosen by the declared selector."""


@dataclass(frozen=True, kw_only=True)
class ClientFigures:
    """One client of one model, at one moment."""

    client: str
    samples: int
    """Learned of it; where a tier holds samples back, those of the last commit."""
    share: float
    """Of all clients' samples; 0 where there are none."""
    tested: int
    correct: int
    recent_tested: int
    recent_accuracy: float
    others_accuracy: float | None
    """On the same labels; None where nothing can be compared."""
    rejected_batches: int
    clipped_samples: int
    quarantined: bool
    last_sequence: int
    durable_sequence: int
    mistake_share: float = 0.0
    """Of all samples that were predicted wrong before they were learned; 0 where nothing may be told."""
    head_change: float | None = None
    """See `everlearn.influence`; None where it was not worked out."""
    recent_novelty: float | None = None
    """Mean over its recent samples, each before it was learned (see FleetTally.watch); None where nothing is told."""
    recent_unknown: float | None = None
    """Share of them that were unknown."""
    downloaded: DownloadRow | None = None
    """What it took last; None for nothing that is known."""
    device: DeviceFigures | None = None
    """None where it has not checked in since the server's start."""


async def client_figures(model: LiveModel, downloads: Iterable[DownloadRow]) -> list[ClientFigures]:
    """Those that sent most first, then those that sent nothing and took a version or checked in; among these, with an
    empty name, all that gave none. Raises PreconditionError (MODEL_NOT_READY)."""
    hold = model.writer.held.hold
    learned = {each.client: each for each in await model.writer.look(lambda work: _figures(work, hold))}
    taken = {row.client: row for row in downloads}
    devices = _devices(model)
    found = [
        replace(learned.get(each, _absent(each)), downloaded=taken.get(each), device=devices.get(each))
        for each in {**learned, **taken, **devices}
    ]
    return sorted(found, key=lambda each: (-each.samples, each.client not in learned, each.client))


async def quarantine(
    model: LiveModel, client: str, downloads: Iterable[DownloadRow], *, quarantined: bool
) -> ClientFigures:
    """Whether anything of the client is learned. Raises NotFoundError, PreconditionError, UnavailableError."""
    await model.writer.quarantine(client, quarantined=quarantined)
    return next(each for each in await client_figures(model, downloads) if each.client == client)


def _devices(model: LiveModel) -> dict[str, DeviceFigures]:
    rollout = model.rollout
    return {
        client: DeviceFigures(
            labels=device.labels,
            heard_time_s=device.heard_time_s,
            running=device.running,
            use=device.use(device.running) or Use(),
            given_up=device.given_up,
            is_canary=rollout.is_chosen(client, device.labels),
        )
        for client, device in rollout.reports.items()
    }


def _absent(client: str) -> ClientFigures:
    """Of one that sent nothing."""
    return ClientFigures(
        client=client,
        samples=0,
        share=0.0,
        tested=0,
        correct=0,
        recent_tested=0,
        recent_accuracy=0.0,
        others_accuracy=None,
        rejected_batches=0,
        clipped_samples=0,
        quarantined=False,
        last_sequence=0,
        durable_sequence=0,
    )


def _figures(work: Integration, hold: Hold | None) -> list[ClientFigures]:
    """Under a tier with minima what one client's samples showed lately is told of many samples alone, and where clients
    are to hide each other, not at all."""
    record, is_held = work.prequential, hold is not None
    tested_by = record.clients if isinstance(record, Prequential) and not is_held else {}
    samples_by = {client: tail.committed if is_held else tail.samples for client, tail in work.tails.items()}
    total = sum(samples_by.values())
    mistakes = sum(whole.tested - whole.correct for whole in tested_by.values())
    found = []
    for client, tail in work.tails.items():
        tally, compared, whole = (
            work.fleet[client],
            work.fleet.compare(client, least=1),
            tested_by.get(client, _NOTHING),
        )
        is_told = hold is None or (hold.clients == 1 and tally.tested >= hold.samples)
        found.append(
            ClientFigures(
                client=client,
                samples=samples_by[client],
                share=samples_by[client] / total if total else 0.0,
                tested=whole.tested,
                correct=whole.correct,
                recent_tested=tally.tested if is_told else 0,
                recent_accuracy=tally.correct / tally.tested if tally.tested and is_told else 0.0,
                others_accuracy=compared.expected if compared.tested and is_told else None,
                rejected_batches=tally.rejected,
                clipped_samples=tally.clipped,
                quarantined=tail.quarantined,
                last_sequence=tail.durable if is_held else tail.integrated,
                durable_sequence=tail.durable,
                mistake_share=(whole.tested - whole.correct) / mistakes if mistakes else 0.0,
                recent_novelty=tally.novelty / tally.watched if tally.watched and is_told else None,
                recent_unknown=tally.unknown / tally.watched if tally.watched and is_told else None,
            )
        )
    return found
