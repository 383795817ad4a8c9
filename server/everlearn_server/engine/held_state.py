"""What a writer holds back, and what of its state may be seen meanwhile (see `hold.py`)."""

from __future__ import annotations

from everlearn.learners.base import Learned
from everlearn.learners.calibration import Calibration
from everlearn.learners.rounded import Rounded
from everlearn.sums import Sums
from everlearn_server.engine.fleet_records import records_json
from everlearn_server.engine.hold import Boundary, Fingerprints, Hold, Shortfall, Shown
from everlearn_server.engine.integration import Integration


class Holding:
    """Of one writer. Properties on the event loop; methods on the thread that holds the writer's lock, `show` apart."""

    def __init__(self, hold: Hold | None, work: Integration) -> None:
        self.hold = hold
        """None where nothing is held."""
        self.boundary: Boundary | None = None
        """The last commit's state, where that alone may be shown."""
        self.rounds = False
        """Whether heads are those that 8 bits hold."""
        self._work = work
        self._keys = Fingerprints()
        self.show(self.present())

    @property
    def shown(self) -> Shown:
        """What may be said of what has been learned: all of it, or what the last commit had."""
        if self.boundary is not None:
            return self.boundary.shown
        learner = self._work.learner
        return Shown(
            labels=learner.labels, count_C=learner.count_C, samples=learner.samples, record=self._work.prequential
        )

    @property
    def shortfall(self) -> Shortfall | None:
        """What is missing until what is in RAM may be committed; None where it may."""
        return self.hold.shortfall(self._work.tails.values()) if self.hold is not None else None

    @property
    def keys(self) -> Fingerprints | None:
        """What knows batches again while they wait in RAM alone; None where none does."""
        return self.hold or (self._keys if isinstance(self._work.learner, Calibration) else None)

    @property
    def waits(self) -> str:
        """For what batches wait that may not be durable, in words; empty where none does."""
        short, hold = self.shortfall, self.hold
        if short is not None and hold is not None:
            clients = f"{hold.clients:,} client{'s' if hold.clients != 1 else ''}"
            return f"{short.told()} (privacy: {hold.samples} samples of {clients} in a step)"
        return self._work.learner.waits_for

    def learned(self) -> tuple[Learned, dict[str, int]]:
        """What heads are solved from, with the last sequence of each client that is in it."""
        if self.boundary is not None:
            return self.boundary.learned, dict(self.boundary.tails)
        learned = self._work.learner.learned()
        return Rounded(learned) if self.rounds else learned, self._tails()

    def sums(self) -> Sums:
        """A copy of what closed forms need. Raises PreconditionError (reason NO_SUMS)."""
        return (self.boundary or self._work.learner).sums.copy()

    def present(self) -> Boundary | None:
        """What is in RAM, as a boundary; None where everything may be shown."""
        if self.hold is None:
            return None
        return self.hold.boundary(self._work.learner.learned(), self._work.prequential.to_dict(), self._tails())

    def serialised(self) -> tuple[bytes, str, Boundary | None]:
        """Memory, prequential record, and the boundary that they will be once they are committed; what is to be hidden
        in noise is released by that, so it is called once for each commit."""
        self._work.learner.release()
        boundary = self.present()
        told = self._work.prequential.to_dict() if boundary is None else boundary.told
        return self._work.learner.to_bytes(), records_json(told, self._work.fleet), boundary

    def changed(self, hold: Hold | None) -> Boundary | None:
        """Another declaration holds from here on, which the learner has taken up already; gives what to show."""
        self.hold, before = hold, self.boundary
        if before is not None and hold is not None:  # what has come since goes on waiting
            return hold.boundary(self._work.learner.revised(before.inner), before.told, before.tails)
        if hold is not None:
            for tail in self._work.tails.values():  # the first step is counted from here
                tail.committed = tail.samples
        return self.present()

    def show(self, boundary: Boundary | None) -> None:
        """From now on this is what is seen."""
        self.boundary = boundary
        self._work.shown = boundary.shown if boundary is not None else None

    def _tails(self) -> dict[str, int]:
        return {client: tail.integrated for client, tail in self._work.tails.items()}
