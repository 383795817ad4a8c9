"""River's online learners, sample by sample, as they come."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from river import linear_model, naive_bayes, optim

from .job import BATCH, CLASSES, Job

SOFTMAX = "River softmax"
BAYES = "River naive Bayes"


def learn(job: Job, name: str, rate: float) -> dict[str, Any]:
    """One method, one pass over one stream."""
    model: Any = naive_bayes.GaussianNB()
    if name == SOFTMAX:
        model = linear_model.SoftmaxRegression(optimizer=optim.SGD(rate), l2=0.0)
    rows = job.train_Nd.numpy().astype(float)
    test_Td = job.test_Td.numpy().astype(float)
    ends = [job.batch_ends[look - 1] for look in job.looks]
    predicted, spent_s = [], 0.0
    for at, (row, label) in enumerate(zip(rows, job.label_N.tolist(), strict=True), 1):
        begun_s = time.process_time()
        model.learn_one(dict(enumerate(row.tolist())), label)
        spent_s += time.process_time() - begun_s
        if at in ends:
            predicted.append(_softmax(model, test_Td) if name == SOFTMAX else _bayes(model, test_Td))
    return {
        "predicted_ET": np.stack(predicted).astype(np.int64),
        "learn_ms": 1e3 * spent_s / len(rows) * BATCH,
        "state_bytes": (1 if name == SOFTMAX else 3) * 8 * rows.shape[1] * CLASSES,
        "rate": rate,
        "strength": 0.0,
    }


def _softmax(model: Any, test_Td: np.ndarray) -> np.ndarray:
    known = sorted(model.weights)
    weight_Cd = np.array([[model.weights[one][j] for j in range(test_Td.shape[1])] for one in known])
    return np.array(known)[(test_Td @ weight_Cd.T).argmax(axis=1)]


def _bayes(model: Any, test_Td: np.ndarray) -> np.ndarray:
    """Predicted in one go from the model's means and variances."""
    known = sorted(model.class_counts)
    dims = range(test_Td.shape[1])
    mean_Cd = np.array([[model.gaussians[one][j].mu for j in dims] for one in known])
    deviation_Cd = np.array([[model.gaussians[one][j].sigma for j in dims] for one in known])
    deviation_Cd = np.maximum(deviation_Cd, 1e-3)
    prior_C = np.log([model.class_counts[one] for one in known])
    scores = [
        (-0.5 * ((test_Td - mean_d) / deviation_d) ** 2 - np.log(deviation_d)).sum(axis=1) + prior
        for mean_d, deviation_d, prior in zip(mean_Cd, deviation_Cd, prior_C, strict=True)
    ]
    return np.array(known)[np.argmax(scores, axis=0)]
