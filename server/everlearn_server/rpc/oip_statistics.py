"""What ModelStatistics tells: cumulative counts and durations of each model version, as Triton counts them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

from everlearn_protos.oip import message
from everlearn_server.engine.serving import Scored, Snapshot

MAX_VERSIONS = 4096
"""Model versions counted at once; the one unused for longest is forgotten first."""


@dataclass
class VersionCounters:
    """Counts and nanoseconds of one model version since the server started."""

    last_inference_ms: int = 0
    inferences: int = 0
    """Samples of successful requests."""
    successes: int = 0
    success_ns: int = 0
    failures: int = 0
    fail_ns: int = 0
    queue_ns: int = 0
    compute_input_ns: int = 0
    compute_infer_ns: int = 0
    compute_output_ns: int = 0


class Timing:
    """One request on its way; `scored` is called when the scores are there."""

    def __init__(self) -> None:
        self.result: Scored | None = None
        self.scored_ns = 0

    def scored(self, result: Scored) -> None:
        """Notes the engine's durations; what follows is output."""
        self.result = result
        self.scored_ns = perf_counter_ns()


class Statistics:
    """Counters by (model, version). Lives on the event loop; not thread-safe."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._counters: OrderedDict[tuple[str, int], VersionCounters] = OrderedDict()

    @contextmanager
    def timing(self, snapshot: Snapshot) -> Iterator[Timing]:
        """Counts the block as one request of this version: a success, or a failure if it raises."""
        timing = Timing()
        begin_ns = perf_counter_ns()
        counted = False
        try:
            yield timing
            counted = True
        finally:
            self._count(snapshot, timing if counted else None, begin_ns, perf_counter_ns())

    def counters(self, model: str, version: int) -> VersionCounters:
        """A reading; zeros where nothing was asked yet."""
        return self._counters.get((model, version)) or VersionCounters()

    def _count(self, snapshot: Snapshot, timing: Timing | None, begin_ns: int, end_ns: int) -> None:
        key = (snapshot.model, snapshot.version)
        counters = self._counters.setdefault(key, VersionCounters())
        self._counters.move_to_end(key)
        if len(self._counters) > MAX_VERSIONS:
            self._counters.popitem(last=False)
        if timing is None or timing.result is None:
            counters.failures += 1
            counters.fail_ns += end_ns - begin_ns
            return
        result = timing.result
        counters.last_inference_ms = int(self._clock() * 1000)
        counters.inferences += len(result.scores_BC)
        counters.successes += 1
        counters.success_ns += end_ns - begin_ns
        counters.queue_ns += int(result.queue_ms * 1e6)
        counters.compute_input_ns += int(result.decode_ms * 1e6)
        counters.compute_infer_ns += int((result.trunk_ms + result.head_ms) * 1e6)
        counters.compute_output_ns += end_ns - timing.scored_ns


def statistics_message(model: str, version: int, counters: VersionCounters) -> Any:
    """One `inference.ModelStatistics`. Each request counts as one execution: batching across requests is not told."""
    result = message("ModelStatistics")(
        name=model,
        version=str(version),
        last_inference=counters.last_inference_ms,
        inference_count=counters.inferences,
        execution_count=counters.successes,
    )
    stats = result.inference_stats
    _duration(stats.success, counters.successes, counters.success_ns)
    _duration(stats.fail, counters.failures, counters.fail_ns)
    _duration(stats.queue, counters.successes, counters.queue_ns)
    _duration(stats.compute_input, counters.successes, counters.compute_input_ns)
    _duration(stats.compute_infer, counters.successes, counters.compute_infer_ns)
    _duration(stats.compute_output, counters.successes, counters.compute_output_ns)
    return result


def _duration(target: Any, count: int, ns: int) -> None:
    target.count = count
    target.ns = ns
