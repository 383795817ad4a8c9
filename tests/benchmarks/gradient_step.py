"""A step of the gradient learner against the same step written by hand in bare PyTorch, alternately, call by call.

Both take batches of 32 quantised rows, four steps each with 64 rows replayed from a reservoir, classes alike: the
learner with all its guards, with the copy it could go back to, labels by name, an open label set and int8 latents; the
bare one with class numbers that are known from the start, floats and nothing else.
CPU time, in one thread: what others do on the machine is not in it.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import numpy as np
import timm
import torch
from tests.benchmarks.scene import DIM, Scene, clustered_features
from tests.benchmarks.table import Row
from torch import nn
from torch.nn import functional

from everlearn.backbones.cut import split
from everlearn.learners.gradient import checkpoint
from everlearn.learners.gradient.learner import GradientLearner
from everlearn.learners.gradient.network import LENGTH
from everlearn.learners.gradient.recipe import Recipe
from everlearn.spec.model import Memory
from everlearn.spec.recipe import Training
from everlearn.values import FeatureScale, QuantisedBd

ROWS = 32
REPLAY = 64
STEPS = 4
KEPT = 1000
BLOCKS = 2
TARGET = 1.1

Batches = list[tuple[QuantisedBd, list[int]]]


def measure(scene: Scene, *, quick: bool) -> list[Row]:
    """The head alone with 10 and 100 classes, and with the last blocks of EfficientNet-Lite0 below it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        calls = 40 if quick else 300
        rows = [_head_row(scene, classes, calls) for classes in (10, 100)]
        return [*rows, _tail_row(scene, size=96 if quick else 224, calls=6 if quick else 14)]
    finally:
        torch.set_num_threads(threads)


class Bare:
    """What one would write in a notebook."""

    def __init__(self, dim: int, values: int, classes: int, step_n: torch.Tensor, tail: nn.Module | None) -> None:
        self._tail, self._step_n = tail, step_n
        self._head = nn.Linear(dim, classes)
        nn.init.zeros_(self._head.weight)
        nn.init.zeros_(self._head.bias)
        self._parameters = [*self._head.parameters(), *(() if tail is None else tail.parameters())]
        self._optimizer = torch.optim.SGD(self._parameters, lr=0.05 * 3**0.5, momentum=0.9, nesterov=True)
        self._share = KEPT // classes
        self._kept_CKn = torch.empty(classes, self._share, values)
        self._seen_C = [0] * classes
        self._random = np.random.default_rng(0)

    def learn(self, quantised_Bn: QuantisedBd, classes: list[int]) -> None:
        new_Bn, class_B = torch.from_numpy(quantised_Bn) * self._step_n, torch.tensor(classes)
        present_S = torch.tensor([each for each, seen in enumerate(self._seen_C) if seen], dtype=torch.int64)
        size_S = torch.tensor([min(seen, self._share) for seen in self._seen_C if seen])
        for _ in range(STEPS):
            inputs_Nn, class_N = new_Bn, class_B
            if size_S.numel():
                drawn = torch.randint(len(size_S), (REPLAY,))
                class_R, row_R = present_S[drawn], (torch.rand(REPLAY) * size_S[drawn]).long()
                inputs_Nn = torch.cat([new_Bn, self._kept_CKn[class_R, row_R]])
                class_N = torch.cat([class_B, class_R])
            features_Nd = inputs_Nn if self._tail is None else self._tail(inputs_Nn)
            logits_NC = self._head(LENGTH * functional.normalize(features_Nd))
            loss = functional.cross_entropy(logits_NC, class_N)
            self._optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self._parameters, 1.0)
            self._optimizer.step()
        self.keep(new_Bn, classes)

    def keep(self, new_Bn: torch.Tensor, classes: list[int]) -> None:
        """A reservoir a class (Vitter 1985)."""
        places = []
        for row, each in enumerate(classes):
            seen = self._seen_C[each]
            place = seen if seen < self._share else int(self._random.integers(seen + 1))
            self._seen_C[each] = seen + 1
            if place < self._share:
                places.append((row, each, place))
        if places:
            row_P, class_P, place_P = torch.tensor(places).T
            self._kept_CKn[class_P, place_P] = new_Bn[row_P]


def _head_row(scene: Scene, classes: int, calls: int) -> Row:
    scene.tell(f"head alone, {classes} classes")
    scale = FeatureScale(step_d=np.full(DIM, 8 / 2047, np.float32))
    random = np.random.default_rng(0)
    drawn = [[*map(int, random.integers(classes, size=ROWS))] for _ in range(64)]
    batches = [(scale.quantise(np.abs(clustered_features(random, each, DIM))), each) for each in drawn]
    ours = _learner(DIM, classes, scale, None)
    bare = Bare(DIM, DIM, classes, torch.from_numpy(scale.step_d), None)
    return _row(f"d = {DIM}, {classes} classes, head alone", ours, bare, batches, calls)


def _tail_row(scene: Scene, *, size: int, calls: int) -> Row:
    scene.tell(f"last {BLOCKS} blocks of EfficientNet-Lite0 at {size} px")
    tails = [_tail(size) for _ in range(2)]
    values = int(np.prod(tails[0].cut_shape))
    scale = FeatureScale(step_d=np.full(values, 8 / 2047, np.float32))
    random = np.random.default_rng(0)
    drawn = [[*map(int, random.integers(10, size=ROWS))] for _ in range(16)]
    batches = [(scale.quantise(clustered_features(random, each, values)), each) for each in drawn]
    ours = _learner(DIM, 10, scale, tails[0])
    bare = Bare(DIM, values, 10, torch.from_numpy(scale.step_d), tails[1])
    moving = sum(parameter.numel() for _, parameter in ours.network.moving())
    what = f"last {BLOCKS} blocks of EfficientNet-Lite0 at {size} px ({moving / 1e6:.1f} M weights), 10 classes"
    return _row(what, ours, bare, batches, calls)


def _tail(size: int) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    return split(model, BLOCKS, torch.randn(2, 3, size, size)).tail


def _learner(dim: int, classes: int, scale: FeatureScale, tail: nn.Module | None) -> GradientLearner:
    recipe = Recipe(memory=Memory(kind="latents", capacity=KEPT), train=Training(steps=STEPS, replay=REPLAY))
    labels = [str(each) for each in range(classes)]
    return GradientLearner.create(dim=dim, labels=labels, scale=scale, recipe=recipe, tail=tail)


def _row(what: str, ours: GradientLearner, bare: Bare, batches: Batches, calls: int) -> Row:
    named = [[str(each) for each in classes] for _, classes in batches]
    ours_ms, bare_ms = [], []
    kept = [_timed(ours.memory, "integrate"), _timed(bare, "keep")]
    for call in range(calls):
        quantised_Bn, classes = batches[call % len(batches)]
        sides: list[tuple[list[float], Callable[[], object]]] = [
            (ours_ms, functools.partial(ours.learn, quantised_Bn, named[call % len(batches)])),
            (bare_ms, functools.partial(bare.learn, quantised_Bn, classes)),
        ]
        # Who goes first has colder caches.
        for times_ms, learn in sides if call % 2 else sides[::-1]:
            begun_s = time.process_time()
            learn()
            times_ms.append((time.process_time() - begun_s) * 1e3 / STEPS)
    warm = calls // 4
    whole = statistics.median(a / b for a, b in zip(ours_ms[warm:], bare_ms[warm:], strict=True))
    # Keeping rows comes once a batch, after the steps.
    ours_ms, bare_ms = (
        [a - b for a, b in zip(*side, strict=True)] for side in zip((ours_ms, bare_ms), kept, strict=True)
    )
    ratio = statistics.median(a / b for a, b in zip(ours_ms[warm:], bare_ms[warm:], strict=True))
    ours_p50, bare_p50 = statistics.median(ours_ms[warm:]), statistics.median(bare_ms[warm:])
    copies_ms = [_copy_ms(ours) / STEPS for _ in range(20)]
    return Row(
        group="gradient_step",
        what=f"step of the gradient learner against bare PyTorch: {what}",
        target=f"<= {TARGET} times",
        measured=f"{ratio:.2f} times",
        met=ratio <= TARGET,
        detail=f"median over {calls - warm} calls of {STEPS} steps of {ROWS} new and {REPLAY} replayed rows: "
        f"{ours_p50:.2f} against {bare_p50:.2f} ms of CPU a step, one thread, rows drawn from what is kept but not "
        f"the keeping, with which it is {whole:.2f} times; of ours "
        f"{statistics.median(copies_ms) / ours_p50:.1%} is the copy "
        "that a refused call goes back to",
    )


def _timed(owner: object, name: str) -> list[float]:
    """What a method takes from here on, a step, in ms."""
    method, times_ms = getattr(owner, name), []

    def timed(*args: object, **kwargs: object) -> object:
        begun_s = time.process_time()
        result = method(*args, **kwargs)
        times_ms.append((time.process_time() - begun_s) * 1e3 / STEPS)
        return result

    setattr(owner, name, timed)
    return times_ms


def _copy_ms(learner: GradientLearner) -> float:
    begun_s = time.process_time()
    checkpoint.copied(checkpoint.capture(learner))
    return (time.process_time() - begun_s) * 1e3
