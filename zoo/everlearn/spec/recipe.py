"""How a model learns where a closed form is not what is wanted: the axes of a gradient recipe.

Each axis is a choice of its own and composes with the others; `everlearn.spec.presets` names the compositions that the
literature knows, and `everlearn.spec.composition` refuses those that would break a promise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from everlearn.spec.strict import Strict

Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Projection(Strict):
    """Random features between trunk and head: relu(x W), W ~ N(0, 1/d) from the seed (RanPAC, McDonnell 2023, eq. 4).

    It lifts a linear head to what a wide hidden layer could tell apart, and stays closed form. Exports carry W:
    4 d * dim bytes.
    """

    dim: int = Field(default=2000, ge=16, le=16_384)
    """Random features. The Gram matrix takes 8 dim^2 bytes: 32 MB at 2,000."""
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    """Of W; part of what a feature means."""


class Adapt(Strict):
    """Which weights of the backbone move; one file each in everlearn/learners/gradient/adapts. Below them it is
    cut: the trunk stays frozen and shared, the tail learns."""

    kind: Literal["frozen", "first_session", "last_blocks", "lora", "full"] = "frozen"
    """`frozen`: none. `last_blocks`: the last blocks, by gradient steps, for ever. `lora`: adapters of low rank, merged
    at export (Hu 2021). `full`: all. `first_session`: blocks or adapters are fitted once, on the first samples, which
    are held in RAM only; from then on frozen (Panos 2023, First Session Adaptation)."""
    blocks: Annotated[int, Field(ge=1, le=1000)] | None = None
    """last_blocks, first_session, lora: how many blocks are above the cut; by default 1, with lora 2, with
    first_session 2."""
    rank: Annotated[int, Field(ge=1, le=256)] | None = None
    """lora: of each adapter, by default 4. first_session: adapters of that rank instead of whole blocks."""
    targets: tuple[str, ...] | None = None
    """lora: patterns of layer names; by default the attention's projections, else pointwise layers."""
    samples: Annotated[int, Field(ge=16, le=65_536)] | None = None
    """first_session: how many are waited for; by default 512. They are in RAM until then and nowhere else: none of
    them is durable before the session has ended, and clients keep them for that long."""
    epochs: Annotated[int, Field(ge=1, le=100)] | None = None
    """first_session: passes over them; by default 10."""
    patience_s: Annotated[float, Field(gt=0, le=86_400)] | None = None
    """first_session: without a new sample for so long it ends with those that came; by default 5."""

    @model_validator(mode="before")
    @classmethod
    def _of_its_kind(cls, data: Any) -> Any:
        return filled(data, "kind", _ADAPTS, default="frozen")


_ADAPTS: Mapping[str, Mapping[str, object]] = {
    "frozen": {},
    "first_session": {"blocks": 2, "rank": None, "samples": 512, "epochs": 10, "patience_s": 5.0},
    "last_blocks": {"blocks": 1},
    "lora": {"blocks": 2, "rank": 4, "targets": None},
    "full": {},
}


class Regularizer(Strict):
    """One penalty on what would be forgotten; several are summed."""

    kind: Literal["distill", "ewc", "si", "mas", "l2sp"]
    """`distill`: stay close to the live version's scores (LwF, Li & Hoiem 2016). `ewc`: online, diagonal Fisher
    (Kirkpatrick 2017, Schwarz 2018). `si`: path integral (Zenke 2017). `mas`: sensitivity of the output (Aljundi 2018).
    `l2sp`: stay close to the weights one started from (Xuhong Li 2018)."""
    strength: Rate | None = None
    """Weight in the loss; by default what the paper uses on such scales. Of ewc 100, or 1 for several labels a sample
    and 0.1 for values."""
    temperature: Rate | None = None
    """distill: of both softmaxes, or of each label's probability; of values it changes nothing. By default 2."""
    decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """ewc, mas, si: what of the old importance survives a consolidation; by default 0.95."""
    every: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Steps between consolidations: a stream has no task boundaries; by default 50."""

    @model_validator(mode="before")
    @classmethod
    def _of_its_kind(cls, data: Any) -> Any:
        return filled(data, "kind", _REGULARIZERS)


_IMPORTANCE = {"decay": 0.95, "every": 50}
_REGULARIZERS: Mapping[str, Mapping[str, object]] = {
    "distill": {"strength": 1.0, "temperature": 2.0, "every": 50},
    "ewc": {"strength": 100.0, **_IMPORTANCE},
    "si": {"strength": 0.5, **_IMPORTANCE},
    "mas": {"strength": 0.1, **_IMPORTANCE},
    "l2sp": {"strength": 0.01},
}


class Loss(Strict):
    """What a gradient step minimises."""

    kind: Literal["cross_entropy", "er_ace", "der", "binary_cross_entropy", "mse", "huber", "cosine"] = "cross_entropy"
    """`er_ace`: the stream's own samples compete only within the batch's classes (Caccia 2022). `der`: DER++, replayed
    samples also keep the scores they had (Buzzega 2020). Those after it judge each score by itself, or their direction:
    `binary_cross_entropy`, squared error `mse`, `huber`, and `cosine` (Barz & Denzler 2020). Of task multilabel
    it is `binary_cross_entropy`, of regression `huber` (its default) or `mse`."""
    label_smoothing: Share | None = None
    """cross_entropy, er_ace, der: share of the target that goes to all classes alike (Szegedy 2016).
    binary_cross_entropy: to yes and no alike. By default 0."""
    logit_adjustment: Annotated[float, Field(ge=0, le=4)] | None = None
    """cross_entropy, er_ace, der: tau: scores are raised by tau * log of the class's share while training, so that rare
    classes are not given up (Menon 2021). By default 0, which is off; 1 is the paper's."""
    alpha: Rate | None = None
    """der: weight of the squared difference to stored scores; by default 0.1."""
    beta: Rate | None = None
    """der: weight of the cross-entropy of replayed samples; by default 2, as for twice as many of them as are new."""
    delta: Rate | None = None
    """huber: the error from which on the loss grows in a line; by default 1. Of a regression in sixths of an output's
    declared range."""

    @model_validator(mode="before")
    @classmethod
    def _of_its_kind(cls, data: Any) -> Any:
        return filled(data, "kind", _LOSSES, default="cross_entropy")


_SOFTMAX = {"label_smoothing": 0.0, "logit_adjustment": 0.0}
_LOSSES: Mapping[str, Mapping[str, object]] = {
    "cross_entropy": _SOFTMAX,
    "er_ace": _SOFTMAX,
    "der": {**_SOFTMAX, "alpha": 0.1, "beta": 2.0},
    "binary_cross_entropy": {"label_smoothing": 0.0},
    "mse": {},
    "huber": {"delta": 1.0},
    "cosine": {},
}


class Optimizer(Strict):
    """How a gradient becomes a step."""

    kind: Literal["sgd", "adam", "adamw", "rmsprop", "adagrad"] = "sgd"
    """torch.optim's."""
    learning_rate: Rate | None = None
    """Of a batch of 32 rows; by default 0.05 for sgd (0.01 with loss binary_cross_entropy, 0.002 with mse and
    huber), 0.01 for adagrad, 0.001 for the others."""
    scale_with_batch: Literal["no", "linear", "sqrt"] = "sqrt"
    """How the rate follows the rows in a step, relative to 32 (Goyal 2017, Krizhevsky 2014)."""
    momentum: Share | None = None
    """sgd, rmsprop; by default 0.9 for sgd."""
    nesterov: bool | None = None
    """sgd; by default true."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """L2 (decoupled for adamw); never of biases and norms."""
    l1: float = Field(default=0.0, ge=0, le=1)
    """Strength of the absolute penalty on weights."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Each block below the head learns at this share of the rate of the one above."""
    clip_norm: float = Field(default=1.0, ge=0)
    """Largest gradient norm; 0 is off."""

    @model_validator(mode="before")
    @classmethod
    def _of_its_kind(cls, data: Any) -> Any:
        return filled(
            data,
            "kind",
            {
                "sgd": {"learning_rate": 0.05, "momentum": 0.9, "nesterov": True},
                "adam": {"learning_rate": 1e-3},
                "adamw": {"learning_rate": 1e-3},
                "rmsprop": {"learning_rate": 1e-3, "momentum": 0.0},
                "adagrad": {"learning_rate": 1e-2},
            },
            default="sgd",
            shared=("scale_with_batch", "weight_decay", "l1", "layer_decay", "clip_norm"),
        )


class Schedule(Strict):
    """The learning rate over steps. A later update goes on where the last one ended."""

    kind: Literal["constant", "step", "cosine", "linear", "inverse_sqrt", "one_cycle"] = "constant"
    """`constant` suits a stream without an end; the others end at `total_steps` and stay there."""
    warmup_steps: int = Field(default=0, ge=0, le=1_000_000)
    """Steps over which the rate rises from nothing."""
    total_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """cosine, linear, one_cycle: where it ends; by default 10,000."""
    every: Annotated[int, Field(ge=1)] | None = None
    """step: steps between cuts; by default 1,000."""
    factor: Annotated[float, Field(gt=0, lt=1)] | None = None
    """step: what a cut leaves; by default 0.5."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """Least share of the rate."""

    @model_validator(mode="before")
    @classmethod
    def _of_its_kind(cls, data: Any) -> Any:
        end: dict[str, object] = {"total_steps": 10_000}
        kinds: dict[str, dict[str, object]] = {
            "constant": {},
            "inverse_sqrt": {},
            "cosine": end,
            "linear": end,
            "one_cycle": end,
            "step": {"every": 1_000, "factor": 0.5},
        }
        return filled(data, "kind", kinds, default="constant", shared=("warmup_steps", "floor"))


class Augment(Strict):
    """How a batch of images is varied before it is learned: on the device, a draw a row, never stored. All off."""

    crop_area: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Smallest share of the image's area that a random crop keeps before it is resized back (Szegedy 2015: 0.08, too
    little for most streams; 0.6 is mild); 1 is off."""
    crop_aspect: float = Field(default=4 / 3, ge=1, le=4)
    """Longest side of such a crop relative to the other."""
    crop_padding_px: int = Field(default=0, ge=0, le=256)
    """Pixels of black around the image within which a window of its size is drawn (He 2016: 4 at 32 px); 0 is off."""
    flip: float = Field(default=0.0, ge=0, le=1)
    """Probability of left to right; not for digits, text, or whatever has a side."""
    brightness: Share = 0.0
    """Largest relative change; 0 is off."""
    contrast: Share = 0.0
    """Largest relative change around the mean grey; 0 is off."""
    saturation: Share = 0.0
    """Largest relative change away from grey; 0 is off."""
    hue: float = Field(default=0.0, ge=0, le=0.5)
    """Largest part of a turn round the colour circle, either way; 0 is off."""
    cutout: float = Field(default=0.0, ge=0, le=1)
    """Side of a box of no information, as a share of the image's (DeVries & Taylor 2017: 0.5 at 32 px); 0 is off."""
    mixup: float = Field(default=0.0, ge=0, le=4)
    """alpha of Beta(alpha, alpha), between images (Zhang 2018: 0.2); 0 is off."""
    cutmix: float = Field(default=0.0, ge=0, le=4)
    """alpha of Beta(alpha, alpha): a box of another image, labels by area (Yun 2019: 1); 0 is off."""

    @model_validator(mode="after")
    def _one_way_to_mix(self) -> Self:
        if self.mixup and self.cutmix:
            raise ValueError("mixup and cutmix both mix the labels of a batch; leave one out")
        return self


class Training(Strict):
    """The craft of the gradient steps."""

    optimizer: Optimizer = Field(default_factory=Optimizer)
    """How a gradient becomes a step."""
    schedule: Schedule = Field(default_factory=Schedule)
    """The learning rate over steps."""
    steps: int = Field(default=4, ge=1, le=100)
    """Steps a streamed batch."""
    replay: int = Field(default=64, ge=0, le=4096)
    """Rows from the memory in each step; the paper's habit is as many as are new, more costs little at a cut."""
    mixup: float = Field(default=0.0, ge=0, le=4)
    """alpha of Beta(alpha, alpha), between rows at the cut (Zhang 2018, Verma 2019); 0 is off."""
    dropout: Share = 0.0
    """Before the head."""
    stochastic_depth: Share = 0.0
    """Share of rows for which the highest residual block of the tail is left out in a step, lower ones less in
    proportion (Huang 2016); 0 is off."""
    freeze_blocks: int = Field(default=0, ge=0, le=1000)
    """Of the blocks above the cut the lowest so many stay as they are."""
    freeze_until: int = Field(default=0, ge=0, le=1_000_000)
    """Steps in which only the head learns, before the tail does: it does not spoil good features for a head that knows
    nothing yet (Kumar 2022)."""
    ema: Share = 0.0
    """Decay of the running mean of weights that is served instead of the last ones; 0 is off. Steadier, and later to
    know what is new: with 0.99 latent_replay ended 0.5 points lower to 0.6 higher on streams of digits, and was 0.4 to
    0.9 points lower on the way (make bench-learning)."""
    soup: int = Field(default=0, ge=0, le=32)
    """Snapshots that are averaged into the served weights where that is not worse (Wortsman 2022), by accuracy, or, of
    several labels and of values, by the loss, on samples not yet learned; 0 is off."""
    early_stop: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Batches without a better windowed prequential accuracy (loss, of several labels and of values) after which steps
    cease until it is worse by more than its standard error; else never."""
    augment: Augment | None = None
    """How images are varied; only where the pixels reach the learner, which is adapt: full."""
    compile: bool = False
    """Whether the tail is compiled (torch.compile), which fuses what lies between its products: for blocks of
    convolutions at full size. It needs a C++ compiler (on a GPU Triton too), some 30 to 80 seconds whenever the
    learner's process begins, and gives up that a next process goes on to the last bit. Off."""
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    """Of everything random."""

    @model_validator(mode="after")
    def _drawn_as_it_runs(self) -> Self:
        if self.compile and self.stochastic_depth:
            raise ValueError("compile fixes what a step computes, and stochastic_depth draws it; leave one out")
        return self

    @model_validator(mode="after")
    def _mixed_once(self) -> Self:
        if self.mixup and self.augment is not None and (self.augment.mixup or self.augment.cutmix):
            raise ValueError("mixup at the cut and in augment both mix the labels of a batch; leave one out")
        return self


def filled(
    data: Any,
    key: str,
    kinds: Mapping[str, Mapping[str, object]],
    *,
    default: str | None = None,
    shared: tuple[str, ...] = (),
) -> Any:
    """Fills in what a kind needs, and refuses what another kind has. What is wrong in itself is left to its field."""
    if not isinstance(data, Mapping):
        return data
    kind = data.get(key, default)
    wanted = kinds.get(kind) if isinstance(kind, str) else None
    if wanted is None:
        return data
    foreign = {name for options in kinds.values() for name in options} - wanted.keys() - set(shared)
    for name in sorted(foreign):
        if data.get(name) is not None:
            raise ValueError(f"{name} is not an option of {kind}; leave it out")
    return {**wanted, **{name: value for name, value in data.items() if value is not None or name not in wanted}}
