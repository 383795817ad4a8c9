"""Learners: what puts memory and head together."""

from everlearn.learners.closed_form import ClosedForm

__all__ = ["ClosedForm"]
