"""When a learning stream has said all it has, it says something that means nothing: see `Heartbeat` in learn.proto."""

from __future__ import annotations

from everlearn_protos.v1 import learn_pb2

PIECE_BYTES = 2**10
"""Small, for after large messages the server's gRPC begins larger buffers."""


class Heartbeats:
    """Of one connection: what was sent since the last one, and how large the server wants them."""

    def __init__(self) -> None:
        self._wanted_bytes = 0
        self._is_due = False
        self._sequence = 0

    def sent(self, request: learn_pb2.LearnRequest) -> None:
        """Notes what goes out."""
        if request.HasField("batch"):
            self._sequence, self._is_due = request.batch.sequence, True

    def after(self, response: learn_pb2.LearnResponse) -> list[learn_pb2.LearnRequest]:
        """Due when all that was sent is durable."""
        if response.HasField("opened"):
            self._wanted_bytes = response.opened.heartbeat_bytes
        is_last = response.HasField("durable") and response.durable.sequence >= self._sequence
        return self.at_the_end() if is_last else []

    def at_the_end(self) -> list[learn_pb2.LearnRequest]:
        """Due when nothing more will be sent; none where nothing was since the last one."""
        if not self._is_due or not self._wanted_bytes:
            return []
        self._is_due = False
        piece = learn_pb2.LearnRequest(heartbeat=learn_pb2.Heartbeat(padding=bytes(PIECE_BYTES)))
        # A call's last message stays until the call is forgotten, and the buffer that it lies in: hence the empty one.
        empty = learn_pb2.LearnRequest(heartbeat=learn_pb2.Heartbeat())
        return [piece] * -(-self._wanted_bytes // PIECE_BYTES) + [empty]
