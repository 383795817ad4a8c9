"""A rollout and a device as the command tells them."""

from __future__ import annotations

import pytest

from everlearn_client.cli.device import device_labels
from everlearn_client.cli.rollouts import told_rollout
from everlearn_client.errors import InvalidArgument
from everlearn_protos.v1 import models_pb2


def test_a_canary_says_what_it_waits_for_and_how_it_fares() -> None:
    tried = models_pb2.CohortFigures(
        devices=2, predictions=40, failed_share=0.25, unsure_share=0.1, novelty=0.5, gave_up=1
    )
    told = told_rollout(models_pb2.RolloutStatus(canary=7, waits_for="60 more predictions", tried=tried))
    assert told[0].endswith("60 more predictions")
    assert (
        "2 devices, 40 predictions that count, 25.0% failed, 10.0% unknown (mean novelty 0.50); 1 gave it up" in told[1]
    )


def test_what_was_withdrawn_is_told_newest_first_and_counted_beyond_five() -> None:
    status = models_pb2.RolloutStatus(before=3)
    for number in range(9, 2, -1):
        status.withdrawn.add(version=number, reason="bad")
    told = told_rollout(status)
    assert told[0] == "canary: none is tried now"
    assert told[1].endswith("send stable back to version 3")
    assert told[2].startswith("withdrawn: version 9")
    assert told[-1] == "withdrawn: 2 more before those"


def test_labels_of_a_device_are_pairs() -> None:
    assert device_labels(["site=lab", "empty="]) == {"site": "lab", "empty": ""}
    for wrong in (["site"], ["site=a", "site=b"]):
        with pytest.raises(InvalidArgument, match="KEY=VALUE"):
            device_labels(wrong)
