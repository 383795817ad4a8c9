"""everlearn.v1.FleetService: what devices tell of themselves, and which version each is to run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import grpc

from everlearn.errors import InvalidError
from everlearn.metrics.fleet import MOST_NOVEL
from everlearn.spec import rules
from everlearn.spec.device_labels import problem_of
from everlearn_protos.v1 import fleet_pb2 as p
from everlearn_server.engine.device_reports import GIVEN_UP, OTHERS, Report, Use
from everlearn_server.engine.engine import Engine
from everlearn_server.rpc import names, wire
from everlearn_server.rpc.caller import client_of

_BOOT = re.compile("[0-9a-f]{8,64}")
_USES = 4
_LABELS = 32
_MOST = 2**53
"""Of a counter: a number above it is no count of anything."""


class FleetService:
    """Translates; `engine.rollouts` counts and decides."""

    NAME = "everlearn.v1.FleetService"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def handler(self) -> grpc.GenericRpcHandler:
        """To register with the server."""
        return wire.service(self.NAME, {"CheckIn": wire.unary(p.CheckInRequest, self.check_in)})

    async def check_in(self, request: p.CheckInRequest, context: wire.Context) -> p.CheckInResponse:
        """Takes what the device says, and answers which version it is to run."""
        model = self._engine.model(names.model_of(request.name))
        client, report = client_of(context), _report(request)
        if request.follows not in ("", "stable", "latest"):
            raise InvalidError(names.unlike(request.follows, "stable or latest"), field="follows")
        rollout = model.rollout
        rollout.heard(client, report)
        wanted = rollout.wanted(client, report.labels, request.follows)
        declared = rollout.declared
        tell_labels = declared is not None and declared.health.max_label_shift is not None
        return p.CheckInResponse(
            version=wanted.number,
            canary=wanted.canary,
            tell_labels=tell_labels,
            withdrawn=rollout.is_withdrawn(report.running),
        )


def _report(request: p.CheckInRequest) -> Report:
    """Raises InvalidError."""
    labels = dict(request.labels)
    if found := problem_of(labels):
        key, problem = found
        raise InvalidError(problem, field=f"labels[{key}]" if key else "labels")
    if not _BOOT.fullmatch(request.boot):
        raise InvalidError(names.unlike(request.boot, "8 to 64 of 0-9 and a-f"), field="boot")
    if not 0 <= request.running < _MOST:
        raise InvalidError("is the number of a version, or 0 for none", field="running")
    if not (math.isfinite(request.up_s) and request.up_s >= 0):
        raise InvalidError("must be a number of seconds, from 0", field="up_s")
    return Report(
        labels=labels,
        boot=request.boot,
        running=request.running,
        uses=_uses(request),
        given_up=_given_up(request),
    )


def _uses(request: p.CheckInRequest) -> Mapping[int, Use]:
    if len(request.uses) > _USES:
        raise InvalidError(f"has {len(request.uses)} versions; at most {_USES}", field="uses")
    found: dict[int, Use] = {}
    for index, use in enumerate(request.uses):
        at = f"uses[{index}]"
        if not 0 < use.version < _MOST or use.version in found:
            raise InvalidError("must be a version's number, each once", field=f"{at}.version")
        found[use.version] = _use(use, at)
    return found


def _use(use: p.VersionUse, at: str) -> Use:
    labels = {label: count for label, count in use.labels.items() if label != OTHERS}
    if len(labels) > _LABELS:
        raise InvalidError(f"has {len(labels)} labels; at most {_LABELS}", field=f"{at}.labels")
    for label in labels:
        try:
            rules.label(label)
        except ValueError as error:
            raise InvalidError(str(error), field=f"{at}.labels") from None
    counts = (*labels.values(), use.other_labels)
    if min(counts) < 0 or sum(counts) > use.predictions:
        raise InvalidError("must not be negative, nor more than the predictions", field=f"{at}.labels")
    for name, part, whole in (
        ("predictions", use.predictions, _MOST),
        ("failed", use.failed, use.predictions),
        ("watched", use.watched, use.predictions),
        ("abstained", use.abstained, use.watched),
        ("novelty_sum", use.novelty_sum, MOST_NOVEL * use.watched),
        ("novelty_max", use.novelty_max, MOST_NOVEL),
        ("latency_ms", use.latency_ms, math.inf),
    ):
        if not 0 <= part <= whole:  # a figure that is no number is not either
            raise InvalidError(f"must be a number from 0 to {whole:g}", field=f"{at}.{name}")
    return Use(
        predictions=use.predictions,
        failed=use.failed,
        watched=use.watched,
        abstained=use.abstained,
        novelty_sum=use.novelty_sum,
        novelty_max=use.novelty_max,
        latency_ms=use.latency_ms,
        labels={**labels, **({OTHERS: use.other_labels} if use.other_labels else {})},
    )


def _given_up(request: p.CheckInRequest) -> Mapping[int, str]:
    if len(request.given_up) > GIVEN_UP:
        raise InvalidError(f"has {len(request.given_up)} versions; at most {GIVEN_UP}", field="given_up")
    found: dict[int, str] = {}
    for index, each in enumerate(request.given_up):
        if not 0 < each.version < _MOST:
            raise InvalidError("must be a version's number", field=f"given_up[{index}].version")
        # One of a later release has no name here, and is a reason all the same.
        known = each.why in p.GivenUp.Why.values()
        found[each.version] = p.GivenUp.Why.Name(each.why) if known else "UNKNOWN"
    return found
