"""A domain shift: plain digits, then digits blurred and noisy. Does a tail that learns beat a frozen one?

Old domain first, then the new one, one pass each, batches of 32; what is tested is in neither. The network is cut
before its last block: the trunk's values there are what both latents and steps are made of.

Axes: N rows of both domains, T tested rows of both, n values at the cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tests.benchmarks.learning import data, ours
from tests.benchmarks.learning.kept import kept
from tests.benchmarks.learning.scores import Run
from tests.benchmarks.scene import LITE0, Scene, front
from tests.benchmarks.table import Row

from everlearn.backbones.child import build_cut_in_child
from everlearn.backbones.tail import Tail
from everlearn.hubs import hub_for
from everlearn.hubs.base import HubSettings
from everlearn.inputs.front import to_pixels
from everlearn.learners.gradient.child import adapted, recipe_of
from everlearn.learners.gradient.learner import GradientLearner
from everlearn.runtime.session import TrunkSession
from everlearn.spec.model import ModelSpec
from everlearn.values import QuantisedBd, Trunk

OLD, NEW = 0, 3
"""Of data.DOMAINS."""
BATCH = 32
MOVING: Mapping[str, Any] = {
    "adapt": {"kind": "last_blocks", "blocks": 1},
    "head": {"kind": "linear"},
    "memory": {"kind": "latents"},
    "retention": {"features": "latents"},
    "regularize": [{"kind": "distill"}],
}
BY_SGD: Mapping[str, Any] = {**MOVING, "train": {"optimizer": {"kind": "sgd"}}}
"""What heads take by default; blocks take AdamW."""
Rows = npt.NDArray[np.int64]


def rows(scene: Scene, seeds: int) -> list[Row]:
    """The issue's row. Accuracies on old and new, before and after the shift, means over seeds."""
    target = ">= frozen + 2 points on the new domain, <= 1 point lost on the old"
    return [_row(scene, seeds, MOVING, "defaults", target)]


def rows_by_sgd(scene: Scene, seeds: int) -> list[Row]:
    """The same by the heads' optimizer, for what AdamW is worth to blocks."""
    return [_row(scene, seeds, BY_SGD, "optimizer sgd at its default rate")]


def _row(scene: Scene, seeds: int, options: Mapping[str, Any], how: str, target: str = "") -> Row:
    frozen = np.mean([_frozen(scene, seed) for seed in range(seeds)], axis=0)
    moving = np.mean([_moving(scene, seed, options) for seed in range(seeds)], axis=0)
    gained, lost = moving[1, 1] - frozen[1, 1], moving[0, 0] - moving[1, 0]
    told = "; ".join(
        f"{name}: old {of[0, 0]:.1f} -> {of[1, 0]:.1f} %, new {of[0, 1]:.1f} -> {of[1, 1]:.1f} %"
        for name, of in (("frozen (analytic)", frozen), ("last block + 1,000 latents + distill", moving))
    )
    return Row(
        group="digits",
        what=f"`last_blocks` + `latents` + `distill`, shift from {data.DOMAINS[OLD]} to {data.DOMAINS[NEW]}",
        target=target,
        measured=f"{gained:+.1f} points on the new, {lost:.1f} lost on the old",
        met=bool(gained >= 2 and lost <= 1) if target else None,
        detail=f"{told}; {seeds} seeds; {how}",
    )


def _split(digits: int, seed: int) -> tuple[list[Rows], Rows]:
    """Rows of each domain in order of arrival, and the tested rows of both."""
    random = np.random.default_rng(seed)
    order = random.permutation(digits)
    test, train = order[: digits // 5], order[digits // 5 :]
    arriving = [domain * digits + random.permutation(train) for domain in range(2)]
    return arriving, np.concatenate([test, digits + test])


def _accuracies(run: Run, labels_T: Rows) -> npt.NDArray[np.float64]:
    """[before or after the shift, old or new], in percent."""
    right_ET = run.predicted_ET == labels_T
    return 100 * right_ET.reshape(2, 2, -1).mean(axis=2)


def _frozen(scene: Scene, seed: int) -> npt.NDArray[np.float64]:
    trunk, dataset = scene.trunk(data.SIZE), data.digits_in_domains(scene)
    digits = int((dataset.domain_N == OLD).sum())
    features_Nd = np.concatenate([dataset.features_Nd[dataset.domain_N == domain] for domain in (OLD, NEW)])
    labels_N = np.tile(dataset.labels_N[:digits], 2)
    arriving, test = _split(digits, seed)
    learner = ours.learner_for(ours.Declared(name="analytic", options={"recipe": "analytic"}).spec(seed), trunk.scale)
    predicted = []
    for domain in arriving:
        learner.learn(trunk.scale.quantise(features_Nd[domain]), [str(label) for label in labels_N[domain]])
        predicted.append(ours.classes(learner.head(quick=False), features_Nd[test]))
    run = Run(predicted_ET=np.stack(predicted), learn_ms=0, solve_ms=0, state_bytes=0)
    return _accuracies(run, labels_N[test])


def _moving(scene: Scene, seed: int, options: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    trunk, tail = cut(scene, options["adapt"]["blocks"])
    plain, labels = scene.digits
    quantised_Nn = np.concatenate([at_cut(scene, trunk, domain) for domain in (OLD, NEW)])
    labels_N = np.tile(labels, 2)
    spec = ours.Declared(name="moving", options=options).spec(seed)
    assert spec.train is not None
    optimizer = spec.train.optimizer.kind
    told = f"{ours.code_digest()} {trunk.feature_digest} {spec.model_dump_json()} {BATCH}"
    arriving, test = _split(len(plain), seed)

    def learn() -> Run:
        scene.tell(f"domain shift, seed {seed}: a tail that learns")
        return learned(spec, trunk, tail, quantised_Nn, labels_N, arriving, test)

    key = hashlib.sha256(told.encode()).hexdigest()
    run = kept(scene.folder / "runs", f"shift {seed} {optimizer}", key, learn)
    return _accuracies(run, labels_N[test])


def learned(
    spec: ModelSpec,
    trunk: Trunk,
    tail: Tail,
    quantised_Nn: QuantisedBd,
    labels_N: Rows,
    arriving: list[Rows],
    test: Rows,
) -> Run:
    """One pass through the parts in turn; what is tested is predicted after each."""
    torch.set_num_threads(1)
    learner = GradientLearner.create(
        dim=tail.feature_dim, labels=[], scale=trunk.scale, recipe=recipe_of(spec), tail=adapted(tail, spec)
    )
    shell = adapted(tail, spec).eval()
    predicted = []
    for part in arriving:
        for start in range(0, len(part), BATCH):
            batch = part[start : start + BATCH]
            learner.learn(quantised_Nn[batch], [str(label) for label in labels_N[batch]])
        shell.load_state_dict(learner.tail_state())
        with torch.inference_mode():
            parts = [
                shell(torch.from_numpy(trunk.scale.restore(quantised_Nn[some]))).numpy()
                for some in np.array_split(test, 8)
            ]
        predicted.append(ours.classes(learner.head(), np.concatenate(parts)))
    return Run(predicted_ET=np.stack(predicted), learn_ms=0, solve_ms=0, state_bytes=len(learner.to_bytes()))


def cut(scene: Scene, blocks: int) -> tuple[Trunk, Tail]:
    """EfficientNet-Lite0 in two, before its last blocks."""
    scene.tell(f"cutting EfficientNet-Lite0 before its last {blocks} blocks")
    files = hub_for(LITE0, HubSettings(cache=scene.folder / "hub")).fetch(LITE0, lambda done, total: None)
    return build_cut_in_child(LITE0, files, front(data.SIZE), bits=12, blocks=blocks, work_dir=scene.folder / "work")


def at_cut(scene: Scene, trunk: Trunk, domain: int) -> QuantisedBd:
    """Values at the cut of all digits of a domain, kept."""
    path = scene.folder / "features" / f"cut-{domain}-{trunk.feature_digest[:16]}.npy"
    if not path.exists():
        session, told, random = TrunkSession(trunk.onnx), front(data.SIZE), np.random.default_rng(domain)
        scene.tell(f"values at the cut: digits, {data.DOMAINS[domain]}")
        shifted = [data.shifted(image, domain, random) for image in scene.digits[0]]
        values = [trunk.scale.quantise(session.run(to_pixels(image, told)[None])) for image in shifted]
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npy")
        np.save(part, np.concatenate(values))
        part.replace(path)
    found: QuantisedBd = np.load(path)
    return found
