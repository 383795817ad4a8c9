"""What every child that lives on a pipe does: answer question by question until nobody asks any more.

parent  --frame on stdin-->  a table of what may be asked  --frame on stdout-->  parent
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from everlearn.errors import EverlearnError
from everlearn.learners import _frames
from everlearn.learners._frames import Frame
from everlearn.runtime.process import become_background_child

Asked = Mapping[str, Callable[[Frame], Frame]]
"""By the name that a question's `ask` says."""


def answer(asked: Asked, question: Frame) -> Frame:
    """Errors of ours are answers; any other ends the process, and the parent begins another."""
    try:
        return asked[question.told["ask"]](question)
    except EverlearnError as error:
        told = {"kind": type(error).__name__, "message": error.message, "field": error.field}
        return Frame(told={"error": told | {"reason": error.reason}})


def serve(asked: Asked) -> None:
    """The process's whole life: niced, and ended with its parent."""
    become_background_child()
    # Whatever a library prints must not mix with the answers.
    questions, answers = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    while True:
        try:
            question = _frames.read(questions)
        except EOFError:
            return
        _frames.write(answers, answer(asked, question))
        # Or its samples would lie here until the next one.
        del question
