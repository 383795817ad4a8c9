"""What is promised to the people behind the samples, and what one client may do to a model.

The tiers are those of `reference/reliability.md` 3.1. None of them promises anything against a server that lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from everlearn.spec.recipe import filled
from everlearn.spec.strict import Strict

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Share = Annotated[float, Field(gt=0, le=1)]


class Retention(Strict):
    """What may be at rest. Tightening deletes at once; loosening needs consent."""

    raw: Literal["never"] = "never"
    """Raw inputs are never stored; there is no other value."""
    features: Literal["sums", "latents"] = "sums"
    """`sums`: only sums over samples, never a feature vector. `latents`: feature vectors of single samples may be kept,
    which are personal data where the samples are: an image can be guessed from its features."""
    exports: int = Field(default=10, ge=1, le=1000)
    """Exported files kept."""
    checkpoints: int = Field(default=4, ge=0, le=64)
    """Of heads that learn by steps: states from before a client came that are kept, for erasing it to go back to."""


class Privacy(Strict):
    """What may be guessed from what is at rest. Tightening begins with the next commit; loosening needs consent."""

    tier: Literal["no_raw", "aggregate", "dp"] = "no_raw"
    """`no_raw`: no raw input at rest, in logs, dumps, or in memory once a batch is durable. `aggregate`: besides, what
    is persisted or served never changes by fewer than `min_samples` samples of `min_clients` clients. `dp`: besides,
    noise is added before anything is persisted or served, and each client's (or sample's) part in it is accounted for
    (differential privacy, Dwork 2006)."""
    min_samples: Count | None = None
    """aggregate, dp: k, samples in any step from one persisted or served state to the next; by default 64. Until so
    many have come nothing is durable, and clients keep them."""
    min_clients: Count | None = None
    """aggregate, dp: m, clients whose samples these are; by default 1. For models that several people share: 5."""
    min_class_samples: Count | None = None
    """aggregate, dp: samples below which a class is not served or exported; by default 32."""
    epsilon: Annotated[float, Field(gt=0, le=100)] | None = None
    """dp: budget over the whole life of the model; past it batches are refused. By default 8."""
    delta: Annotated[float, Field(gt=0, lt=0.1)] | None = None
    """dp: probability with which epsilon may not hold; below 1 / (number of clients). By default 1e-6."""
    unit: Literal["sample", "client"] | None = None
    """dp: whose presence is hidden. `sample`: one sample's. `client`: all that one client ever sent. By default
    sample."""
    noise: Annotated[float, Field(gt=0, le=1000)] | None = None
    """dp: standard deviation of the noise in units of what one sample (or one client's part in one step) can change;
    by default 1. More noise, less of the budget a step."""
    client_samples: Count | None = None
    """dp, unit client: samples that one client's part in one step is taken to be; by default 16. One that sends c times
    as many into a step spends c^2 as much of its budget."""
    client_sums: bool | None = None
    """no_raw: keep each client's own sums besides, sealed under a key of its own, so that `everlearn erase` takes it
    out exactly and without its receipts. Personal data, and as much disk and writing again for each client; of heads
    that are solved from sums of a frozen backbone, without decay. By default false: clients hold receipts."""

    @property
    def sample_noise(self) -> float:
        """dp: the noise in units of what one sample can change, whosever presence is hidden."""
        assert self.noise is not None, "of tier dp, which fills in all of its options"
        return self.noise * (self.client_samples or 1)

    @model_validator(mode="before")
    @classmethod
    def _of_its_tier(cls, data: Any) -> Any:
        data = filled(data, "tier", _TIERS, default="no_raw", shared=("client_samples",))
        if not isinstance(data, Mapping):
            return data
        if data.get("tier") == "dp" and data.get("unit") == "client":
            return {**data, "client_samples": data.get("client_samples") or _CLIENT_SAMPLES}
        if data.get("client_samples") is not None:
            raise ValueError("client_samples is an option of unit client; leave it out")
        return data


_AGGREGATE: Final[Mapping[str, object]] = {"min_samples": 64, "min_clients": 1, "min_class_samples": 32}
_TIERS: Mapping[str, Mapping[str, object]] = {
    "no_raw": {"client_sums": False},
    "aggregate": _AGGREGATE,
    "dp": {**_AGGREGATE, "epsilon": 8.0, "delta": 1e-6, "unit": "sample", "noise": 1.0},
}
_CLIENT_SAMPLES: Final = 16


class Limits(Strict):
    """How far one client can move a model. What is beyond them is refused, and named, in the batch's turn."""

    norm: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Longest feature vector, in units of the longest that the trunk's probes can give; longer ones are shortened to
    it. Left out: values beyond the feature scale are refused, and nothing is shortened."""
    client_share: Share | None = None
    """Largest share of all samples learned that one client may have sent; left out, any."""
    client_floor: Count = 1000
    """Samples that each client may send whatever its share."""
    client_gate: Share | None = None
    """A client whose recent prequential accuracy is below this share of the others' on the same labels is refused until
    a newer head does better on it; left out, none is. Of single labels only."""
    client_labels: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """Labels that one client may bring which nobody declared or sent before; left out, any."""
