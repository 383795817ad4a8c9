"""What a real fine-tune of every weight costs a device: EfficientNet-Lite0 on digits, before and after.

As in reference/edge-product.md 5.1: AdamW over all layers, 10 steps at 1e-5 and 40 steps at 1e-4, batch normalisation
in its inference mode, ten classes. The int8 files share the ranges of the first: a server keeps them while it learns.
"""

from __future__ import annotations

import copy
import time
from dataclasses import replace

import numpy as np
import torch
from tests.benchmarks.scene import LITE0, Scene, front
from tests.benchmarks.table import Row

from everlearn.backbones.timm import TimmLoader, _export
from everlearn.backbones.torch_file import with_safetensors
from everlearn.export.compose import Composer
from everlearn.export.int8 import observer, plan, quantised
from everlearn.export.probes import plain_session
from everlearn.export.ranges import RangeSketch
from everlearn.hubs import hub_for
from everlearn.hubs.base import HubSettings
from everlearn.inputs.front import to_pixels
from everlearn.values import NEVER, FeatureScale, LinearHead, Trunk
from everlearn_protos.delta import apply
from everlearn_protos.delta.encoding import encode

SIZE, BATCH, SEEN = 96, 32, 128
TUNES = ((10, 1e-5), (40, 1e-4))
"""Steps, and learning rate."""
TARGET_KB = 600.0


def measure(scene: Scene, *, quick: bool) -> list[Row]:
    """Each fine-tune from the same pretrained weights, in fp32 and int8."""
    files = hub_for(LITE0, HubSettings(cache=scene.folder / "hub")).fetch(LITE0, lambda done, total: None)
    name = next(iter(files.paths))
    files = with_safetensors(LITE0, files, name, scene.folder / "work")
    network, _ = TimmLoader()._loaded(LITE0, files, front(SIZE))
    head = torch.nn.Linear(network.num_features, 10)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    base, rows = _Files(scene, network, head), []
    for steps, rate in TUNES[:1] if quick else TUNES:
        scene.tell(f"{steps} steps at {rate:g}")
        tuned, tuned_head = copy.deepcopy(network), copy.deepcopy(head)
        loss = _tune(scene, tuned, tuned_head, 2 if quick else steps, rate)
        after = _Files(scene, tuned, tuned_head, base.ranges)
        for precision in ("fp32", "int8"):
            rows.append(_row(steps, rate, precision, base.files[precision], after.files[precision], loss))
    return rows


class _Files:
    """The exports of a network with its head."""

    def __init__(
        self,
        scene: Scene,
        network: torch.nn.Module,
        head: torch.nn.Linear,
        ranges: dict[str, tuple[float, float]] | None = None,
    ) -> None:
        told = front(SIZE)
        dim = head.in_features
        trunk = Trunk(
            onnx=_export(network.eval(), told),
            scale=FeatureScale(step_d=np.full(dim, 0.01, np.float32)),
            front=told,
            parity_max_rel_diff=0.0,
            provenance={},
        )
        planned = plan(trunk.onnx)
        self.ranges = ranges or _ranges(scene, observer(planned), planned.tensors)
        linear = LinearHead(
            weight_dC=head.weight.detach().numpy().T.copy(),
            bias_C=head.bias.detach().numpy().copy(),
            normalise=False,
            labels=tuple(str(digit) for digit in range(10)),
            regularization=0.0,
        )
        assert float(linear.bias_C.min()) > NEVER
        made = {"fp32": trunk, "int8": replace(trunk, onnx=quantised(planned, self.ranges))}
        self.files = {
            precision: Composer(each).compose(linear, {"model": "digits", "version": "1"}, precision=precision)
            for precision, each in made.items()
        }


def _ranges(scene: Scene, graph: bytes, tensors: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    sketch, session, told = RangeSketch(tensors), plain_session(graph), front(SIZE)
    for image in scene.digits[0][:SEEN]:
        sketch.add(session.run(["extremes"], {"pixels": to_pixels(image, told)[None]})[0])
    return sketch.ranges()


def _tune(scene: Scene, network: torch.nn.Module, head: torch.nn.Linear, steps: int, rate: float) -> float:
    """The last loss. Batches are drawn with a fixed seed."""
    images, labels_B = scene.digits
    random, told = np.random.default_rng(0), front(SIZE)
    parameters = [*network.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate)
    loss = torch.zeros(())
    for _ in range(steps):
        rows = random.integers(0, len(images), BATCH)
        pixels = torch.from_numpy(np.stack([to_pixels(images[row], told) for row in rows]))
        loss = torch.nn.functional.cross_entropy(head(network(pixels)), torch.from_numpy(labels_B[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def _row(steps: int, rate: float, precision: str, before: bytes, after: bytes, loss: float) -> Row:
    begun_s = time.process_time()
    delta = encode(before, after)
    encode_s, begun_s = time.process_time() - begun_s, time.process_time()
    if apply(before, delta, max_bytes=len(after)) != after:
        raise RuntimeError("the delta does not make the file it was made for")
    apply_s = time.process_time() - begun_s
    size_kb, aimed = len(delta) / 1e3, precision == "int8"
    return Row(
        group="fine_tune",
        what=f"full fine-tune of EfficientNet-Lite0, AdamW {rate:g} x {steps} steps, {precision}",
        target=f"<= {TARGET_KB:g} KB" if aimed else "",
        measured=f"{size_kb:.0f} KB of {len(after) / 1e6:.2f} MB",
        met=size_kb <= TARGET_KB if aimed else None,
        detail=f"digits at {SIZE} px, batches of {BATCH}, loss {loss:.2f} at the end; encoded in {encode_s:.2f} s, "
        f"applied in {apply_s:.3f} s of processor time",
    )
