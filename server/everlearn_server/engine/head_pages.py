"""Weights of versions that nobody serves by default: read from the store when somebody asks for one by its number.

A model keeps twenty versions, and a server a thousand models: at d = 1280 and ten classes 51 KB each, a gigabyte. What
`stable` or `latest` name stays in RAM (damage on the disk is to be met by a restart, not by a request); of the others
the last ones asked for.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from everlearn.errors import NotFoundError
from everlearn.values import LinearHead, Novelty
from everlearn_server.engine.head_file import load_head
from everlearn_server.engine.versions import Versioned

_CAPACITY_BYTES = 2**26
_WEIGHTS = ("weight_dC", "bias_C")


@dataclass(frozen=True, kw_only=True)
class _Page:
    """Where weights are stored, and what they are."""

    model: str
    number: int
    sha256: bytes
    """A model may be deleted and declared again while a request still holds a version of the first."""


class PagedHead(LinearHead):
    """A head whose weights are read when they are looked at. `is_loaded`: nobody would wait for that now."""

    _pages: HeadPages
    _page: _Page
    _tells_novelty: bool

    @property
    def tells_novelty(self) -> bool:
        """Whether there is one."""
        return self._tells_novelty

    @property
    def novelty(self) -> Novelty | None:
        """Read as the weights are."""
        return self._pages.head(self._page).novelty if self._tells_novelty else None

    @property
    def is_loaded(self) -> bool:
        """Whether its weights are in RAM."""
        return self._pages.has(self._page)

    def __getattr__(self, name: str) -> Any:
        if name not in _WEIGHTS:
            raise AttributeError(name)
        return getattr(self._pages.head(self._page), name)


class HeadPages:
    """The weights that were asked for last. Any thread."""

    def __init__(self, read: Callable[[str, int], bytes], *, capacity_bytes: int = _CAPACITY_BYTES) -> None:
        """`read` gives a version's stored bytes, verified; it raises NotFoundError, DataLossError."""
        self._read = read
        self._capacity_bytes = capacity_bytes
        self._held_bytes = 0
        self._loaded: OrderedDict[_Page, LinearHead] = OrderedDict()
        self._turn = threading.Lock()

    def paged(self, versioned: Versioned) -> Versioned:
        """A stored version without its weights; one with a tail stays as it is."""
        snapshot = versioned.snapshot
        if snapshot.tail is not None or isinstance(snapshot.head, PagedHead):
            return versioned
        head = PagedHead.__new__(PagedHead)
        for field in fields(LinearHead):
            if field.name not in (*_WEIGHTS, "novelty"):
                object.__setattr__(head, field.name, getattr(snapshot.head, field.name))
        page = _Page(model=snapshot.model, number=snapshot.version, sha256=versioned.head_sha256)
        object.__setattr__(head, "_tells_novelty", snapshot.head.tells_novelty)
        object.__setattr__(head, "_pages", self)
        object.__setattr__(head, "_page", page)
        return replace(versioned, snapshot=replace(snapshot, head=head))

    def whole(self, head: LinearHead) -> LinearHead:
        """The same with its weights, for good. Raises NotFoundError, DataLossError."""
        return self.head(head._page) if isinstance(head, PagedHead) else head

    def has(self, page: _Page) -> bool:
        """Whether it is in RAM."""
        return page in self._loaded

    def head(self, page: _Page) -> LinearHead:
        """The head with its weights, read if need be. Raises NotFoundError, DataLossError."""
        with self._turn:
            if page in self._loaded:
                self._loaded.move_to_end(page)
                return self._loaded[page]
        data = self._read(page.model, page.number)
        if hashlib.sha256(data).digest() != page.sha256:
            raise NotFoundError(f"version {page.number} of model {page.model!r} is no longer stored", field="version")
        head = load_head(data).head
        with self._turn:
            if page not in self._loaded:
                self._loaded[page] = head
                self._held_bytes += _bytes(head)
            while self._held_bytes > self._capacity_bytes and len(self._loaded) > 1:
                self._held_bytes -= _bytes(self._loaded.popitem(last=False)[1])
        return head


def _bytes(head: LinearHead) -> int:
    novelty = sum(part.nbytes for part in vars(head.novelty).values()) if head.novelty is not None else 0
    return int(head.weight_dC.nbytes + head.bias_C.nbytes + novelty)
