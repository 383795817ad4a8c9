"""A bounded choice of feature vectors, for steps that need samples: rehearsal at the cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from everlearn.errors import InputError, InvalidError
from everlearn.labels import Labels
from everlearn.memories import _choice, _herding, _state
from everlearn.memories._arrivals import Arrivals
from everlearn.memories._codes import Codec
from everlearn.memories._rows import Rows
from everlearn.memories.base import Memory, Origin, Replayed
from everlearn.spec.model import Memory as Declared
from everlearn.sums import Sums
from everlearn.values import QuantisedBd

KIND: Final = "latents"
DECODED_ROWS: Final = 4096
"""Rows decoded at a time for `sums`."""

Ints = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
LogitsBC = npt.NDArray[np.float32]
Known = Mapping[str, npt.NDArray[Any]]
"""What comes with new rows: class, client, arrival, time_s."""


class Latents(Memory):
    """Latent replay (Pellegrini et al. 2020): feature vectors of single samples, at most `capacity`, classes alike.

    reservoir  a uniform choice of each class (Vitter 1985; balanced over classes as Chrysakis & Moens 2020), of which
               rows beyond a client's share, and older ones than `ttl_s`, are taken out
    herding    those whose mean stays with the mean of all samples of the class (Welling 2009; Rebuffi et al. 2017)

    What is random is a function of how many rows came before, so a state goes on in one way only. Where a row came from
    stays with it as a number; the names behind the numbers go with the last row of a client. Bytes at d = 1280 and
    1,000 rows: 1.3 MB as int8, 2.6 MB as fp16, and 2 per class and row with `logits` (DER++, Buzzega et al. 2020).
    """

    def __init__(
        self,
        labels: Labels,
        declared: Declared,
        rows: Rows,
        arrivals: Arrivals,
        means: _herding.ClassMeans | None = None,
    ) -> None:
        self._labels = labels
        self._declared = declared
        self._rows = rows
        self._arrivals = arrivals
        self._means = means
        self._order: _choice.ByClass | None = None
        self._fit_options()

    @classmethod
    def create(cls, dim: int, labels: Sequence[str], declared: Declared | None = None) -> Self:
        """See Memory."""
        if dim < 1:
            raise InvalidError(f"dim is {dim}; it must be at least 1", field="dim")
        declared = _state.declared_as(KIND, declared)
        rows = Rows(Codec(_state.filled(declared.precision), dim))
        return cls(Labels(labels), declared, rows, Arrivals(seen_C=np.zeros(len(labels), np.int64)))

    def declare(self, labels: Sequence[str]) -> None:
        """See Memory."""
        self._labels.declare(labels)
        self._arrivals.make_room(len(self._labels))
        self._order = None

    def integrate(
        self,
        quantised_Bd: QuantisedBd,
        labels: Sequence[str],
        *,
        origin: Origin | None = None,
        logits_BC: LogitsBC | None = None,
    ) -> None:
        """See Memory. InputError (field logits), too, for scores that do not fit the labels known before."""
        self._labels.check_batch(quantised_Bd, labels, self.dim)
        if not self._declared.logits:
            logits_BC = None
        elif logits_BC is not None:
            _check_logits(logits_BC, samples=len(labels), classes=len(self._labels))
        if not len(labels):
            return
        origin = origin or Origin()
        class_B = self._labels.take(labels)
        if self._means is not None:
            self._means.add(quantised_Bd, class_B, len(self._labels))
        self.expire(origin.time_s)
        self._rows.client_N[:] = self._arrivals.drop_names(self._rows.client_N)
        known: Known = {
            "class": class_B.astype(np.int32),
            "client": np.full(len(labels), self._arrivals.client(origin.client), np.int32),
            "arrival": self._arrivals.see(class_B, len(self._labels)),
            "time_s": np.full(len(labels), origin.time_s),
        }
        self._admit(quantised_Bd, known, logits_BC)

    def draw(self, count: int, random: np.random.Generator) -> Replayed:
        """See Memory; each row of a class is equally likely, and comes twice only where the class has too few."""
        if self._order is None:
            self._order = _choice.ByClass.of(self._rows.class_N, len(self._labels))
        class_R, rows_R = self._order.draw(count, random)
        return Replayed(quantised_Rd=self._rows.decode(rows_R), class_R=class_R, logits_RC=self._logits(rows_R))

    @property
    def dim(self) -> int:
        """See Memory."""
        return self._rows.codec.shift_d.size

    @property
    def labels(self) -> list[str]:
        """See Memory."""
        return list(self._labels)

    @property
    def seen_C(self) -> Ints:  # noqa: N802  # axes
        """See Memory."""
        return self._arrivals.seen_C.copy()

    @property
    def kept(self) -> int:
        """Rows now."""
        return len(self._rows)

    @property
    def kept_C(self) -> Ints:  # noqa: N802  # axes
        """Rows of each class now."""
        return np.bincount(self._rows.class_N, minlength=len(self._labels))

    @property
    def is_exact(self) -> bool:
        """See Memory: a choice is not all."""
        return False

    @property
    def sums(self) -> Sums:
        """See Memory; made anew, from all rows, at each call."""
        sums = Sums(self.dim, list(self._labels))
        class_N = self._rows.class_N
        for part in self._parts():
            sums.add(self._rows.decode(part), [self._labels[index] for index in class_N[part]])
        return sums

    def configure(self, declared: Declared) -> None:
        """See Memory."""
        self._declared = _state.declared_as(KIND, declared, self._declared)
        self._fit_options()
        self.expire(self._arrivals.latest_s)
        nothing = np.empty(0, np.int32)
        none: Known = {"class": nothing, "client": nothing, "arrival": nothing.astype(np.int64), "time_s": np.empty(0)}
        self._admit(np.empty((0, self.dim), np.int16), none, None)

    @property
    def ttl_s(self) -> float | None:
        """See Memory."""
        return self._declared.ttl_s

    def expire(self, now_s: float) -> int:
        """See Memory. Time never runs backwards: an earlier `now_s` than the latest so far counts as that."""
        self._arrivals.latest_s = max(self._arrivals.latest_s, float(now_s))
        if self._declared.ttl_s is None:
            return 0
        old = np.flatnonzero(self._rows.time_s_N + self._declared.ttl_s <= self._arrivals.latest_s)
        if old.size:
            self._rows.drop(old)
            self._order = None
        return len(old)

    def forget_class(self, label: str) -> None:
        """See Memory; its scores of other rows, too. Which of those were kept may still be owed to it."""
        if label not in self._labels:
            raise InputError(f"no class {label!r} here", field="label")
        index = self._labels.index(label)
        self._rows.drop(np.flatnonzero(self._rows.class_N == index))
        self._rows.unknow_score(index)
        self._arrivals.seen_C[index] = 0
        if self._means is not None:
            self._means.forget(index)
        self._order = None

    def forget_client(self, client: str) -> int:
        """See Memory. Which of the other rows were kept may still be owed to it; how many came does not change."""
        number = self._arrivals.number_of.get(client)
        if number is None:
            return 0
        gone = np.flatnonzero(self._rows.client_N == number)
        self._rows.drop(gone)  # and with its last row its name is in no state any more
        if self._means is not None:  # they knew every sample; those of what is left know no other
            self._means = None
            self._fit_options()
        self._order = None
        return len(gone)

    @property
    def arrivals(self) -> int:
        """Rows that have come so far, kept or not."""
        return self._arrivals.count

    def take_back(self, later: Latents) -> None:
        """Fills an earlier moment of `later`, whose rows were left out (`sealing.emptied`), with those of its rows that
        had come by then. Raises InputError where this is no earlier moment of it."""
        if later.labels[: len(self._labels)] != self.labels or later.arrivals < self.arrivals or len(self._rows):
            raise InputError("this is no earlier moment of those latents, without its rows", field="memory")
        theirs, names = later._rows, list(later._arrivals.number_of)
        there = np.flatnonzero(theirs.arrival_N < self.arrivals)
        there = there[np.argsort(theirs.arrival_N[there], kind="stable")]
        known: Known = {
            "class": theirs.class_N[there],
            "client": np.array([self._arrivals.client(names[n]) for n in theirs.client_N[there]], np.int32),
            "arrival": theirs.arrival_N[there],
            "time_s": theirs.time_s_N[there],
        }
        logits_RC = later._logits(there) if self._declared.logits else None
        logits_RC = None if logits_RC is None else logits_RC[:, : len(self._labels)]
        self._rows.exchange(np.empty(0, np.int64), theirs.decode(there), known, logits_RC)
        self._means = None  # of what is left, as in forget_client
        self._fit_options()
        self._order = None

    def by_arrival(self, since: int = 0) -> Iterator[tuple[QuantisedBd, list[str], Origin]]:
        """The rows that are kept as batches in the order in which they came, each of one client and time. `since`: how
        many of all that came are left out."""
        rows, names = self._rows, list(self._arrivals.number_of)
        order = np.argsort(rows.arrival_N, kind="stable")
        order = order[np.searchsorted(rows.arrival_N[order], since) :]
        if not len(order):
            return
        whose = np.stack([rows.client_N[order], rows.time_s_N[order]])
        begins = np.flatnonzero((whose[:, 1:] != whose[:, :-1]).any(axis=0)) + 1
        for part in np.split(order, begins):
            origin = Origin(client=names[rows.client_N[part[0]]], time_s=float(rows.time_s_N[part[0]]))
            yield rows.decode(part), [self._labels[index] for index in rows.class_N[part]], origin

    def to_bytes(self) -> bytes:
        """See Memory."""
        columns = self._rows.columns
        clients, columns["client"] = self._arrivals.named(columns["client"])
        state = {
            "declared": self._declared.model_dump(mode="json", exclude_none=True),
            "labels": list(self._labels),
            "clients": clients,
            "arrivals": self._arrivals.count,
            "latest_s": self._arrivals.latest_s,
        }
        shift_d, seen_C = self._rows.codec.shift_d, self._arrivals.seen_C
        arrays: dict[str, npt.NDArray[Any]] = {"shift": shift_d, "seen": seen_C, **columns}
        if self._means is not None:
            arrays |= {"mean_sum": self._means.sum_Cd, "mean_count": self._means.count_C}
        return _state.dump(KIND, state, arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """See Memory."""
        state, arrays = _state.parse(KIND, data)
        with _state.sealed():
            declared, labels = _state.declared_from(KIND, state), Labels(state["labels"])
            arrivals = Arrivals(
                seen_C=_state.column(arrays, "seen", np.int64, (len(labels),)),
                count=int(state["arrivals"]),
                latest_s=float(state["latest_s"]),
                number_of={str(name): number for number, name in enumerate(state["clients"])},
            )
            shift_d = _state.column(arrays, "shift", np.uint8, (arrays["shift"].size,))
            rows = Rows(Codec(_state.filled(declared.precision), shift_d.size, shift_d), arrays)
            _check_numbers(rows.class_N, len(labels))
            _check_numbers(rows.client_N, len(arrivals.number_of))
            return cls(labels, declared, rows, arrivals, _means_from(arrays))

    def _fit_options(self) -> None:
        """Makes what the options ask for beside the rows, and drops what they no longer do."""
        if self._declared.logits:
            self._rows.keep_scores()
        else:
            self._rows.drop_scores()
        if self._declared.selection == "reservoir":
            self._means = None
        elif self._means is None:
            self._means = _herding.ClassMeans.none(self.dim)
            for part in self._parts():
                self._means.add(self._rows.decode(part), self._rows.class_N[part], len(self._labels))

    def _parts(self) -> list[slice]:
        """All rows, a bounded number at a time."""
        return [slice(start, start + DECODED_ROWS) for start in range(0, len(self._rows), DECODED_ROWS)]

    def _admit(self, quantised_Bd: QuantisedBd, known: Known, logits_BC: LogitsBC | None) -> None:
        """Chooses anew, from the rows that are there and new ones."""
        rows, capacity = self._rows, _state.filled(self._declared.capacity)
        there = len(rows)
        class_N = np.concatenate([rows.class_N, known["class"]])
        arrival_N = np.concatenate([rows.arrival_N, known["arrival"]])
        gone_N = np.zeros(len(class_N), bool)
        client_share = _state.filled(self._declared.client_share)
        if client_share < 1:
            client_N = np.concatenate([rows.client_N, known["client"]])
            gone_N[_choice.beyond_clients(client_N, class_N, arrival_N, max(1, int(client_share * capacity)))] = True
        left = np.flatnonzero(~gone_N)
        share_C = _choice.even_shares(np.bincount(class_N[left], minlength=len(self._labels)), capacity)
        if self._means is None:
            gone_N[left[_choice.surplus(class_N[left], arrival_N[left], share_C)]] = True
        else:
            self._let_go(gone_N, class_N, arrival_N, share_C, quantised_Bd)
        stay_B = ~gone_N[there:]
        rows.exchange(
            np.flatnonzero(gone_N[:there]),
            quantised_Bd[stay_B],
            {name: column[stay_B] for name, column in known.items()},
            None if logits_BC is None else logits_BC[stay_B],
        )
        self._order = None

    def _let_go(self, gone_N: Mask, class_N: Ints, arrival_N: Ints, share_C: Ints, quantised_Bd: QuantisedBd) -> None:
        """Marks what herding lets go, class by class; the last of the rows are `quantised_Bd`."""
        assert self._means is not None, "there is no herding without means"
        size_C = np.bincount(class_N[~gone_N], minlength=len(share_C))
        for index in np.flatnonzero(size_C > share_C).tolist():
            rows = np.flatnonzero((class_N == index) & ~gone_N)
            total_d = self._total(rows, quantised_Bd)
            while len(rows) > share_C[index]:
                places = _herding.pool(arrival_N[rows], self._arrivals.count + len(rows))
                drop = min(len(rows) - int(share_C[index]), max(1, len(places) // 2))
                looked_at_pd = self._features(rows[places], quantised_Bd).astype(np.float64)
                places = places[_herding.let_go(looked_at_pd, total_d, len(rows), self._means.of_class(index), drop)]
                total_d -= self._total(rows[places], quantised_Bd)
                gone_N[rows[places]] = True
                rows = np.delete(rows, places)

    def _features(self, rows: Ints, quantised_Bd: QuantisedBd) -> QuantisedBd:
        """Of rows that are there and, after those, of a batch."""
        there = len(self._rows)
        parts = [self._rows.decode(rows[rows < there]), quantised_Bd[rows[rows >= there] - there]]
        return np.concatenate(parts)

    def _total(self, rows: Ints, quantised_Bd: QuantisedBd) -> Float:
        """Sum of such rows, a bounded number at a time."""
        total_d = np.zeros(self.dim)
        for start in range(0, len(rows), DECODED_ROWS):  # few enough that int32 holds their sum
            part = rows[start : start + DECODED_ROWS]
            total_d += self._features(part, quantised_Bd).sum(axis=0, dtype=np.int32)
        return total_d

    def _logits(self, rows_R: Ints) -> npt.NDArray[np.float32] | None:
        score_NL = self._rows.score_NL
        if score_NL is None:
            return None
        logits_RC = np.full((len(rows_R), len(self._labels)), np.nan, np.float32)
        logits_RC[:, : score_NL.shape[1]] = score_NL[rows_R]
        return logits_RC


def _check_logits(logits_BC: LogitsBC, *, samples: int, classes: int) -> None:
    if logits_BC.ndim != 2 or len(logits_BC) != samples or logits_BC.shape[1] > classes:
        raise InputError(
            f"logits have shape {logits_BC.shape}; it must be [{samples}, C], C at most the {classes} labels so far",
            field="logits",
        )
    if np.isinf(logits_BC).any():
        raise InputError("logits must be finite, or NaN where unknown; some are infinite", field="logits")


def _means_from(arrays: Mapping[str, npt.NDArray[Any]]) -> _herding.ClassMeans | None:
    if "mean_sum" not in arrays:
        return None
    count_C, dim = arrays["mean_count"], arrays["shift"].size
    sum_Cd = _state.column(arrays, "mean_sum", np.float64, (len(count_C), dim))
    return _herding.ClassMeans(sum_Cd, _state.column(arrays, "mean_count", np.int64, (len(sum_Cd),)))


def _check_numbers(number_N: npt.NDArray[np.int32], end: int) -> None:
    if len(number_N) and not 0 <= int(number_N.min()) <= int(number_N.max()) < end:
        raise ValueError("rows belong to a class or client that is not there")
