"""What a spool must not forget besides its records: a record kept twice, `state.0` and `state.1`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from everlearn_client.edge.durable_files import read_twice, write_twice

_FORMAT: Final = 1
_NAME: Final = "state"


@dataclass(kw_only=True)
class SpoolState:
    """Where the records stand with the server, and what became of those that are gone."""

    stream: str = ""
    """Whose records these are, e.g. `models/digits clients/camera-7`."""
    boot: int = 0
    """Openings of the spool so far."""
    next_number: int = 1
    """Of the next record that is put in."""
    cursor: int = 1
    """Records from this number on have never been given to a sender; those before are in `assigned` or gone."""
    next_sequence: int = 0
    """The server's number for the next record that is given out; 0 until the server was asked."""
    watermark: int = 0
    """Everything up to this sequence is durable."""
    timeline: str = ""
    """Of the server's acknowledgements."""
    assigned: list[tuple[int, int]] = field(default_factory=list)
    """(sequence, record number) of those given out and not durable yet, in order."""
    clock: tuple[str, float, float] = ("", 0.0, 0.0)
    """As AgeClock tells it."""
    counts: dict[str, list[int]] = field(default_factory=dict)
    """By what became of them: records and samples; of rot and torn ends, pieces and bytes."""
    generation: int = 0
    """Writings of the state."""

    def count(self, what: str, records: int, samples: int) -> None:
        """Adds to the counts."""
        known = self.counts.get(what, [0, 0])
        self.counts[what] = [known[0] + records, known[1] + samples]

    def write(self, folder: Path) -> None:
        """Durable when it returns. Raises OSError."""
        self.generation += 1
        write_twice(folder, _NAME, {"format": _FORMAT, **asdict(self)})


def read_state(folder: Path) -> tuple[SpoolState | None, bool]:
    """The newest whole state, and whether there were any files of one."""
    told, present = read_twice(folder, _NAME)
    return None if told is None else _state_of(told), present


def _state_of(told: dict[str, Any]) -> SpoolState:
    told.pop("format")
    told["assigned"] = [(sequence, number) for sequence, number in told["assigned"]]
    told["clock"] = tuple(told["clock"])
    return SpoolState(**told)
