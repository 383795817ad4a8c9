"""What joint training on all samples at once reaches: multinomial logistic regression, the issue's yardstick."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from tests.benchmarks.learning.scores import Run
from tests.benchmarks.learning.streams import Stream

NAME = "JOINT logistic regression (all samples at once)"
SCALED = "JOINT logistic regression on features of length 10"
"""As the peers get them; on some features a point better, on others a point worse."""
NAMES = (NAME, SCALED)


def run(stream: Stream, *, is_scaled: bool = False) -> Run:
    """The end only; it says the same at every look, so read its final figures alone."""
    features_Nd = stream.dataset.features_Nd
    if is_scaled:
        features_Nd = 10 * features_Nd / np.linalg.norm(features_Nd, axis=1, keepdims=True)
    order = np.argsort(stream.row_N, kind="stable")
    rows, labels = stream.row_N[order], stream.label_N[order]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        regression = LogisticRegression(C=1.0, max_iter=300).fit(features_Nd[rows], labels)
    predicted_T = regression.predict(features_Nd[stream.test_T]).astype(np.int64)
    return Run(
        predicted_ET=np.tile(predicted_T, (len(stream.looks), 1)),
        learn_ms=float("nan"),
        solve_ms=float("nan"),
        state_bytes=stream.row_N.size * features_Nd.shape[1] * 4,
    )
