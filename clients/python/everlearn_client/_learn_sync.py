"""Drives a LearnSession over a blocking stream. Everything but reading runs in the caller's thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Any

import grpc

from everlearn_client import events
from everlearn_client._heartbeat import Heartbeats
from everlearn_client._inputs import BatchInput
from everlearn_client._learn import LearnSession
from everlearn_client._retry import Retry, is_passing
from everlearn_client.errors import EverlearnClientError, from_rpc_error
from everlearn_protos.v1 import learn_pb2

OpenStream = Callable[[Iterator[learn_pb2.LearnRequest]], Any]
"""Starts the Learn call with these requests; grpc's call type is not public."""


def learn(
    open_stream: OpenStream,
    session: LearnSession,
    batches: Iterable[BatchInput],
    *,
    retry: Retry,
    on_event: Callable[[events.LearnEvent], None],
) -> events.LearnReport:
    """Streams all batches, reconnecting as often as `retry` allows, until each one is durable."""
    begun_s = time.monotonic()
    source = iter(batches)
    try:
        while not session.complete:
            connection = _Connection(open_stream)
            try:
                broken = _converse(connection, session, source, retry, on_event)
            finally:
                connection.close()
            if broken is None or session.complete:
                break
            delay_s = retry.delay_s(broken)
            on_event(events.Reconnecting(retry.attempt, delay_s, broken))
            time.sleep(delay_s)
        if session.failure is not None:
            raise session.failure
    except Exception as error:
        error.add_note(session.note_of(error))
        raise
    return session.report(time.monotonic() - begun_s)


def _converse(
    connection: _Connection,
    session: LearnSession,
    source: Iterator[BatchInput],
    retry: Retry,
    on_event: Callable[[events.LearnEvent], None],
) -> EverlearnClientError | None:
    """Talks until the stream ends. Returns the passing error that ended it, None if it is all done."""
    connection.send(session.open_request())
    while True:
        if session.wants_batch:
            _take(session, source)
        for request in session.next_messages():
            connection.send(request)
        if session.take_half_close():
            connection.half_close()
        answer = connection.receive(wait=not session.wants_batch)
        if isinstance(answer, learn_pb2.LearnResponse):
            event = session.on_response(answer)
            if isinstance(event, events.Durable):
                retry.progress()
            if event is not None:
                on_event(event)
        elif answer is not None:
            error = answer.error or session.on_end()
            if error is None or is_passing(error) or session.can_recover_from(error):
                return error
            raise error


def _take(session: LearnSession, source: Iterator[BatchInput]) -> None:
    try:
        batch = next(source)
    except StopIteration:
        session.finish()
    except Exception as error:
        # Not raised at once: what was handed over before it becomes durable first.
        session.finish(error)
    else:
        session.add(batch)


class _End:
    """The stream is over: with OK, or with an error."""

    def __init__(self, error: EverlearnClientError | None) -> None:
        self.error = error


class _Connection:
    """One Learn call. Its queues are bounded by the session's credits; nothing polls."""

    def __init__(self, open_stream: OpenStream) -> None:
        self._heartbeats = Heartbeats()
        self._requests: SimpleQueue[learn_pb2.LearnRequest | None] = SimpleQueue()
        self._answers: SimpleQueue[learn_pb2.LearnResponse | _End] = SimpleQueue()
        self._call = open_stream(iter(self._requests.get, None))
        self._reader = threading.Thread(target=self._read, name="everlearn-learn", daemon=True)
        self._reader.start()

    def send(self, request: learn_pb2.LearnRequest) -> None:
        self._heartbeats.sent(request)
        self._requests.put(request)

    def half_close(self) -> None:
        self._beat(self._heartbeats.at_the_end())
        self._requests.put(None)

    def receive(self, *, wait: bool) -> learn_pb2.LearnResponse | _End | None:
        """The next answer; None if there is none yet and `wait` is False."""
        try:
            return self._answers.get(block=wait)
        except Empty:
            return None

    def close(self) -> None:
        """Ends the call and both of its threads."""
        self._requests.put(None)
        self._call.cancel()
        self._reader.join()

    def _beat(self, heartbeats: list[learn_pb2.LearnRequest]) -> None:
        for heartbeat in heartbeats:
            self._requests.put(heartbeat)

    def _read(self) -> None:
        try:
            for response in self._call:
                # Here and not in the caller's thread: that may wait for the next batch for hours.
                self._beat(self._heartbeats.after(response))
                self._answers.put(response)
        except grpc.RpcError as error:
            self._answers.put(_End(from_rpc_error(error)))
        else:
            self._answers.put(_End(None))
