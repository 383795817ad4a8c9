"""What an upgrade says and hears, without a connection: both clients drive it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from everlearn_client.errors import FailedPrecondition, ServerBug
from everlearn_client.resource_names import model_name
from everlearn_client.samples import Batch, SampleInput, split_batch, to_message, to_rows
from everlearn_protos.v1 import models_pb2 as pb

FedCallback = Callable[[int], None]
"""Hears how many calibration samples the server has taken."""
MAX_SAMPLES = 256
"""In a message, so that two backbones answer within seconds."""


class UpgradeSession:
    """One call of UpgradeBackbone."""

    def __init__(
        self,
        model: str,
        declaration: str,
        *,
        max_drop: float | None,
        min_agreement: float | None,
        max_unseen_classes: int,
        dry_run: bool,
        check: bool,
        progress: Callable[[pb.ApplyProgress], None],
        on_fed: FedCallback,
    ) -> None:
        self._opening = pb.UpgradeOpen(
            name=model_name(model),
            declaration=declaration,
            max_drop=max_drop,
            min_agreement=min_agreement,
            max_unseen_classes=max_unseen_classes,
            dry_run=dry_run,
        )
        self._check = check and not dry_run
        self._progress, self._on_fed = progress, on_fed
        self._report: pb.UpgradeReport | None = None
        self.failure: Exception | None = None
        """Of the samples themselves: gRPC would only say that iterating failed."""

    def open_request(self) -> pb.UpgradeBackboneRequest:
        """The first message."""
        return pb.UpgradeBackboneRequest(open=self._opening)

    def sample_requests(self, samples: SampleInput) -> Iterator[pb.UpgradeBackboneRequest]:
        """A batch as messages that fit the wire. Raises InvalidArgument."""
        for part in split_batch(Batch(samples, ["-"] * len(to_rows(samples))), max_samples=MAX_SAMPLES):
            yield pb.UpgradeBackboneRequest(samples=to_message(part.samples))

    def hear(self, response: pb.UpgradeBackboneResponse) -> None:
        """Takes an answer."""
        kind = response.WhichOneof("response")
        if kind == "progress":
            self._progress(response.progress)
        elif kind == "fed":
            self._on_fed(response.fed)
        elif kind == "report":
            self._report = response.report

    def result(self) -> pb.UpgradeReport:
        """The report. Raises FailedPrecondition where the gate did not pass, unless only the figures were asked for."""
        if self._report is None:
            raise ServerBug("the server ended the upgrade without a report")
        if self._check and not self._report.gate_passed:
            raise FailedPrecondition(
                f"{self._report.name} stays on its backbone: {self._report.gate_reason}", reason="GATE_FAILED"
            )
        return self._report
