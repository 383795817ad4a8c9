"""Drives a LearnSession over an asyncio stream. Sync iterables of the caller are advanced in a thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any

import grpc

from everlearn_client import events
from everlearn_client._heartbeat import Heartbeats
from everlearn_client._inputs import BatchInput
from everlearn_client._learn import LearnSession
from everlearn_client._retry import Retry, is_passing
from everlearn_client.errors import EverlearnClientError, from_rpc_error
from everlearn_protos.v1 import learn_pb2

OpenStream = Callable[[AsyncIterator[learn_pb2.LearnRequest]], Any]
"""Starts the Learn call with these requests; grpc's call type is not public."""


async def learn(
    open_stream: OpenStream,
    session: LearnSession,
    batches: Iterable[BatchInput] | AsyncIterable[BatchInput],
    *,
    retry: Retry,
    on_event: Callable[[events.LearnEvent], None],
) -> events.LearnReport:
    """Streams all batches, reconnecting as often as `retry` allows, until each one is durable."""
    begun_s = time.monotonic()
    source = _Source(batches)
    try:
        while not session.complete:
            broken = await _converse(open_stream, session, source, retry, on_event)
            if broken is None or session.complete:
                break
            delay_s = retry.delay_s(broken)
            on_event(events.Reconnecting(retry.attempt, delay_s, broken))
            await asyncio.sleep(delay_s)
        if session.failure is not None:
            raise session.failure
    except Exception as error:
        error.add_note(session.note_of(error))
        raise
    finally:
        source.close()
    return session.report(time.monotonic() - begun_s)


async def _converse(
    open_stream: OpenStream,
    session: LearnSession,
    source: _Source,
    retry: Retry,
    on_event: Callable[[events.LearnEvent], None],
) -> EverlearnClientError | None:
    """Talks until the stream ends. Returns the passing error that ended it, None if it is all done."""
    connection = _Connection(open_stream)
    connection.send(session.open_request())
    try:
        while True:
            for request in session.next_messages():
                connection.send(request)
            if source.taken is None and session.wants_batch:
                source.take()
            if session.take_half_close():
                connection.half_close()
            waiting = {connection.answer()} | ({source.taken} if source.taken else set())
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            source.deliver(session)
            answer = connection.take_answer()
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
    finally:
        await connection.close()


class _End:
    """The stream is over: with OK, or with an error."""

    def __init__(self, error: EverlearnClientError | None) -> None:
        self.error = error


class _Source:
    """The caller's batches; at most one is being fetched, also across reconnects."""

    def __init__(self, batches: Iterable[BatchInput] | AsyncIterable[BatchInput]) -> None:
        self._async = aiter(batches) if isinstance(batches, AsyncIterable) else None
        self._sync = None if isinstance(batches, AsyncIterable) else iter(batches)
        self.taken: asyncio.Task[BatchInput | _End] | None = None

    def take(self) -> None:
        self.taken = asyncio.create_task(self._next())

    def deliver(self, session: LearnSession) -> None:
        """Hands a fetched batch, or the end, to the session."""
        if self.taken is None or not self.taken.done():
            return
        task, self.taken = self.taken, None
        error = task.exception()
        if isinstance(error, Exception):
            # Not raised at once: what was handed over before it becomes durable first.
            session.finish(error)
            return
        batch = task.result()
        if isinstance(batch, _End):
            session.finish()
        else:
            session.add(batch)

    def close(self) -> None:
        if self.taken is not None:
            self.taken.cancel()

    async def _next(self) -> BatchInput | _End:
        if self._async is not None:
            return await anext(self._async, _End(None))
        # A StopIteration cannot cross a future: the default does.
        return await asyncio.to_thread(next, self._sync, _End(None))  # type: ignore[arg-type]  # one of both is set


class _Connection:
    """One Learn call. Its queue is bounded by the session's credits."""

    def __init__(self, open_stream: OpenStream) -> None:
        self._heartbeats = Heartbeats()
        self._requests: asyncio.Queue[learn_pb2.LearnRequest | None] = asyncio.Queue()
        self._call = open_stream(self._outgoing())
        self._answers = aiter(self._call)
        self._answer: asyncio.Task[learn_pb2.LearnResponse | _End] | None = None

    def send(self, request: learn_pb2.LearnRequest) -> None:
        self._heartbeats.sent(request)
        self._requests.put_nowait(request)

    def half_close(self) -> None:
        self._beat(self._heartbeats.at_the_end())
        self._requests.put_nowait(None)

    def answer(self) -> asyncio.Task[learn_pb2.LearnResponse | _End]:
        """The read in progress: one at a time."""
        if self._answer is None:
            self._answer = asyncio.create_task(self._read())
        return self._answer

    def take_answer(self) -> learn_pb2.LearnResponse | _End | None:
        """The answer, if it is there."""
        if self._answer is None or not self._answer.done():
            return None
        task, self._answer = self._answer, None
        return task.result()

    async def close(self) -> None:
        self._requests.put_nowait(None)
        self._call.cancel()
        if self._answer is not None:
            await asyncio.wait({self._answer})

    async def _read(self) -> learn_pb2.LearnResponse | _End:
        try:
            # Not read(): that forgets answers that arrived before the stream ended.
            response: learn_pb2.LearnResponse = await anext(self._answers)
        except StopAsyncIteration:
            return _End(None)
        except grpc.RpcError as error:
            return _End(from_rpc_error(error))
        except asyncio.CancelledError:
            return _End(None)
        self._beat(self._heartbeats.after(response))
        return response

    def _beat(self, heartbeats: list[learn_pb2.LearnRequest]) -> None:
        for heartbeat in heartbeats:
            self._requests.put_nowait(heartbeat)

    async def _outgoing(self) -> AsyncIterator[learn_pb2.LearnRequest]:
        while (request := await self._requests.get()) is not None:
            yield request
