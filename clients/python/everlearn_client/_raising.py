"""Iterators that are handed to gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Raising(Generic[Item]):
    """An iterator for gRPC that remembers its error: gRPC would only say that iterating failed."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        try:
            return next(self._items)
        except StopIteration:
            raise
        except Exception as error:
            self.error = error
            raise
