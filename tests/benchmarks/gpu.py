"""What a GPU is used for: images a second through a server's whole learn path against the bare trunk on that GPU.

Both in one run, alternately: `TrunkSession.run` over batches of 32 prepared images that lie in RAM, on as many threads
as serve it best, and clients in processes of their own that stream JPEG files. Weights are drawn: speed does not depend
on them. Trunks compute in float32, as they are shipped; what torch does in bfloat16 on the same GPU stands beside it.

    python -m tests.benchmarks gpu                         on a machine with an NVIDIA GPU
    python -m tests.benchmarks gpu --device cpu --quick    small networks on the CPU: shows that it works, no more
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import safetensors.torch
import timm
import torch
from tests.benchmarks.scene import Scene, ServerProcess, child
from tests.benchmarks.table import Row

from everlearn.backbones.child import build_in_child
from everlearn.hubs import hub_for
from everlearn.hubs.base import HubSettings
from everlearn.runtime.providers import providers_in_use
from everlearn.runtime.session import CPU, CUDA, TrunkSession
from everlearn.spec.model import Backbone
from everlearn.values import FrontConfig, PixelsBCHW

BATCH: Final = 32
TARGET: Final = 0.9
HALF: Final = (0.5, 0.5, 0.5)
RECIPES: Final[dict[str, dict[str, Any]]] = {
    "statistics": {},
    "last_blocks": {
        "adapt": {"kind": "last_blocks"},
        "head": {"kind": "linear"},
        "memory": {"kind": "latents", "capacity": 1000},
        "retention": {"features": "latents"},
        "train": {"steps": 1, "replay": 32},
    },
}
"""By what is kept; a moving block takes one step a batch, with as many replayed rows as are new."""


@dataclass(frozen=True)
class Load:
    """How much of what."""

    network: str
    size: int
    """Pixels of a side."""
    clients: int
    batches: int
    """A client streams, each time."""
    repetitions: int


def measure(scene: Scene, *, quick: bool) -> list[Row]:
    """EfficientNet-B0 and ViT-B/16 at 224 px. Raises UnavailableError where there is no GPU, and says why."""
    on_gpu = scene.device == "cuda"
    providers = (CUDA, CPU) if on_gpu else (CPU,)
    providers_in_use(providers)
    cores = len(os.sched_getaffinity(0))
    rows = []
    for network in ("efficientnet_b0", "vit_base_patch16_224") if on_gpu else ("test_efficientnet", "test_vit"):
        load = Load(
            network=network,
            size=224 if on_gpu else 160,
            clients=max(1, cores // 4),
            batches=(10 if quick else 150) if on_gpu else 3,
            repetitions=1 if quick else 3,
        )
        backbone = _drawn(scene, network)
        session = TrunkSession(_trunk(scene, backbone, load), providers=providers)
        torch_rate = _torch_rate(load) if on_gpu else None
        rows += [_row(scene, load, backbone, session, recipe, torch_rate) for recipe in RECIPES]
    return rows


def _drawn(scene: Scene, network: str) -> Backbone:
    torch.manual_seed(0)
    path = scene.folder / f"{network}.safetensors"
    safetensors.torch.save_file(timm.create_model(network).state_dict(), path)
    return Backbone(
        source=f"folder:{path}",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        loader="timm",
        format="safetensors",
        architecture=network,
    )


def _trunk(scene: Scene, backbone: Backbone, load: Load) -> bytes:
    scene.tell(f"building {load.network}")
    files = hub_for(backbone, HubSettings(cache=scene.folder / "hub")).fetch(backbone, lambda done, total: None)
    front = FrontConfig(height=load.size, width=load.size, resize="squash", mean=HALF, std=HALF)
    return build_in_child(backbone, files, front, bits=12, work_dir=scene.folder / "work").onnx


def _row(
    scene: Scene, load: Load, backbone: Backbone, session: TrunkSession, recipe: str, torch_rate: float | None
) -> Row:
    told = []
    name = recipe.replace("_", "-")
    with scene.server(f"{load.network}-{recipe}", "--device", scene.device) as server, server.client() as client:
        scene.tell(f"{recipe} on {load.network}: building")
        client.models.apply(_declaration(name, backbone, load, RECIPES[recipe]))
        _learned(server, name, load, batches=2)  # what is made at the first batch of a kind is not in the figures
        for repetition in range(load.repetitions):
            scene.tell(f"{recipe} on {load.network}, {repetition + 1} of {load.repetitions}")
            bare, threads = _bare(session, load)
            learned, stages = _learned(server, name, load, batches=load.batches)
            told.append((learned / bare, learned, bare, threads, stages))
    ratio, learned, bare, threads, stages = sorted(told, key=lambda each: each[0])[len(told) // 2]
    has_target = recipe == "statistics" and scene.device == "cuda"
    beside = "" if torch_rate is None else f"; torch in bfloat16, channels last: {torch_rate:.0f} images/s"
    return Row(
        group="gpu",
        what=f"images/s through learn, {recipe}, {load.network} at {load.size} px on {scene.device}, of the bare trunk",
        target=f">= {TARGET}" if has_target else "",
        measured=f"{ratio:.2f} ({learned:.0f} of {bare:.0f} images/s)",
        met=bool(ratio >= TARGET) if has_target else None,
        detail=f"{load.clients} clients with JPEG files in batches of {BATCH}, {load.repetitions} alternations "
        f"({min(told)[0]:.2f} to {max(told)[0]:.2f}); bare float32 trunk on {threads} threads{beside}; "
        f"ms a batch: {stages}",
    )


def _declaration(name: str, backbone: Backbone, load: Load, spec: dict[str, Any]) -> str:
    told = backbone.model_dump(mode="json", include={"source", "sha256", "loader", "format", "architecture"})
    size = {"size": load.size, "resize": "squash", "mean": list(HALF), "std": list(HALF)}
    declared = {"apiVersion": "everlearn/v1", "kind": "Model", "metadata": {"name": name}}
    return json.dumps({**declared, "spec": {"backbone": told, "input": size, **spec}})


def _learned(server: ServerProcess, name: str, load: Load, *, batches: int) -> tuple[float, str]:
    """Images a second of all clients together, and the means of a batch's stages."""
    arguments = (server.address, name, "images", str(load.size), str(batches), "0")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(child("learn_load", *arguments)) for _ in range(load.clients)]
        answers = [json.loads(each.communicate(timeout=900)[0].strip().splitlines()[-1]) for each in clients]
    stages = ("decode", "queue", "trunk", "test", "integrate")
    means = {stage: np.mean([answer[f"{stage}_ms"] for answer in answers]) for stage in stages}
    rate = sum(answer["images"] / max(answer["seconds"], 1e-9) for answer in answers)
    return rate, ", ".join(f"{stage} {mean:.1f}" for stage, mean in means.items())


def _bare(session: TrunkSession, load: Load) -> tuple[float, int]:
    """Images a second on the number of threads that is best, and that number."""
    pixels_BCHW = np.random.default_rng(0).standard_normal((BATCH, 3, load.size, load.size)).astype(np.float32)
    session.run(pixels_BCHW)
    counts = sorted({1, 2, min(4, len(os.sched_getaffinity(0)))})
    return max((_rate(session, pixels_BCHW, threads, load.batches), threads) for threads in counts)


def _rate(session: TrunkSession, pixels_BCHW: PixelsBCHW, threads: int, batches: int) -> float:
    each = max(1, batches // threads)

    def run() -> None:
        for _ in range(each):
            session.run(pixels_BCHW)

    running = [threading.Thread(target=run) for _ in range(threads)]
    begun_s = time.perf_counter()
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return BATCH * each * threads / (time.perf_counter() - begun_s)


def _torch_rate(load: Load) -> float:
    """The same network's forward pass in torch: bfloat16 on pixels that lie on the GPU already."""
    network = timm.create_model(load.network, num_classes=0).eval().to("cuda", memory_format=torch.channels_last)
    pixels_BCHW = torch.randn(BATCH, 3, load.size, load.size, device="cuda").to(memory_format=torch.channels_last)
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        for count in (5, load.batches):
            torch.cuda.synchronize()
            begun_s = time.perf_counter()
            for _ in range(count):
                network(pixels_BCHW)
            torch.cuda.synchronize()
            taken_s = time.perf_counter() - begun_s
    return BATCH * load.batches / taken_s
