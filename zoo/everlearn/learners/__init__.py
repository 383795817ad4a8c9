"""Learners: what puts memory and head together."""

from everlearn.learners.base import Learned, Learner, Solution
from everlearn.learners.closed_form import ClosedForm
from everlearn.learners.masked import Masked
from everlearn.learners.targets import TargetLearner

__all__ = ["ClosedForm", "Learned", "Learner", "Masked", "Solution", "TargetLearner"]
