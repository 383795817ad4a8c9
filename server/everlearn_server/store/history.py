"""Bounds the tables that only ever grow."""

from __future__ import annotations

from sqlalchemy import Column, ColumnElement, Connection, Delete, bindparam, delete, select


def prune(connection: Connection, order: Column[int], owned: ColumnElement[bool], *, keep: int) -> None:
    """Of the rows that are `owned`, deletes all but the newest `keep`; `order` is the table's ascending id."""
    connection.execute(pruning(order, owned), {"keep": keep})


def pruning(order: Column[int], owned: ColumnElement[bool]) -> Delete:
    """The statement of `prune`, for those who run it often; its parameter is `keep`."""
    last = select(order).where(owned).order_by(order.desc()).limit(1).offset(bindparam("keep")).scalar_subquery()
    return delete(order.table).where(owned, order <= last)
