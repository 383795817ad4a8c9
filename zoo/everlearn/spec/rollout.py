"""How a new version reaches the devices: a few chosen ones first, and what they report decides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field, field_validator

from everlearn.spec.device_labels import MAX_CHOICES, MAX_LABELS, Selector, problem_of_key, problem_of_value
from everlearn.spec.strict import Strict

if TYPE_CHECKING:
    from everlearn.spec.model import ModelSpec

WARNING: Final = (
    "rollout goes by what devices report, each under the name it gives itself, which nothing proves: let only your "
    "devices reach the server, or one that lies may stop a version (rollout.health.max_failures: more)"
)


class Canary(Strict):
    """Which devices run a new version first, and how much they must have shown."""

    selector: dict[str, str | Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_CHOICES)]]
    """Labels that a device must have, each with this value or one of these: `{site: lab, hardware: [pi4, pi5]}`."""
    min_devices: int = Field(default=1, ge=1, le=10_000)
    """Devices that must have answered with it. None counts for more than its part of min_predictions."""
    min_predictions: int = Field(default=100, ge=1, le=1_000_000_000)
    """Predictions that they must have made with it, together."""
    min_hours: float = Field(default=0.0, ge=0, le=8784)
    """It is a canary for so long at least."""
    max_hours: float | None = Field(default=None, gt=0, le=8784)
    """After so long without a verdict a newer version takes its place; by default it waits for ever."""

    @field_validator("selector")
    @classmethod
    def _labels_of_devices(cls, value: dict[str, str | tuple[str, ...]]) -> dict[str, str | tuple[str, ...]]:
        if not 1 <= len(value) <= MAX_LABELS:
            raise ValueError(f"has {len(value)} labels; at least 1, such as {{site: lab}}, and at most {MAX_LABELS}")
        for key, chosen in value.items():
            if problem := problem_of_key(key):
                raise ValueError(f"{key[:70]!r} {problem}")
            for each in (chosen,) if isinstance(chosen, str) else chosen:
                if problem := problem_of_value(each):
                    raise ValueError(f"{key}: {each[:70]!r} {problem}")
        return value

    @property
    def chosen(self) -> Selector:
        """The selector with a tuple for every key."""
        return {key: (value,) if isinstance(value, str) else value for key, value in self.selector.items()}

    @property
    def most_of_one(self) -> int:
        """Predictions of one device that count at most, so that none speaks for the others."""
        return -(-self.min_predictions // self.min_devices)


class DeviceHealth(Strict):
    """When what devices report is bad. A rise is over what the version before it showed; where nothing is known of
    that, over nothing."""

    max_failures: int = Field(default=0, ge=0, le=10_000)
    """Devices that may give a version up: it failed its self-test there, or crashed their program again and again."""
    max_failed_share: float = Field(default=0.05, ge=0, le=1)
    """Or this share of those that took it, where that is more of them."""
    max_error_rise: float = Field(default=0.02, ge=0, le=1)
    """Of the share of predictions that failed, or whose scores are not numbers."""
    max_unsure_rise: float = Field(default=0.1, ge=0, le=1)
    """Of the share of samples that got no label, of a model that declares unknown: abstain."""
    max_label_shift: float | None = Field(default=None, ge=0, le=1)
    """Jensen-Shannon distance of the predicted labels from those that the version before it predicted, 0 to 1; by
    default labels are not counted. What devices see changes too: give one where it seldom does."""


class Rollout(Strict):
    """A version that passes the gate is a `canary` first. One is tried at a time; of those that come meanwhile the
    newest is next. The first version of all is `stable` at once: there is nothing before it."""

    canary: Canary
    """Who tries it."""
    health: DeviceHealth = Field(default_factory=DeviceHealth)
    """When it is bad: then it is withdrawn, and never offered again."""
    watch_hours: float = Field(default=24.0, ge=0, le=8784)
    """For so long after it became `stable`, a version that is bad on all devices gives way to the one before it, once;
    0 never."""


def contradiction(spec: ModelSpec) -> str | None:
    """Why versions cannot be rolled out so, in words that begin with the field to change; None where they can."""
    if spec.rollout is None:
        return None
    if spec.serving.promotion != "auto":
        return (
            "rollout moves stable by itself, and serving.promotion manual lets nobody but `everlearn promote` move it; "
            "leave one of them out"
        )
    if spec.rollout.health.max_label_shift is not None and spec.task != "classification":
        return f"rollout.health.max_label_shift compares labels, and the task is {spec.task}; leave it out"
    return None


def told(declared: Rollout) -> str:
    """How a version reaches devices, in words."""
    chosen = ", ".join(f"{key} {' or '.join(values)}" for key, values in declared.canary.chosen.items())
    canary = declared.canary
    hours = f" over {canary.min_hours:g} h" if canary.min_hours else ""
    return (
        f"rollout: devices with {chosen} run a new version first; it is stable once {canary.min_devices:,} of them "
        f"have made {canary.min_predictions:,} predictions with it{hours} and are well, withdrawn where they are not"
    )
