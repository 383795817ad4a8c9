"""First session, then closed form: the last blocks are fitted once, on the first samples, and stand still ever after.

    waiting:  values at the cut -> RAM                    predictions: base blocks -> head over what waits
    the end:  a child fits blocks on most of them, the rest of them judges: better than the base blocks, or left
    after:    values -> fitted blocks -> sums -> head     all samples, the first ones included, exactly as `ClosedForm`

First Session Adaptation (Panos et al. 2023, arXiv:2303.13199): a backbone far from the data gains most from its first
adaptation; what would be forgotten later is not learned by steps at all. What waits is in RAM only. It is lost when the
server is, and was therefore never acknowledged as durable: clients send it again.

Axes: B samples in a batch, N samples that wait, n values at the cut, d features.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from everlearn.backbones.probes import feature_scale
from everlearn.backbones.tail import Tail, TailSession
from everlearn.errors import DataLossError, PreconditionError
from everlearn.labels import Labels
from everlearn.learners._around import LearnedAround
from everlearn.learners.base import Learned, Learner, Solution
from everlearn.learners.closed_form import ClosedForm
from everlearn.memories.base import Origin
from everlearn.memories.sealing import Sealer
from everlearn.runtime.session import CPU
from everlearn.spec.model import ModelSpec
from everlearn.sums import Sums
from everlearn.truth import Truth, single_labels
from everlearn.values import FeaturesBd, FeatureScale, QuantisedBd

Fit = Callable[[Tail, FeaturesBd, Sequence[str]], Tail]
"""(tail, values [N, n], labels) -> the tail after some epochs on them. Raises UnavailableError, PreconditionError."""
LEAST: Final = 32
"""Samples, of two classes at least, below which nothing is fitted."""
_JUDGES: Final = 3
"""Each third sample of a class judges."""
_FORMAT: Final = 1
_ROWS: Final = 64
"""Samples that pass through the blocks at once."""


class FirstSession(Learner):
    """See the module's text."""

    def __init__(
        self,
        spec: ModelSpec,
        scale: FeatureScale,
        tail: Tail,
        fit: Fit,
        data: bytes | None = None,
        *,
        provider: str = CPU,
        sealer: Sealer | None = None,
    ) -> None:
        """`tail`: the base blocks. `provider`: ONNX Runtime's, for blocks that stand still. `sealer`: see ClosedForm.
        Raises DataLossError for bytes that do not belong to it."""
        self._spec = spec
        self._scale = scale
        self._base = tail
        self._fit = fit
        self._provider = provider
        self._sealer = sealer
        self._waiting: list[tuple[QuantisedBd, list[str], Origin | None]] = []
        self._table = Labels(spec.labels)
        self._seen_C = np.zeros(len(self._table), np.int64)
        self._after: _After | None = _After.from_bytes(data, spec, tail, provider, sealer) if data else None
        self.figures: dict[str, float] = {}
        """Of the session: samples, and accuracy of both on those that judged."""
        self.declare(spec.labels)

    @property
    def labels(self) -> Sequence[str]:
        """See Learner."""
        return list(self._table) if self._after is None else self._after.inner.labels

    @property
    def count_C(self) -> npt.NDArray[np.int64]:  # noqa: N802  # axes
        """See Learner."""
        return self._seen_C if self._after is None else self._after.inner.count_C

    @property
    def holds_samples(self) -> bool:
        """See Learner."""
        return bool(self._waiting)

    @property
    def patience_s(self) -> float:
        """See Learner."""
        return self._spec.adapt.patience_s or 0.0

    @property
    def sums(self) -> Sums:
        """See Learner."""
        if self._after is None:
            raise PreconditionError("the first session has not ended; stream more samples", reason="NO_SUMS")
        return self._after.inner.sums

    @property
    def sums_scale(self) -> FeatureScale:
        """See Learner."""
        return self._after.inner.scale if self._after is not None else super().sums_scale

    def integrate(self, quantised_Bd: QuantisedBd, labels: Truth, *, origin: Origin | None = None) -> None:
        """See Learner."""
        labels = single_labels(labels)
        if self._after is not None:
            self._after.integrate(self._scale.restore(quantised_Bd), labels, origin)
            return
        self._table.check_batch(quantised_Bd, labels, self._scale.step_d.size)
        if not len(labels):
            return
        index_B = self._table.take(labels)
        self._seen_C = np.pad(self._seen_C, (0, len(self._table) - len(self._seen_C)))
        np.add.at(self._seen_C, index_B, 1)
        self._waiting.append((quantised_Bd, list(labels), origin))
        if self._seen_C.sum() >= (self._spec.adapt.samples or 0):
            self.settle()

    def declare(self, labels: Sequence[str]) -> None:
        """See Learner."""
        if self._after is not None:
            self._after.inner.declare(labels)
            return
        self._table.declare([label for label in labels if label not in self._table])
        self._seen_C = np.pad(self._seen_C, (0, len(self._table) - len(self._seen_C)))

    def learned(self) -> Learned:
        """See Learner."""
        after = self._after or self._joined(self._base)
        return LearnedThrough(after.tail, after.inner.learned(), dict(self.figures))

    def configure(self, spec: ModelSpec) -> None:
        """See Learner."""
        self._spec = spec
        if self._after is not None:
            self._after.inner.configure(spec)

    def to_bytes(self) -> bytes:
        """See Learner. Without what waits, which is not to be at rest."""
        return b"" if self._after is None else self._after.to_bytes()

    def settle(self) -> None:
        """Ends the session with the samples that wait; without any it goes on waiting."""
        if not self._waiting or self._after is not None:
            return
        self._after = self._joined(self._chosen())
        self._waiting.clear()

    # -- inside -------------------------------------------------------------------------------------------------

    def _chosen(self) -> Tail:
        """The fitted blocks where they are better on samples they have not seen, else the base's."""
        values_Nn, labels = self._rows()
        if len(labels) < LEAST or np.count_nonzero(self._seen_C) < 2:
            return self._base
        judges_N = _judges(labels)
        taught = [label for label, judges in zip(labels, judges_N, strict=True) if not judges]
        fitted = self._fit(self._base, values_Nn[~judges_N], taught)
        accuracy = [self._judged(tail, values_Nn, labels, judges_N) for tail in (self._base, fitted)]
        self.figures = {"samples": len(labels), "base_accuracy": accuracy[0], "fitted_accuracy": accuracy[1]}
        # A tie is the base's, whose features were not fitted to anything.
        return fitted if accuracy[1] > accuracy[0] else self._base

    def _judged(self, tail: Tail, values_Nn: FeaturesBd, labels: list[str], judges_N: npt.NDArray[np.bool_]) -> float:
        """Accuracy on the judges of a head solved from the others."""
        features_Nd = _through(TailSession(tail, provider=self._provider), values_Nn)
        learner = ClosedForm.of(self._spec, _scale_of(features_Nd[~judges_N], self._spec.memory.bits))
        learner.learn(features_Nd[~judges_N], [label for label, j in zip(labels, judges_N, strict=True) if not j])
        wanted = [label for label, j in zip(labels, judges_N, strict=True) if j]
        found = learner.predict(features_Nd[judges_N])
        return float(np.mean([a == b for a, b in zip(found, wanted, strict=True)]))

    def _joined(self, tail: Tail) -> _After:
        """Closed form over what waits, seen through a tail."""
        session = TailSession(tail, provider=self._provider)
        features = [_through(session, self._scale.restore(quantised_Bd)) for quantised_Bd, _, _ in self._waiting]
        every_Nd = np.concatenate([np.ones((1, tail.feature_dim), np.float32), *features])[bool(features) :]
        inner = ClosedForm.of(self._spec, _scale_of(every_Nd, self._spec.memory.bits), sealer=self._sealer)
        inner.declare(list(self._table))
        for features_Bd, (_, labels, origin) in zip(features, self._waiting, strict=True):
            inner.integrate(inner.scale.quantise(features_Bd), labels, origin=origin)
        return _After(tail, session, inner)

    def _rows(self) -> tuple[FeaturesBd, list[str]]:
        values_Nn = np.concatenate([self._scale.restore(quantised_Bd) for quantised_Bd, _, _ in self._waiting])
        return values_Nn, [label for _, labels, _ in self._waiting for label in labels]


class _After:
    """Blocks that stand still, and the sums of what they give."""

    def __init__(self, tail: Tail, session: TailSession, inner: ClosedForm) -> None:
        self.tail = tail
        self.inner = inner
        self._session = session

    def integrate(self, values_Bn: FeaturesBd, labels: Sequence[str], origin: Origin | None) -> None:
        """Through the blocks into the sums."""
        features_Bd = _through(self._session, values_Bn)
        self.inner.integrate(self.inner.scale.quantise(features_Bd), labels, origin=origin)

    def to_bytes(self) -> bytes:
        """Header line of JSON, the tail's weights, the inner learner's state."""
        scale = self.inner.scale
        header = {
            "format": _FORMAT,
            "graph": self.tail.graph_digest,
            "weights": len(self.tail.weights),
            "bits": scale.bits,
            "step_d": base64.b64encode(scale.step_d.astype("<f4").tobytes()).decode(),
        }
        return b"".join((json.dumps(header).encode(), b"\n", self.tail.weights, self.inner.to_bytes()))

    @classmethod
    def from_bytes(cls, data: bytes, spec: ModelSpec, base: Tail, provider: str, sealer: Sealer | None) -> _After:
        """What `to_bytes` wrote."""
        line, _, body = data.partition(b"\n")
        try:
            header = json.loads(line)
            if (header["format"], header["graph"]) != (_FORMAT, base.graph_digest):
                raise DataLossError("the stored first session belongs to other blocks than the trunk has")
            size = int(header["weights"])
            step_d = np.frombuffer(base64.b64decode(header["step_d"], validate=True), "<f4").astype(np.float32)
            scale = FeatureScale(step_d=step_d, bits=int(header["bits"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataLossError(f"the stored first session cannot be read ({type(error).__name__})") from error
        tail = replace(base, weights=body[:size])
        return cls(tail, TailSession(tail, provider=provider), ClosedForm.of(spec, scale, body[size:], sealer=sealer))


class LearnedThrough(LearnedAround):
    """What a closed form has learned of features that come through a tail."""

    def __init__(self, tail: Tail, inner: Learned, figures: dict[str, float]) -> None:
        super().__init__(inner)
        self._tail = tail
        self._figures = figures

    @property
    def figures(self) -> dict[str, float]:
        """See Learned."""
        return self._figures

    def solve(self, *, hint: float | None = None) -> Solution:
        """See Learned."""
        return Solution(head=self._inner.solve(hint=hint).head, tail=self._tail)


def _through(session: TailSession, values_Bn: FeaturesBd) -> FeaturesBd:
    parts = [session.run(values_Bn[at : at + _ROWS]) for at in range(0, len(values_Bn), _ROWS)]
    return np.concatenate(parts) if parts else session.run(values_Bn)


def _scale_of(features_Nd: FeaturesBd, bits: int) -> FeatureScale:
    """From what has come; a session may end with one sample, or with some that are all alike."""
    if (features_Nd != features_Nd[0]).any():
        return feature_scale(features_Nd, bits)
    return feature_scale(np.concatenate([features_Nd, np.zeros_like(features_Nd[:1]) - 1e-3]), bits)


def _judges(labels: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Each third sample of each class, in order of arrival."""
    met: dict[str, int] = {}
    judges = []
    for label in labels:
        met[label] = met.get(label, 0) + 1
        judges.append(met[label] % _JUDGES == 0)
    return np.array(judges, np.bool_)
