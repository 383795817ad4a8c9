"""Versions of one model: numbers, gate, aliases, persistence. Swapping is one reference assignment."""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from everlearn.errors import GateError, NotFoundError, PreconditionError
from everlearn.spec.input import Input
from everlearn.spec.model import Gate, Model, ModelSpec
from everlearn.spec.promises import promises
from everlearn.spec.telling import axes
from everlearn.values import LinearHead
from everlearn_server.engine.publisher import NO_NUMBERS, Solved
from everlearn_server.engine.serving import Snapshot
from everlearn_server.engine.trunks import LiveTrunk
from everlearn_server.engine.writer import ModelWriter
from everlearn_server.store.rows import VersionRow

ALIASES = ("stable", "latest", "canary")
_EPHEMERAL = 8
"""Heads that were superseded before they were stored and can still be asked for by number."""
_NUMBERS = 64
"""Version numbers reserved at a time; a crash leaves a gap and never reuses one."""
_DIGITS = 18
"""Of a version number, which is an int64; Python refuses to read one of thousands."""


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """Whether a version may become `stable`, and why not."""

    passed: bool
    reason: str


def check_gate(
    gate: Gate, *, sample_count: int, windowed_accuracy: float, stable_accuracy: float | None, parity: float
) -> GateResult:
    """The declared conditions, first failure first."""
    if sample_count < gate.min_samples:
        return GateResult(passed=False, reason=f"{sample_count} samples of {gate.min_samples}")
    if windowed_accuracy < gate.min_accuracy:
        return GateResult(
            passed=False, reason=f"prequential accuracy {windowed_accuracy:.3f} is below {gate.min_accuracy:.3f}"
        )
    if (
        gate.max_drop is not None
        and stable_accuracy is not None
        and stable_accuracy - windowed_accuracy > gate.max_drop
    ):
        return GateResult(
            passed=False,
            reason=f"prequential accuracy fell from {stable_accuracy:.3f} to {windowed_accuracy:.3f}, "
            f"more than {gate.max_drop:.3f}",
        )
    if parity > gate.parity:
        return GateResult(passed=False, reason=f"exported head differs by {parity:.2g}, more than {gate.parity:.2g}")
    return GateResult(passed=True, reason="passed")


@dataclass(frozen=True, kw_only=True)
class Versioned:
    """A served head with its record."""

    snapshot: Snapshot
    record: VersionRow
    tails: Mapping[str, int]
    fewest: int = 0
    """Samples of the smallest class that it shows."""
    head_sha256: bytes = b""
    """Of its weights as they are stored, and how many bytes they are: once they are, they are not kept here too."""
    head_bytes: int = 0

    def stored(self) -> Versioned:
        """The same without the bytes that have been stored."""
        head = self.record.head
        return replace(
            self,
            record=replace(self.record, head=b""),
            head_sha256=hashlib.sha256(head).digest(),
            head_bytes=len(head),
        )

    def of_commit(self, commit_id: int) -> Versioned:
        """The same with the last commit that it may know of."""
        return replace(self, record=replace(self.record, commit_id=commit_id))


class VersionBook:
    """All versions of a model that can be served, and where its aliases point. Event loop only; no I/O."""

    def __init__(self, *, model: str, lineage: int, first_number: int) -> None:
        self._model = model
        self._lineage = lineage
        self._next = first_number
        self._reserved_to = first_number
        self._versions: OrderedDict[int, Versioned] = OrderedDict()
        self.stored: set[int] = set()
        self.stable: Versioned | None = None
        self.latest: Versioned | None = None
        self.canary = 0
        """Number of a stored version that a few devices run before it is stable; 0 for none."""
        self.promotion_paused = False
        self.class_samples = 0
        """Versions that show a smaller class than this are as good as not there."""
        self._withdrawn_below = 0
        self.paged: Callable[[Versioned], Versioned] = lambda versioned: versioned
        """Gives a stored version whose weights are read when they are needed."""

    # -- numbers ------------------------------------------------------------------------------------------------

    @property
    def needs_numbers(self) -> int:
        """How many to reserve now; 0 while enough are left."""
        return _NUMBERS if self._reserved_to - self._next < _NUMBERS // 2 else 0

    def add_numbers(self, first: int, count: int) -> None:
        """Takes a reserved block into use."""
        if self._next >= self._reserved_to:
            self._next = first
        self._reserved_to = first + count

    # -- versions -----------------------------------------------------------------------------------------------

    def restore(self, row: VersionRow, snapshot: Snapshot) -> Versioned:
        """Takes up a stored version."""
        fewest = _fewest(json.loads(row.metrics_json).get("samples_per_class", ()))
        versioned = Versioned(snapshot=snapshot, record=row, tails={}, fewest=fewest).stored()
        self._versions[row.number] = versioned
        self.stored.add(row.number)
        return versioned

    def publish(
        self,
        solved: Solved,
        *,
        spec: Model,
        trunk: LiveTrunk,
        prequential: Mapping[str, Any],
        make: Callable[[int, Solved], Snapshot],
    ) -> Versioned:
        """A new version becomes `latest`, and `stable` too where promotion is automatic and the gate passes. Where a
        rollout is declared only the first does; later ones are canaries before (see `rollouts.py`)."""
        if self._next >= self._reserved_to:
            raise PreconditionError("version numbers are being reserved", reason=NO_NUMBERS)
        number, self._next = self._next, self._next + 1
        gate = check_gate(
            spec.spec.gate,
            sample_count=solved.sample_count,
            windowed_accuracy=prequential["windowed_accuracy"],
            stable_accuracy=self.stable_accuracy,
            parity=solved.parity,
        )
        record = VersionRow(
            model=self._model,
            number=number,
            lineage=self._lineage,
            head=solved.data,
            labels_json=json.dumps(solved.head.labels),
            metrics_json=json.dumps(
                {
                    **prequential,
                    "head": spec.spec.head.kind,
                    "regularization": solved.head.regularization,
                    "exact": solved.exact,
                    "recipe": spec.spec.recipe,
                    "axes": axes(spec.spec),
                    "privacy": promises(spec.spec),
                    **({"training": dict(solved.figures)} if solved.figures else {}),
                    "feature_digest": trunk.feature_digest,
                    "samples_per_class": solved.samples_C,
                    "solve_ms": round(solved.solve_ms, 3),
                }
            ),
            trunk_digest=trunk.digest,
            memory_digest=solved.memory_digest,
            sample_count=solved.sample_count,
            gate_passed=gate.passed,
            gate_reason=gate.reason,
            create_time_s=time.time(),
        )
        fewest = _fewest(solved.samples_C)
        versioned = Versioned(snapshot=make(number, solved), record=record, tails=solved.tails, fewest=fewest)
        self._versions[number] = versioned
        self.latest = versioned
        at_once = spec.spec.rollout is None or self.stable is None
        if gate.passed and at_once and spec.spec.serving.promotion == "auto" and not self.promotion_paused:
            self.stable = versioned
        self._forget_ephemeral()
        return versioned

    def aside(self, make: Callable[[int], Versioned]) -> Versioned:
        """A version that no alias names: it has a number, and is found by that alone. Raises PreconditionError."""
        if self._next >= self._reserved_to:
            raise PreconditionError("version numbers are being reserved; try again", reason=NO_NUMBERS)
        number, self._next = self._next, self._next + 1
        self._versions[number] = make(number)
        return self._versions[number]

    def find(self, version: str) -> Versioned:
        """By number, `stable`, `latest` or `canary`; empty means `stable`. Raises NotFoundError, PreconditionError."""
        if version == "canary":
            if not self.canary:
                raise NotFoundError(f"model {self._model!r} has no canary now", field="version")
            version = str(self.canary)
        if version in ("", "stable", "latest"):
            found = self.latest if version == "latest" else self.stable
            if found is not None:
                return self._shown(found)
            if self.latest is not None:
                raise PreconditionError(
                    f"no version of model {self._model!r} has passed its gate: {self.latest.record.gate_reason}",
                    reason="MODEL_NOT_READY",
                )
            raise PreconditionError(f"model {self._model!r} has learned nothing yet", reason="MODEL_NOT_READY")
        is_number = len(version) <= _DIGITS and version.isascii() and version.isdigit()
        if not is_number or int(version) not in self._versions:
            raise NotFoundError(f"model {self._model!r} has no version {version[:20]!r}", field="version")
        return self._shown(self._versions[int(version)])

    def promote(self, version: str) -> Versioned:
        """Points `stable` at a version. Raises GateError where its gate did not pass."""
        self.stable = _passed(self.find(version))
        self.promotion_paused = False
        return self.stable

    def roll_back(self, number: int) -> Versioned:
        """Points `stable` at an earlier version and pauses promotion; 0: at the newest earlier one that is stored and
        has passed its gate. Raises NotFoundError, GateError, PreconditionError (not earlier, or there is none).
        """
        present = self.stable.record.number if self.stable else 0
        if number == 0:
            earlier = [n for n in self.stored - self.not_shown if n < present and self._versions[n].record.gate_passed]
            if not earlier:
                raise PreconditionError(
                    f"model {self._model!r} has no earlier stored version to go back to", reason="NO_EARLIER_VERSION"
                )
            number = max(earlier)
        versioned = _passed(self.find(str(number)))
        if number >= present:
            raise PreconditionError(
                f"version {number} is not earlier than the stable version {present}; promote it instead",
                field="version",
                reason="NOT_EARLIER",
            )
        self.stable = versioned
        self.promotion_paused = True
        return versioned

    def take_input(self, declared: Input) -> None:
        """Limits and encodings of the input hold for all versions from now on."""
        for number, versioned in list(self._versions.items()):
            self._exchange(number, replace(versioned, snapshot=replace(versioned.snapshot, input=declared)))

    def take_head(self, number: int, head: LinearHead) -> None:
        """The head of a version with its weights, for `stable` is not to wait for them."""
        if (versioned := self._versions.get(number)) is not None:
            self._exchange(number, replace(versioned, snapshot=replace(versioned.snapshot, head=head)))

    def _exchange(self, number: int, versioned: Versioned) -> None:
        """Wherever it is named: an alias is not to go on with what was there before."""
        self._versions[number] = versioned
        if self.stable is not None and self.stable.record.number == number:
            self.stable = versioned
        if self.latest is not None and self.latest.record.number == number:
            self.latest = versioned

    def numbers(self) -> list[int]:
        """All that `find` answers, ascending."""
        return sorted(self._versions.keys() - self.not_shown)

    @property
    def not_shown(self) -> set[int]:
        """Versions that show a smaller class than may be shown."""
        return {number for number, each in self._versions.items() if each.fewest < self.class_samples}

    def records(self) -> list[VersionRow]:
        """Stored versions, newest first."""
        return [self._versions[number].record for number in sorted(self.stored - self.not_shown, reverse=True)]

    def aliases_of(self, number: int) -> list[str]:
        """Names that point at a version."""
        return [alias for alias, target in self.aliases.items() if target == number]

    @property
    def aliases(self) -> dict[str, int]:
        """Name -> number of the version that it points at."""
        named = {"stable": self.stable, "latest": self.latest}
        found = {alias: target.record.number for alias, target in named.items() if target is not None}
        return {**found, **({"canary": self.canary} if self.canary else {})}

    def keep(self, versioned: Versioned) -> None:
        """It has been stored; meanwhile it may have been forgotten, or the input's limits may have changed."""
        number = versioned.record.number
        present = self._versions.get(number)
        if present is not None and present.snapshot is not versioned.snapshot:
            versioned = replace(present, record=versioned.record)
        self._exchange(number, versioned.stored())
        self.stored.add(number)
        self.page()

    def page(self) -> None:
        """Lets go of the weights of stored versions that no alias names."""
        for number in self.stored.difference(each.record.number for each in (self.stable, self.latest) if each):
            self._versions[number] = self.paged(self._versions[number])

    @property
    def stored_bytes(self) -> int:
        """Of all stored versions' weights."""
        return sum(self._versions[number].head_bytes for number in self.stored)

    def forget(self, numbers: Iterable[int]) -> None:
        """Drops stored versions that the store has pruned."""
        for number in numbers:
            self._versions.pop(number, None)
            self.stored.discard(number)

    def withdraw(self, gone: Collection[int]) -> None:
        """Drops these, and all that were never stored: of those nobody knows what they know."""
        kept = self.stored.difference(gone)
        self._withdrawn_below = self._next
        self._versions = OrderedDict((number, it) for number, it in self._versions.items() if number in kept)
        self.stored = kept & self._versions.keys()
        self.stable = self.stable if self.stable and self.stable.record.number in kept else None
        self.latest = self.latest if self.latest and self.latest.record.number in kept else None
        self.canary = self.canary if self.canary in kept else 0

    def is_withdrawn(self, number: int) -> bool:
        """Whether it must not be stored, or stored again."""
        return number < self._withdrawn_below and number not in self._versions

    def fall_back(self) -> None:
        """Something serves where anything may: the newest version left that has passed its gate, else the latest."""
        if self.stable is None:
            passed = [number for number in self.stored if self._versions[number].record.gate_passed]
            found = self._versions[max(passed)] if passed else self.latest
            self.stable = found if found is not None and found.record.gate_passed else None

    @property
    def stable_accuracy(self) -> float | None:
        """What the stable version's windowed accuracy was when it was made; None where there is none."""
        if self.stable is None:
            return None
        return float(json.loads(self.stable.record.metrics_json)["windowed_accuracy"])

    def _shown(self, versioned: Versioned) -> Versioned:
        if versioned.fewest >= self.class_samples:
            return versioned
        raise PreconditionError(
            f"version {versioned.record.number} shows classes of fewer than {self.class_samples} samples, which the "
            "model's privacy no longer allows; ask for a later one",
            reason="BELOW_MINIMUM",
        )

    def _forget_ephemeral(self) -> None:
        kept = {target.record.number for target in (self.stable, self.latest) if target}
        ephemeral = [number for number in self._versions if number not in self.stored and number not in kept]
        for number in ephemeral[: max(0, len(ephemeral) - _EPHEMERAL)]:
            del self._versions[number]


def tested(writer: ModelWriter) -> dict[str, Any]:
    """What a version says of the record of its model's tests, and of how it was learned."""
    record = writer.held.shown.record
    return {
        "tested": record.tested,
        "correct": record.correct,
        "accuracy": record.accuracy,
        "windowed_accuracy": record.window_accuracy,
        "window": record.window,
        "report": record.summary(),
        "inexact_because": writer.learner.inexact_because,
        **({"budget": writer.budget.told} if writer.budget else {}),
    }


def judged_by(spec: ModelSpec) -> tuple[object, ...]:
    """What decides which versions there are, and which of them are stable."""
    return spec.head, spec.labels, spec.gate, spec.serving.promotion, spec.privacy, spec.unknown, spec.rollout


def _fewest(samples_C: Sequence[int]) -> int:
    """Of the classes that were learned."""
    return min((samples for samples in samples_C if samples), default=0)


def _passed(versioned: Versioned) -> Versioned:
    """The gate holds for whoever moves `stable`. Raises GateError."""
    if not versioned.record.gate_passed:
        raise GateError(f"version {versioned.record.number} did not pass its gate: {versioned.record.gate_reason}")
    return versioned
