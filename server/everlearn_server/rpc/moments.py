"""Moments as messages of the wire."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp


def timestamp(seconds: float) -> Timestamp:
    """Seconds since the epoch as a message."""
    message = Timestamp()
    message.FromMicroseconds(round(seconds * 1e6))
    return message
