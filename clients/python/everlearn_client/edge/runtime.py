"""A device without code of its own: what a folder gives is predicted, and taught where its label is known.

One record a file (`Record`), whose names are part of the interface:

    file      its path within the source; of standard input `-`
    line      of a file or stream that holds a text a line
    label     the best class; of several labels `labels`, a list of {label, score}; of a regression `values`
    score     of that class
    novelty   how unlike all learned classes it is, and `abstained`, of a model that declares unknown: abstain
    version   `models/{model}/versions/{number}` that answered
    truth     the label that the device knows, where it does
    decision  what became of it as a lesson: send, sure, duplicate, rate
    seconds   since the start, by a clock that does not jump
    error     why there is no answer, or no lesson: {code, field, message}

A figure that is no finite number is null: JSON has no other word for it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from everlearn_client.edge import texts
from everlearn_client.edge.folder_source import FolderSource, Found
from everlearn_client.edge.model import EdgeModel
from everlearn_client.edge.pictures import read
from everlearn_client.edge.texts import Line
from everlearn_client.errors import ERROR_OF_STATUS, EverlearnClientError, InvalidArgument
from everlearn_client.results import Predictions
from everlearn_client.samples import SampleInput, Tensors, Texts

Record = dict[str, Any]
UNREADABLE: Final = "UNREADABLE"
"""Code of a file that the disk does not give; others are names of gRPC's statuses."""

logger = logging.getLogger(__name__)


class Runtime:
    """Connects a source to a model; whoever has it calls `step` again and again."""

    def __init__(
        self,
        model: EdgeModel,
        source: FolderSource | None,
        put: Callable[[Record], None],
        *,
        step: str = "",
        label: str = "",
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`source`: None for who gives lines alone. `put`: takes each record. `step`: the task, domain or season of
        what is taught. `label`: of files that have none of their own."""
        self._model, self._source, self._put = model, source, put
        self._step, self._label, self._clock_s = step, label, clock_s
        self._begun_s = clock_s()
        self._source_fails = False
        self.answered = self.failed = 0

    def step(self, stopped: Callable[[], bool]) -> int:
        """Reads what is whole, one file after the other, until nothing is left or `stopped`; returns how many.

        Nothing is read before there is a model: files wait where they are. A power cut between a lesson and what
        becomes of its file lets that one file be taught again.
        """
        if self._source is None or not self._model.version:
            return 0
        try:
            found = self._source.whole()
        except OSError as error:
            if not self._source_fails:
                logger.warning("the source cannot be read, and is tried again: %s", error)
            self._source_fails = True
            return 0
        self._source_fails, count = False, 0
        for each in found:
            if stopped():
                break
            self._one(self._source, each)
            count += 1
        return count

    def line(self, name: str, line: Line) -> None:
        """One text of a stream, which has nothing but its own label, or the one that was given for all."""
        self._put_one({"file": name, "line": line.number}, lambda record: self._text(line, None, record))

    def _one(self, source: FolderSource, found: Found) -> None:
        failed = self.failed
        if self._model.takes_texts:
            self._texts(source, found)
        else:
            self._put_one({"file": found.name}, lambda record: self._picture(source, found, record))
        try:
            source.done(found, failed=self.failed > failed)
        except OSError as error:
            logger.warning("%s stays where it is: %s", found.name, error)

    def _texts(self, source: FolderSource, found: Found) -> None:
        """One record a text, or one that says why the file cannot be read."""
        try:
            labels, lines = source.label_of(found), list(texts.read(found.path))
        except (EverlearnClientError, OSError) as error:
            self._put_one({"file": found.name}, partial(_fail, error))
            return
        for line in lines:
            named: Record = {"file": found.name} | ({} if line.number is None else {"line": line.number})
            self._put_one(named, partial(self._text, line, labels))

    def _text(self, line: Line, labels: list[str] | None, record: Record) -> None:
        if line.error is not None:
            raise line.error
        answer = self._model.predict(Texts([line.text]), scores=True)
        _tell(record, answer, self._model.task)
        self._teach(line.text, line.labels if line.labels is not None else labels, answer, record)

    def _picture(self, source: FolderSource, found: Found, record: Record) -> None:
        read_ = read(found.path)
        form: SampleInput = read_.array if read_.array.dtype == np.uint8 else Tensors(read_.array[None])
        answer = self._model.predict(form, scores=True)
        _tell(record, answer, self._model.task)
        send = None if read_.encoded is None or not self._model.sends_samples else [read_.encoded]
        self._teach(read_.array, source.label_of(found), answer, record, send=send)

    def _put_one(self, record: Record, work: Callable[[Record], None]) -> None:
        try:
            work(record)
        except EverlearnClientError as error:
            record["error"] = {
                "code": error.code or _code(error),
                "field": error.field,
                "message": error.message,
            }
        except OSError as error:
            record["error"] = {"code": UNREADABLE, "field": "file", "message": error.strerror or type(error).__name__}
        failed = "error" in record
        self._put({**_finite(record), "seconds": round(self._clock_s() - self._begun_s, 3)})
        self.answered, self.failed = self.answered + (not failed), self.failed + failed

    def _teach(
        self,
        sample: npt.NDArray[Any] | str,
        lines: list[str] | None,
        answer: Predictions,
        record: Record,
        *,
        send: SampleInput | None = None,
    ) -> None:
        if lines is None and self._label:
            lines = [self._label]
        if lines is None:
            return
        truth = _truth(lines, self._model.task)
        record["truth"] = truth
        record["decision"] = self._model.observe(
            sample,
            truth,
            send=send,
            step=self._step,
            scores_C=None if answer.scores_NC is None or any(answer.abstained) else answer.scores_NC[0],
        )


def _tell(record: Record, answer: Predictions, task: str) -> None:
    if answer.values_NK is not None:
        record["values"] = dict(zip(answer.labels, map(float, answer.values_NK[0]), strict=True))
    else:
        scored = [{"label": each.label, "score": each.score} for each in answer.top[0]]
        record.update({"labels": scored} if task == "multilabel" else scored[0])
    if answer.novelty:
        record.update({"novelty": answer.novelty[0], "abstained": answer.abstained[0]})
    record["version"] = answer.version


def _fail(error: Exception, record: Record) -> None:
    raise error


def _code(error: EverlearnClientError) -> str:
    """Of an error that was raised here: the status that a server's of its kind would have."""
    return next((status.name for status, kind in ERROR_OF_STATUS.items() if isinstance(error, kind)), "INTERNAL")


def _finite(told: Any) -> Any:
    if isinstance(told, dict):
        return {name: _finite(each) for name, each in told.items()}
    if isinstance(told, list):
        return [_finite(each) for each in told]
    return None if isinstance(told, float) and not math.isfinite(told) else told


def _truth(lines: list[str], task: str) -> Any:
    """One label; of several labels a list, which may be empty; of a regression a number a line."""
    if task == "multilabel":
        return lines
    if task == "regression":
        try:
            return [float(line) for line in lines]
        except ValueError:
            raise InvalidArgument("the label is no number a line; the model learns values", field="label") from None
    if len(lines) != 1:
        raise InvalidArgument(f"the label has {len(lines)} lines; one is needed", field="label")
    return lines[0]
