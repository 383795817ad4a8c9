"""What joint training on all samples at once reaches: multinomial logistic regression, the issue's yardstick."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from tests.benchmarks.learning.scores import Run
from tests.benchmarks.learning.streams import Stream

NAME = "JOINT logistic regression (all samples at once)"


def run(stream: Stream) -> Run:
    """The end only; it says the same at every look, so read its final figures alone."""
    order = np.argsort(stream.row_N, kind="stable")
    rows, labels = stream.row_N[order], stream.label_N[order]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        regression = LogisticRegression(C=1.0, max_iter=300).fit(stream.dataset.features_Nd[rows], labels)
    predicted_T = regression.predict(stream.dataset.features_Nd[stream.test_T]).astype(np.int64)
    return Run(
        predicted_ET=np.tile(predicted_T, (len(stream.looks), 1)),
        learn_ms=float("nan"),
        solve_ms=float("nan"),
        state_bytes=stream.row_N.size * stream.dataset.features_Nd.shape[1] * 4,
    )
