"""What is worked out of the features of several batches at once, before each of them has its turn.

Of sixteen rows a call into NumPy costs more than its arithmetic, and it lets go of the interpreter, which a busy event
loop gives back late. Each number is rounded by itself, so the integers that are learned are the same bit for bit,
whatever they were stacked with.

Axes: B samples of a batch, N of all batches of a stack, C classes, d features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from everlearn.errors import InputError
from everlearn.values import FeaturesBd, FeatureScale, QuantisedBd
from everlearn_server.engine.batches import Derived
from everlearn_server.engine.serving import Answers, Snapshot

_NUMBERS = 2**15
"""Of a stack's features: as many as caches hold together with what is made of them. Larger batches stay alone."""


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """What belongs to one batch: views of the stack's arrays."""

    quantised_Bd: QuantisedBd
    restored_Bd: FeaturesBd
    scores_BC: npt.NDArray[np.float32] | None
    novelty_B: npt.NDArray[np.float32] | None


class Stack:
    """Batches that come one after the other, and the head that tests them all.

    What cannot be stacked (features of another form, or not known yet; a head behind a tail) is worked out for itself
    when it is asked for.
    """

    def __init__(self, batches: Sequence[Derived], scale: FeatureScale, live: Snapshot | None) -> None:
        """`live`: None where nothing is to be tested, or there is no head yet."""
        self.batches = batches
        self.live = live
        self._scale = scale
        self._rows = self._worked_out()
        self._apart: dict[Derived, Answers] = {}

    def scores(self, batch: Derived) -> npt.NDArray[np.float32] | None:
        """What the head makes of it, before it is learned."""
        if self.live is None or not batch.labels:
            return None
        rows = self._rows.get(batch)
        return self._answers(self.live, batch).scores_BC if rows is None or rows.scores_BC is None else rows.scores_BC

    def novelty(self, batch: Derived) -> npt.NDArray[np.float32] | None:
        """How unlike all that the head knows it is; None where nobody asks for that, or there is no head."""
        if self.live is None or not batch.labels or not self.live.head.tells_novelty:
            return None
        rows = self._rows.get(batch)
        return self._answers(self.live, batch).novelty_B if rows is None or rows.novelty_B is None else rows.novelty_B

    def quantised(self, batch: Derived, admitted_Bd: FeaturesBd) -> tuple[QuantisedBd, FeaturesBd]:
        """The integers of what is learned of it, and the features that they stand for. `admitted_Bd`: its features, or
        what a guard made of them. Raises InputError for what is not finite."""
        rows = self._rows.get(batch)
        if rows is not None and admitted_Bd is batch.features_Bd:
            # Copies: whoever keeps them until a commit or for longer must not keep other clients' rows by that.
            return rows.quantised_Bd.copy(), rows.restored_Bd.copy()
        quantised_Bd = self._scale.quantise(admitted_Bd)
        return quantised_Bd, self._scale.restore(quantised_Bd)

    def _worked_out(self) -> dict[Derived, _Rows]:
        some = [batch for batch in self.batches if _size(batch, self._scale)]
        if len(some) < 2:
            return {}
        features_Nd = np.concatenate([batch.features_Bd for batch in some])
        try:
            quantised_Nd = self._scale.quantise(features_Nd)
        except InputError:  # one of them is at fault, and is told so in its turn
            return {}
        restored_Nd = self._scale.restore(quantised_Nd)
        told = self.live.answers(features_Nd) if self.live is not None and self.live.tail is None else None
        scores_NC, novelty_N = (told.scores_BC, told.novelty_B) if told is not None else (None, None)
        made, begin = dict[Derived, _Rows](), 0
        for batch in some:
            rows = slice(begin, begin := begin + len(batch.features_Bd))
            made[batch] = _Rows(
                quantised_Bd=quantised_Nd[rows],
                restored_Bd=restored_Nd[rows],
                scores_BC=None if scores_NC is None else scores_NC[rows],
                novelty_B=None if novelty_N is None else novelty_N[rows],
            )
        return made

    def _answers(self, live: Snapshot, batch: Derived) -> Answers:
        """Of a batch by itself; through a tail once."""
        if batch not in self._apart:
            self._apart[batch] = live.answers(batch.features_Bd)
        return self._apart[batch]


def stacks(batches: Sequence[Derived], scale: FeatureScale) -> Iterator[Sequence[Derived]]:
    """The batches in their order, as many together as make a stack."""
    begin = numbers = 0
    for place, batch in enumerate(batches):
        numbers += _size(batch, scale)
        if numbers > _NUMBERS and place > begin:
            yield batches[begin:place]
            begin, numbers = place, _size(batch, scale)
    if batches:
        yield batches[begin:]


def _size(batch: Derived, scale: FeatureScale) -> int:
    """Numbers that it brings to a stack; 0 where it is none of its own, as where its samples wait elsewhere."""
    features_Bd = batch.features_Bd
    is_one = batch.refusal is None and features_Bd.ndim == 2 and features_Bd.shape[1] == scale.step_d.size
    return features_Bd.size if is_one else 0
