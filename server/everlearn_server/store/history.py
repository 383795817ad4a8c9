"""Bounds the tables that only ever grow."""

from __future__ import annotations

from sqlalchemy import Column, ColumnElement, Connection, delete, select


def prune(connection: Connection, order: Column[int], owned: ColumnElement[bool], *, keep: int) -> None:
    """Of the rows that are `owned`, deletes all but the newest `keep`; `order` is the table's ascending id."""
    last = select(order).where(owned).order_by(order.desc()).limit(1).offset(keep).scalar_subquery()
    connection.execute(delete(order.table).where(owned, order <= last))
