"""A rollout, and what devices reported, as messages of the wire."""

from __future__ import annotations

import time

from everlearn_protos.v1 import clients_pb2, models_pb2
from everlearn_server.engine.clients import DeviceFigures
from everlearn_server.engine.device_reports import Cohort
from everlearn_server.engine.rollout import HOUR_S
from everlearn_server.engine.rollouts import LiveRollout
from everlearn_server.rpc.moments import timestamp


def rollout_message(rollout: LiveRollout) -> models_pb2.RolloutStatus:
    """Of a model that declares one."""
    declared, state = rollout.declared, rollout.state
    assert declared is not None, "where no rollout is declared there is nothing to tell"
    tried, others = rollout.cohorts()
    message = models_pb2.RolloutStatus(canary=state.canary, others=_cohort(others))
    if state.canary:
        message.since.CopyFrom(timestamp(state.opened_s))
        message.tried.CopyFrom(_cohort(tried))
        message.waits_for = state.judged(declared, tried, others, now_s=time.time()).reason
    if state.watch is not None:
        message.before = state.watch.before
        message.watched_until.CopyFrom(timestamp(state.watch.since_s + declared.watch_hours * HOUR_S))
    for each in reversed(state.withdrawn):
        message.withdrawn.add(version=each.number, reason=each.reason, time=timestamp(each.time_s))
    return message


def device_message(device: DeviceFigures) -> clients_pb2.DeviceReport:
    """Of one client that is a device."""
    use = device.use
    message = clients_pb2.DeviceReport(
        labels=device.labels,
        check_in_time=timestamp(device.heard_time_s),
        running=device.running,
        predictions=use.predictions,
        failed_share=use.failed / use.predictions if use.predictions else 0.0,
        latency_ms=use.latency_ms,
        given_up=device.given_up,
        is_canary=device.is_canary,
    )
    if use.watched:
        message.unsure_share, message.novelty = use.abstained / use.watched, use.novelty_sum / use.watched
    return message


def _cohort(cohort: Cohort) -> models_pb2.CohortFigures:
    return models_pb2.CohortFigures(
        devices=cohort.devices,
        gave_up=cohort.gave_up,
        predictions=cohort.predictions,
        failed_share=cohort.failed_share,
        unsure_share=cohort.unsure_share,
        novelty=cohort.novelty,
    )
