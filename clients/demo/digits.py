"""`make demo`: a pretrained network learns ten digits from three streaming clients, and leaves as one ONNX file.

Everything goes through the public client, against a real server process. What it shows: nothing is forgotten although
nothing is kept; what is exported predicts what the server predicts; a restart loses nothing.
"""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from local_server import LocalServer
from PIL import Image
from rich.console import Console
from rich.live import Live
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from everlearn_client import Client
from everlearn_client.events import Durable, LearnEvent, Received

CLIENTS = ("line-a", "line-b", "line-c")
PAIRS = ((4, 7), (0, 9), (2, 5), (1, 8), (3, 6))
BATCH = 32
SEED = 0

console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


@dataclass(frozen=True)
class Digits:
    """Real handwritten digits (UCI, by 43 people) as PNG files, a fifth of them held out."""

    files: list[bytes]
    label: npt.NDArray[np.int64]
    train: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]

    @classmethod
    def load(cls) -> Digits:
        """The 1,797 digits that ship with scikit-learn."""
        images, label = load_digits(return_X_y=True)
        grey = (images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        order = np.random.default_rng(SEED).permutation(len(label))
        held_out = len(label) // 5
        return cls([_png(image) for image in grey], label, order[held_out:], order[:held_out])

    def of(self, indices: npt.NDArray[np.int64], digits: Sequence[int]) -> npt.NDArray[np.int64]:
        """Those of the indices that show one of these digits."""
        return indices[np.isin(self.label[indices], digits)]


def _png(grey: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    return buffer.getvalue()


def main() -> None:
    """The five acts."""
    began_s = time.monotonic()
    digits = Digits.load()
    with TemporaryDirectory(prefix="everlearn-demo-") as folder:
        with LocalServer(Path(folder) / "data") as server:
            _say(1, f"A server runs at {server.address}. Declaring clients/demo/digits.yaml ...")
            with Client(server.address) as client:
                _declare(client)
                trunk = _export_and_learn(client, server.address, digits, Path(folder))
            before = _predict_all(server.address, digits)
            _check_export(server.address, digits, trunk, before)
            _say(5, "Restarting the server ...")
            stopped_s = time.monotonic()
            server.restart()
            after = _predict_all(server.address, digits)
        same = sum(a == b for a, b in zip(before, after, strict=True))
        console.print(
            f"   back after {time.monotonic() - stopped_s:.1f} s; {same} of {len(after)} predictions are what they were"
        )
    if before != after:
        raise SystemExit("the restarted server predicts otherwise: this is a bug")
    console.print(f"\nDone in {time.monotonic() - began_s:.0f} s. What to try next:", style="bold")
    console.print("   everlearn-server --data ./everlearn-data           a server of your own (in .venv/bin)")
    console.print("   everlearn apply -f clients/demo/digits.yaml        declare a model; `plan` shows it first")
    console.print("   everlearn learn digits FOLDER                      teach it a folder with one subfolder a class")


def _say(act: int, text: str) -> None:
    console.print(f"\n[bold]{act}.[/bold] {text}")


# -- 1. declare -------------------------------------------------------------------------------------------------------


def _declare(client: Client) -> None:
    began_s = time.monotonic()
    text = (Path(__file__).parent / "digits.yaml").read_text()
    with console.status("pulling, checking and building the backbone") as status:
        applied = client.models.apply(
            text, progress=lambda progress: status.update(f"backbone: {progress.stage or 'queued'}")
        )
    model = client.models.get("digits")
    weights = next(digest for file, digest in model.status.lock.items() if file != "revision")
    console.print(f"   plan {applied.plan.id[:8]}: {applied.plan.action}; built in {time.monotonic() - began_s:.1f} s")
    console.print(
        f"   trunk {model.status.trunk_digest[:12]}, {model.status.feature_dim} features an image, "
        f"weights sha256 {weights[:12]}"
    )


# -- 2 and 3. learn, and look after each pair of classes --------------------------------------------------------------


@dataclass
class Step:
    """One pair of classes: what three streams tell while they run, and the figures taken after them."""

    seen: list[int]
    began_s: float = field(default_factory=time.monotonic)
    took_s: float = 0.0
    samples: int = 0
    prequential: float = 0.0
    classes: int = 0
    durable: dict[str, int] = field(default_factory=dict)
    figures: tuple[str, str, str] = ("", "", "")
    lock: threading.Lock = field(default_factory=threading.Lock)

    def hear(self, client: str, event: LearnEvent) -> None:
        """Takes up what a stream says; called from its thread."""
        with self.lock:
            if isinstance(event, Received):
                self.samples += event.samples
                self.prequential = event.prequential.accuracy
                self.classes = event.classes_seen
            elif isinstance(event, Durable):
                self.durable[client] = event.sequence

    def row(self) -> tuple[str, ...]:
        """A line of the screen."""
        rate = self.samples / max(1e-3, self.took_s or time.monotonic() - self.began_s)
        watermarks = " ".join(str(self.durable.get(name, 0)) for name in CLIENTS)
        running = (f"{self.samples}", f"{rate:.0f}", f"{self.prequential:.1%}", f"{self.classes}", watermarks)
        return (" ".join(map(str, self.seen)), *running, *self.figures)


@dataclass
class Screen:
    """All steps so far, drawn anew a few times a second."""

    steps: list[Step] = field(default_factory=list)

    def __rich__(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("   digits seen")
        for title in ("images", "/s", "preq.", "classes", "durable"):
            table.add_column(title, justify="right", style="cyan")
        table.add_column("accuracy", justify="right", style="bold green")
        table.add_column("forgetting", justify="right")
        table.add_column("joint bound", justify="right")
        for step in self.steps:
            first, *rest = step.row()
            table.add_row("   " + first, *rest)
        return table


def _export_and_learn(client: Client, address: str, digits: Digits, folder: Path) -> Path:
    _say(2, f"Streaming {len(digits.train)} real digits from three clients, one pass, two classes at a time.")
    _say(3, "After each pair: accuracy on everything seen so far, though no image is kept.")
    accuracy = np.full((len(PAIRS), len(PAIRS)), np.nan)
    features: npt.NDArray[np.float32] | None = None
    path = folder / "export" / "model.onnx"
    screen = Screen()
    with Live(screen, console=console, refresh_per_second=8):
        for number, pair in enumerate(PAIRS):
            step = Step(seen=[digit for pair in PAIRS[: number + 1] for digit in pair])
            screen.steps.append(step)
            _stream(address, digits, pair, step)
            if features is None:  # the exported file holds the trunk: the bound is computed from its features
                client.download(client.export("digits"), path.parent)
                features = _features(path, digits)
            for earlier, tested in enumerate(PAIRS[: number + 1]):
                accuracy[number, earlier] = _accuracy(client, digits, tested)
            step.figures = _figures(number, accuracy, digits, features)
    console.print(
        "\n   preq.: each image is predicted before it is learned. joint bound: logistic regression on the features\n"
        "   of all images at once, which needs them all to be kept. durable: batches acknowledged for good, by client.",
        style="dim",
    )
    return path


def _stream(address: str, digits: Digits, pair: Sequence[int], step: Step) -> None:
    """Three clients at once, each with a third of the images."""
    indices = digits.of(digits.train, pair)
    errors: list[BaseException] = []

    def run(name: str, share: npt.NDArray[np.int64]) -> None:
        try:
            with Client(address, client_id=name) as client:
                client.learn("digits", _batches(digits, share), on_event=lambda event: step.hear(name, event))
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=(name, indices[number :: len(CLIENTS)]))
        for number, name in enumerate(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    step.took_s = time.monotonic() - step.began_s
    if errors:
        raise errors[0]


def _batches(digits: Digits, share: npt.NDArray[np.int64]) -> Iterator[tuple[list[bytes], list[str]]]:
    for start in range(0, len(share), BATCH):
        rows = share[start : start + BATCH]
        yield [digits.files[row] for row in rows], [str(digits.label[row]) for row in rows]


def _accuracy(client: Client, digits: Digits, seen: Sequence[int]) -> float:
    rows = digits.of(digits.test, seen)
    predictions = client.predict("digits", [digits.files[row] for row in rows])
    hits = [top[0].label == str(digits.label[row]) for top, row in zip(predictions.top, rows, strict=True)]
    return float(np.mean(hits))


def _figures(
    number: int, accuracy: npt.NDArray[np.float64], digits: Digits, features: npt.NDArray[np.float32]
) -> tuple[str, str, str]:
    """Accuracy on all that was seen, forgetting (Chaudhry et al. 2018), and what joint training would reach."""
    seen = [digit for pair in PAIRS[: number + 1] for digit in pair]
    sizes = [len(digits.of(digits.test, pair)) for pair in PAIRS[: number + 1]]
    ours = float(np.average(accuracy[number, : number + 1], weights=sizes))
    train, test = digits.of(digits.train, seen), digits.of(digits.test, seen)
    joint = LogisticRegression(max_iter=300).fit(features[train], digits.label[train])
    bound = float(joint.score(features[test], digits.label[test]))
    # Of each earlier pair: its best accuracy before, minus what it is now (eq. 3); below 0 where it got better.
    drops = [accuracy[pair:number, pair].max() - accuracy[number, pair] for pair in range(number)]
    forgot = float(np.mean(drops)) if drops else 0.0
    return f"{ours:.1%}", f"{forgot:+.1%}", f"{bound:.1%}"


def _features(path: Path, digits: Digits) -> npt.NDArray[np.float32]:
    """What the trunk inside the exported file makes of every digit."""
    model = onnx.load(path)
    model.graph.output.append(onnx.ValueInfoProto(name="features"))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["features"], {"image": _decode(file)})[0] for file in digits.files])


def _decode(file: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))[None]


# -- 4. predict and export --------------------------------------------------------------------------------------------


def _predict_all(address: str, digits: Digits) -> list[str]:
    with Client(address) as client:
        predictions = client.predict("digits", [digits.files[row] for row in digits.test])
    return [top[0].label for top in predictions.top]


def _check_export(address: str, digits: Digits, earlier: Path, server_says: list[str]) -> None:
    _say(4, "Predicting, exporting, and running the file in plain ONNX Runtime ...")
    with Client(address) as client:
        began_s = time.monotonic()
        export = client.export("digits")
        took_s = time.monotonic() - began_s
        path, *_ = client.download(export, earlier.parent.parent / "final")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    # From the bytes of each PNG, decoded to uint8: resize, normalisation, network and labels are inside the file.
    file_says = [session.run(["label"], {"image": _decode(digits.files[row])})[0][0] for row in digits.test]
    same = sum(a == b for a, b in zip(file_says, server_says, strict=True))
    right = np.mean([a == str(digits.label[row]) for a, row in zip(server_says, digits.test, strict=True)])
    console.print(f"   the server is right on {right:.1%} of {len(server_says)} digits it has never seen")
    console.print(
        f"   {export.version} exported in {took_s * 1e3:.0f} ms: {path.stat().st_size / 1e6:.1f} MB, checked on "
        f"{export.probes} probes: no score differs by more than {export.parity_max_abs_diff:.1g}"
    )
    console.print(f"   the file, alone, predicts what the server predicts on {same} of {len(file_says)}")
    if same < 0.99 * len(file_says):
        raise SystemExit("the exported file predicts otherwise: this is a bug")


if __name__ == "__main__":
    main()
