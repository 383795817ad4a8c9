"""A table of feature vectors that stays contiguous while rows come and go.

Axes: N rows, B rows of a batch, L columns of scores, d features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from everlearn.memories._codes import Codec, CodesNd
from everlearn.values import QuantisedBd

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
LARGEST_SCORE: Final = float(np.finfo(np.float16).max)


class Rows:
    """Codes with what is known of each: class, client, number of arrival, time, and scores where they are kept.

    Who is where depends on nothing but what came and went, so a table that was saved goes on exactly as it would have.
    """

    def __init__(self, codec: Codec, columns: Mapping[str, npt.NDArray[Any]] | None = None) -> None:
        """`columns`: of a saved table, as `columns` gave them."""
        self.codec = codec
        dim = codec.shift_d.size
        self._columns: dict[str, npt.NDArray[Any]] = {
            "code": np.zeros((0, dim), codec.dtype),
            "class": np.zeros(0, np.int32),
            "client": np.zeros(0, np.int32),
            "arrival": np.zeros(0, np.int64),
            "time_s": np.zeros(0, np.float64),
        }
        self._size = 0
        if columns is not None:
            self._load(columns)

    def __len__(self) -> int:
        return self._size

    @property
    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Name -> live view of all rows."""
        return {name: column[: self._size] for name, column in self._columns.items()}

    @property
    def code_Nd(self) -> CodesNd:  # noqa: N802  # axes
        """Live view."""
        return self._columns["code"][: self._size]

    @property
    def class_N(self) -> npt.NDArray[np.int32]:  # noqa: N802  # axes
        """Live view."""
        return self._columns["class"][: self._size]

    @property
    def client_N(self) -> npt.NDArray[np.int32]:  # noqa: N802  # axes
        """Live view."""
        return self._columns["client"][: self._size]

    @property
    def arrival_N(self) -> Ints:  # noqa: N802  # axes
        """Live view."""
        return self._columns["arrival"][: self._size]

    @property
    def time_s_N(self) -> npt.NDArray[np.float64]:  # noqa: N802  # axes
        """Live view."""
        return self._columns["time_s"][: self._size]

    @property
    def score_NL(self) -> npt.NDArray[np.float16] | None:  # noqa: N802  # axes
        """Live view; None where scores are not kept."""
        return self._columns["score"][: self._size] if "score" in self._columns else None

    def keep_scores(self) -> None:
        """Begins to; those of rows that are there already are unknown (NaN)."""
        if "score" not in self._columns:
            self._columns["score"] = np.zeros((len(self._columns["class"]), 0), np.float16)

    def drop_scores(self) -> None:
        """Keeps none any more."""
        self._columns.pop("score", None)

    def unknow_score(self, column: int) -> None:
        """Makes the scores of one class unknown."""
        score_NL = self.score_NL
        if score_NL is not None and column < score_NL.shape[1]:
            score_NL[:, column] = np.nan

    def decode(self, rows: Ints | slice) -> QuantisedBd:
        """Feature integers of some rows."""
        return self.codec.decode(self.code_Nd[rows])

    def exchange(
        self,
        gone: Ints,
        quantised_Bd: QuantisedBd,
        known: Mapping[str, npt.NDArray[Any]],
        logits_BC: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """Drops rows and puts new ones in their places; `known`: class, client, arrival and time_s of each."""
        self.codec.widen(quantised_Bd, self.code_Nd)
        self._widen_scores(0 if logits_BC is None else logits_BC.shape[1])
        gone, count = np.sort(gone), len(quantised_Bd)
        self._reserve(self._size + count - min(len(gone), count))
        fresh = np.arange(self._size, self._size + max(count - len(gone), 0))
        places = np.concatenate([gone[:count], fresh])
        self._columns["code"][places] = self.codec.encode(quantised_Bd)
        for name, column in known.items():
            self._columns[name][places] = column
        if "score" in self._columns:
            self._columns["score"][places] = np.nan
            if logits_BC is not None:
                clipped_BC = np.clip(logits_BC, -LARGEST_SCORE, LARGEST_SCORE)
                self._columns["score"][places[:, None], np.arange(logits_BC.shape[1])] = clipped_BC
        self._size += len(fresh)
        self._close(gone[count:])

    def drop(self, gone: Ints) -> None:
        """Drops rows; the last ones take their places."""
        self._close(np.sort(gone))

    def _close(self, holes: Ints) -> None:
        size = self._size - len(holes)
        last = np.ones(self._size - size, bool)
        last[holes[holes >= size] - size] = False
        movers = np.flatnonzero(last) + size
        for column in self._columns.values():
            column[holes[holes < size]] = column[movers]
            column[size : self._size] = 0  # what is dropped is not in memory either
        self._size = size

    def _reserve(self, size: int) -> None:
        room = len(self._columns["class"])
        if size <= room:
            return
        grown = max(size, room + room // 2)  # np.zeros takes pages only as they are written
        for name, column in self._columns.items():
            wider = np.zeros((grown, *column.shape[1:]), column.dtype)
            wider[: self._size] = column[: self._size]
            self._columns[name] = wider

    def _widen_scores(self, classes: int) -> None:
        column = self._columns.get("score")
        if column is None or classes <= column.shape[1]:
            return
        wider = np.full((len(column), classes), np.nan, np.float16)
        wider[:, : column.shape[1]] = column
        self._columns["score"] = wider

    def _load(self, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        if "score" in columns:
            self._columns["score"] = np.zeros((0, columns["score"].shape[1]), np.float16)
        size = len(columns["class"])
        for name, empty in self._columns.items():
            column = columns[name]
            if column.dtype != empty.dtype or column.shape != (size, *empty.shape[1:]):
                raise ValueError(f"column {name} is {column.dtype} {column.shape}")
            self._columns[name] = column
        self._size = size
