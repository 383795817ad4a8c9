"""Nothing is forgotten: digits, classes arriving two at a time, one pass, against joint training on the same features.

R[i, j] = accuracy on the test digits of pair j after learning pair i.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from tests.benchmarks.scene import Scene
from tests.benchmarks.table import Row

from everlearn.heads import head_for
from everlearn.learners.closed_form import ClosedForm
from everlearn.memories.statistics import Statistics
from everlearn.metrics.forgetting import average_accuracy, forgetting
from everlearn.sums import Sums
from everlearn.values import FeaturesBd, FeatureScale

HEADS = ("balanced_ridge", "ridge", "lda", "ncm")
BATCH = 32
Labels = npt.NDArray[np.int64]


def measure(scene: Scene, *, quick: bool) -> list[Row]:
    """Final accuracy of each head over seeds, and sums under many orders."""
    features_Bd, labels_B = scene.digit_features_Bd, scene.digits[1]
    scale = scene.trunk(96).scale
    seeds = range(1 if quick else 3)
    joint: list[float] = []
    final: dict[str, list[float]] = {kind: [] for kind in HEADS}
    average: dict[str, list[float]] = {kind: [] for kind in HEADS}
    forgot: dict[str, list[float]] = {kind: [] for kind in HEADS}
    for seed in seeds:
        scene.tell(f"seed {seed}: joint logistic regression")
        random = np.random.default_rng(seed)
        order = random.permutation(len(labels_B))
        test, train = order[: len(order) // 5], order[len(order) // 5 :]
        pairs = random.permutation(10).reshape(5, 2)
        regression = LogisticRegression(C=1.0, max_iter=1000).fit(features_Bd[train], labels_B[train])
        joint.append(float(regression.score(features_Bd[test], labels_B[test])))
        for kind in HEADS:
            scene.tell(f"seed {seed}: {kind}")
            accuracy_TT, last = _stream(kind, features_Bd, labels_B, train, test, pairs, scale)
            final[kind].append(last)
            average[kind].append(average_accuracy(accuracy_TT))
            forgot[kind].append(forgetting(accuracy_TT))
    rows = [_accuracy_row(kind, final[kind], joint, average[kind], forgot[kind]) for kind in HEADS]
    scene.tell("sums under random orders, batchings and shardings")
    return [*rows, _orders_row(features_Bd, labels_B, scale, runs=10 if quick else 100)]


def _stream(
    kind: str,
    features_Bd: FeaturesBd,
    labels_B: Labels,
    train: Labels,
    test: Labels,
    pairs: npt.NDArray[np.int64],
    scale: FeatureScale,
) -> tuple[npt.NDArray[np.float64], float]:
    """R, and the accuracy on all test digits at the end."""
    learner = ClosedForm(Statistics.create(features_Bd.shape[1], ()), head_for(kind), scale)
    accuracy_TT = np.full((len(pairs), len(pairs)), np.nan)
    right_B = np.zeros(len(test), bool)
    for task, pair in enumerate(pairs):
        arriving = train[np.isin(labels_B[train], pair)]
        for start in range(0, len(arriving), BATCH):
            batch = arriving[start : start + BATCH]
            learner.learn(features_Bd[batch], [str(label) for label in labels_B[batch]])
        predicted = np.array([int(label) for label in learner.predict(features_Bd[test])])
        right_B = predicted == labels_B[test]
        for seen in range(task + 1):
            accuracy_TT[task, seen] = right_B[np.isin(labels_B[test], pairs[seen])].mean()
    return accuracy_TT, float(right_B.mean())


def _accuracy_row(kind: str, final: list[float], joint: list[float], average: list[float], forgot: list[float]) -> Row:
    points = 100 * (np.mean(final) - np.mean(joint))
    default = kind == "balanced_ridge"
    return Row(
        group="accuracy",
        what=f"digits, 5 x 2 classes, one pass, 96 px: final accuracy of `{kind}`" + (" (default)" if default else ""),
        target=">= joint logistic regression - 0.5 points" if default else "",
        measured=f"{100 * np.mean(final):.2f} % ({points:+.2f} points to joint {100 * np.mean(joint):.2f} %)",
        met=bool(points >= -0.5) if default else None,
        detail=f"{len(final)} seeds of class order and split (20 % test): "
        + ", ".join(f"{100 * value:.2f}" for value in final)
        + f"; mean over pairs {100 * np.mean(average):.2f} %, forgetting {100 * np.mean(forgot):.2f} points",
    )


def _orders_row(features_Bd: FeaturesBd, labels_B: Labels, scale: FeatureScale, *, runs: int) -> Row:
    quantised_Bd = scale.quantise(features_Bd)
    names = [str(label) for label in labels_B]
    digests, heads = set(), set()
    for seed in range(runs):
        random = np.random.default_rng(seed)
        order = random.permutation(len(names))
        shards = [Sums(quantised_Bd.shape[1]) for _ in range(int(random.integers(1, 5)))]
        start = 0
        while start < len(order):
            stop = start + int(random.integers(1, 129))
            rows = order[start:stop]
            shards[int(random.integers(len(shards)))].add(quantised_Bd[rows], [names[row] for row in rows])
            start = stop
        whole = shards[0]
        for shard in shards[1:]:
            whole.merge(shard)
        digests.add(whole.digest())
        if seed % 20 == 0:
            head = head_for("balanced_ridge").solve(whole, scale)
            at = np.argsort(head.labels)
            heads.add(head.weight_dC[:, at].tobytes() + head.bias_C[at].tobytes())
    return Row(
        group="accuracy",
        what="distinct memories",
        target="1 (bit-identical) under 100 random orders, batchings and shardings",
        measured=str(len(digests)),
        met=len(digests) == 1 and len(heads) == 1,
        detail=f"{runs} runs over {len(names)} digits, batches of 1 to 128, 1 to 4 shards merged; distinct heads "
        f"solved from every twentieth: {len(heads)}",
    )
