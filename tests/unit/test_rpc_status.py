"""Errors as google.rpc.Status: the text, the field, the reason, and what must not leak."""

from __future__ import annotations

import pytest
from google.rpc import error_details_pb2
from structlog.testing import capture_logs

from everlearn import errors as e
from everlearn_server.rpc.status import MAX_TEXT_BYTES, to_status


def detail(status: object, kind: type) -> object | None:
    for packed in status.details:  # type: ignore[attr-defined]
        if packed.Is(kind.DESCRIPTOR):
            return kind.FromString(packed.value)
    return None


def test_a_wrong_field_is_named_in_the_text_and_in_the_details() -> None:
    status = to_status(e.InputError("has 3 axes; it must have 4", field="inputs[0].shape"))
    assert (status.code, status.message) == (3, "inputs[0].shape: has 3 axes; it must have 4")
    (violation,) = detail(status, error_details_pb2.BadRequest).field_violations
    assert (violation.field, violation.description) == ("inputs[0].shape", "has 3 axes; it must have 4")


@pytest.mark.parametrize("kind", [e.NotFoundError, e.ConflictError, e.FencedError, e.UnavailableError])
def test_every_error_tells_its_reason_under_our_domain(kind: type[e.EverlearnError]) -> None:
    info = detail(to_status(kind("text", field="name")), error_details_pb2.ErrorInfo)
    assert (info.domain, info.reason, info.metadata["field"]) == ("everlearn", kind.reason, "name")


def test_a_sequence_gap_tells_the_expected_sequence() -> None:
    info = detail(to_status(e.SequenceGapError("gap", expected=7)), error_details_pb2.ErrorInfo)
    assert (info.reason, info.metadata["expected"]) == ("SEQUENCE_GAP", "7")


def test_an_accident_gets_an_id_and_its_text_goes_nowhere() -> None:
    try:
        raise ValueError("the payload is b'secret'")
    except ValueError as error:
        with capture_logs() as logs:
            status = to_status(error)
    assert status.code == 13
    (entry,) = logs
    assert entry["error_id"] in status.message
    assert entry["kind"] == "ValueError"
    assert any("test_rpc_status.py" in frame for frame in entry["frames"])
    assert "secret" not in f"{status} {entry}"


def test_a_long_text_is_cut_to_what_the_headers_carry() -> None:
    status = to_status(e.InputError("\N{PILE OF POO}" * 10_000, field="x" * 10_000))
    assert len(status.message.encode()) <= MAX_TEXT_BYTES
    assert status.message.endswith("...")
    assert len(status.SerializeToString()) < 3000
