"""A model on a device: it answers offline, follows the server, and sends what is worth learning.

>>> client = Client(server, client_id="camera-7")  # doctest: +SKIP
>>> with EdgeModel("shelf", folder="/var/lib/shelf", client=client) as shelf:  # doctest: +SKIP
...     shelf.predict(image_uint8).top[0][0].label
...     shelf.observe(image_uint8, "seven")
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from everlearn_client.client import Client
from everlearn_client.edge.clock import AgeClock, uptime
from everlearn_client.edge.follower import Follower
from everlearn_client.edge.health import HealthLog, check_labels
from everlearn_client.edge.policy import Allowance, BackOff, Chooser, SendPolicy, Why
from everlearn_client.edge.sending import Drain, Drained
from everlearn_client.edge.session import EdgeSession
from everlearn_client.edge.spool import Spool, SpoolStats
from everlearn_client.edge.texts import unlike_others
from everlearn_client.edge.thumbnails import check_image, longest_side, png, reduced
from everlearn_client.errors import EverlearnClientError, FailedPrecondition, InvalidArgument, Overloaded
from everlearn_client.resource_names import learner_name, model_name
from everlearn_client.results import Predictions
from everlearn_client.samples import Batch, Features, SampleInput, Tensors, Texts

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EdgeSettings:
    """How a device behaves; the defaults suit one that is nearly always online."""

    policy: SendPolicy = field(default_factory=SendPolicy)
    """What is sent."""
    watch_every_s: float = 30.0
    """Between two questions for a new version."""
    send_after_s: float = 2.0
    """Samples wait so long for others, so that one stream carries several."""
    confirm_after_s: float = 60.0
    """A new version that has answered and run so long is trusted; before, a crash counts against it."""
    max_starts: int = 3
    """Of the program with a version on trial, until the one before it comes back."""
    threads: int = 1
    """ONNX Runtime's."""
    spool_bytes: int = 64 * 2**20
    """On the disk, for what waits; the oldest gives way."""
    spool_age_s: float | None = None
    """Older samples are dropped; None for never."""
    precision: str = ""
    """Of the model that runs here, by default the server's own: `fp16` is half as many bytes to download and to keep,
    and as fast; `int8`, where the model declares int8_export or int8_trunk, the fewest and the fastest."""
    server_key: str = ""
    """64 hexadecimal digits, as `everlearn info` shows them: only what this server signed runs here. Where it is empty,
    the first server that a model is pulled from is the one, for good."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What the device is, such as `{"site": "north", "hardware": "pi4"}`: told to the server, whose model may declare
    that such devices run new versions first. At most 16, as Kubernetes has them."""
    retry_for_s: float = 20.0
    """Seconds of failing in a row until the line counts as down."""
    longest_pause_s: float = 900.0
    """Between two attempts while it is: pauses double up to this."""

    def __post_init__(self) -> None:
        check_labels(self.labels)
        if self.policy.send == "features" and self.precision == "fp16":  # int8 may be what the server learns on
            raise InvalidArgument(
                f"features computed in {self.precision} are not the server's; send samples, or leave the precision out",
                field="precision",
            )


class EdgeModel:
    """One model, one learner, one folder. Threads share it; one process at a time has the folder."""

    def __init__(
        self,
        model: str,
        *,
        folder: str | Path,
        client: Client,
        version: str | int = "stable",
        settings: EdgeSettings | None = None,
        metered: Callable[[], bool] = lambda: False,
        on_switch: Callable[[str, str], None] | None = None,
    ) -> None:
        """Takes up what the folder holds, and needs no server for it. `client`: with a `client_id` that lasts; stays
        the caller's. `metered`: whether the connection costs money right now.

        Raises InvalidArgument for a folder in use, or of another model or learner.
        """
        self._settings = settings or EdgeSettings()
        self._client, self._model = client, model
        stream = f"{model_name(model)} clients/{learner_name(client.client_id)}"
        self.health = HealthLog()
        """What the versions did here since the start, as the server is told."""
        root = Path(folder)
        self._spool = Spool(
            root / "spool",
            stream=stream,
            max_bytes=self._settings.spool_bytes,
            max_age_s=self._settings.spool_age_s,
        )
        try:
            self._follower = Follower(
                root / "model",
                model=model,
                version=version,
                max_starts=self._settings.max_starts,
                threads=self._settings.threads,
                with_features=self.sends_features,
                precision=self._settings.precision,
                server_key=self._settings.server_key,
                on_switch=on_switch,
                labels=self._settings.labels,
                health=self.health,
            )
        except BaseException:
            self._spool.close()
            raise
        self._clock_s = AgeClock(uptime).seconds
        self._chooser = Chooser(self._settings.policy, self._clock_s)
        self._allowance = Allowance(self._settings.policy, self._clock_s, metered=metered)
        self._turn, self._sending = threading.Lock(), threading.Lock()
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._switched_s, self._answered = self._clock_s(), False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Begins to follow new versions and to send, each in a thread of its own, for as long as this lives."""
        if not self._threads:
            for work in (self._watch, self._send):
                self._threads.append(threading.Thread(target=work, name=f"everlearn-edge-{work.__name__}", daemon=True))
                self._threads[-1].start()

    def close(self) -> None:
        """Ends both; what is not durable waits on the disk. A version that ran well to the end is confirmed."""
        self._ended.set()
        with self._spool.arrived:
            self._spool.arrived.notify_all()
        for thread in self._threads:
            thread.join(timeout=5.0)
        if self._answered:
            self._follower.confirm()
        self._spool.close()

    # -- answering ---------------------------------------------------------------------------------------------------

    @property
    def version(self) -> str:
        """`models/{model}/versions/{number}` that answers; empty before the first was pulled."""
        return self._follower.version

    @property
    def task(self) -> str:
        """`classification`, `multilabel` or `regression`; empty before the first version was pulled."""
        session = self._follower.session
        return "" if session is None else session.task

    @property
    def takes_texts(self) -> bool:
        """Whether the version that answers reads texts; false before the first was pulled."""
        session = self._follower.session
        return session is not None and session.input_name == "input_ids"

    @property
    def precision(self) -> str:
        """Of the weights of the version that answers; empty before the first was pulled."""
        return self._follower.precision

    @property
    def rolled_back(self) -> str:
        """Which version was given up since the start, and why; empty for none."""
        return self._follower.rolled_back

    def predict(self, samples: SampleInput, *, top_k: int = 0, scores: bool = False) -> Predictions:
        """As Client.predict, answered here, offline too; images as uint8 [N, H, W, 3].

        Raises FailedPrecondition (`NO_MODEL`) before the first version was pulled, InvalidArgument.
        """
        session, begun_s = self._session(), time.perf_counter()
        try:
            answer = session.predict(samples, top_k=top_k, scores=scores)
        except InvalidArgument as error:
            if not (error.field or "").startswith(
                "samples"
            ):  # of a form that no version takes: the caller's fault, not this version's
                self.health.failed(session.version)
            raise
        self._answered = True
        self.health.answered(session.version, answer, time.perf_counter() - begun_s)
        return answer

    def _session(self) -> EdgeSession:
        session = self._follower.session
        if session is None:
            raise FailedPrecondition(
                "there is no model on this device yet; connect it to the server once", reason="NO_MODEL"
            )
        return session

    # -- teaching ----------------------------------------------------------------------------------------------------

    def observe(
        self,
        sample: npt.NDArray[Any] | str,
        label: Any,
        *,
        send: SampleInput | None = None,
        step: str = "",
        scores_C: npt.NDArray[np.floating] | None = None,
    ) -> Why:
        """One labelled sample: kept for the server if the policy says so; returns what it said.

        `sample`: uint8 [H, W, 3], float32 of a tensor model's shape, or a text. `send`: what is to be sent in its
        place, e.g. `[jpeg]`. `scores_C`: of `predict`, so that the model does not run twice; not where it abstained.

        Raises InvalidArgument; where the policy sends features, or thumbnails without a size, FailedPrecondition, if
        there is no model yet (`NO_MODEL`) or one that computes in another precision than the server (`NO_FEATURES`).
        """
        array, form = _formed(sample)
        session = self._follower.session
        if send is not None and not self.sends_samples:
            what = {"features": "features", "thumbnail": "thumbnails"}[self._settings.policy.send]
            raise InvalidArgument(f"the policy sends {what}, so nothing else can be sent", field="send")
        size = self._thumbnail_size(array) if self._settings.policy.send == "thumbnail" else None
        if self.sends_features:
            session = self._session()
            session.check_features()
        if scores_C is None and self._settings.policy.only_unsure and session is not None:
            scores_NC, novelty = session.answers(session.array_of(form))
            # What is like nothing that was learned is worth sending, however sure the scores are.
            scores_C = None if novelty and not novelty[0] <= 1 else scores_NC[0]
        why = self._chooser.decide(scores_C=scores_C, sample=array, label=str(label))
        if why != "send":
            return why
        if size is not None:
            send = [png(reduced(array, *size))]
        if self.sends_features and session is not None:
            kept: SampleInput = Features(session.features(session.array_of(form)))
            self._spool.put(Batch(kept, [label], step), feature_digest=session.feature_digest)
        else:
            self._spool.put(Batch(form if send is None else send, [label], step))
        return why

    def put(self, samples: SampleInput, labels: Sequence[Any], *, feature_digest: str = "", step: str = "") -> None:
        """A whole batch, past the policy. Raises InvalidArgument."""
        self._spool.put(Batch(samples, labels, step), feature_digest=feature_digest)

    @property
    def sends_features(self) -> bool:
        """Whether no sample itself is kept or sent."""
        return self._settings.policy.send == "features"

    @property
    def sends_samples(self) -> bool:
        """Whether samples are kept and sent as they are."""
        return self._settings.policy.send == "sample"

    def _thumbnail_size(self, image: npt.NDArray[Any]) -> tuple[int, int]:
        check_image(image)
        side_px, (height, width) = self._settings.policy.thumbnail_px, image.shape[:2]
        if side_px is not None:
            return longest_side(height, width, side_px)
        front = self._session().resized
        if front is None:
            raise InvalidArgument("the model takes no images, so there are no thumbnails", field="sample")
        return front.of(height, width)

    @property
    def spool(self) -> SpoolStats:
        """What waits, and what became of the rest."""
        return self._spool.stats()

    @property
    def decisions(self) -> dict[Why, int]:
        """What `observe` did with how many samples since the start."""
        return dict(self._chooser.counts)

    # -- the server --------------------------------------------------------------------------------------------------

    def pull(self) -> bool:
        """Takes the wanted version now. Returns whether another one runs. Raises the client's errors, DataLoss."""
        with self._turn:
            self._confirm_in_time()
            switched = self._follower.pull(self._client)
            if switched:
                self._switched_s, self._answered = self._clock_s(), False
            return switched

    def flush(self) -> Drained:
        """Sends what waits now, as far as the policy lets it. Raises the client's errors; nothing is lost by them."""
        drain = Drain(
            self._spool,
            self._client.open_learn,
            model=self._model,
            client_id=self._client.client_id,
            allowance=self._allowance,
            retry_for_s=self._settings.retry_for_s,
        )
        with self._sending:  # two streams of one learner would fence each other off
            return drain.run()

    def _confirm_in_time(self) -> None:
        trusted = self._clock_s() - self._switched_s >= self._settings.confirm_after_s
        if self._follower.on_trial and self._answered and trusted:
            self._follower.confirm()

    def _watch(self) -> None:
        back_off = BackOff(longest_s=self._settings.longest_pause_s)
        while not self._ended.is_set():
            pause_s = self._settings.watch_every_s
            try:
                self.pull()
                back_off.succeeded()
            except EverlearnClientError as error:
                logger.info("no new version: %s", error)
                pause_s = max(pause_s, back_off.failed(at_least_s=_asked_s(error)))
            except OSError as error:
                logger.warning("no new version: the disk says %s", error)
            self._ended.wait(pause_s)

    def _send(self) -> None:
        back_off = BackOff(longest_s=self._settings.longest_pause_s)
        while not self._ended.is_set():
            with self._spool.arrived:
                self._spool.arrived.wait_for(lambda: self._ended.is_set() or self._spool.pending > 0)
            if self._ended.wait(self._settings.send_after_s):
                return
            pause_s = 0.0
            try:
                done = self.flush()
                back_off.succeeded()
                if done.stopped == "allowance":
                    pause_s = min(60.0, max(1.0, self._allowance.wait_s(done.next_bytes)))
            except EverlearnClientError as error:
                logger.info("%d records wait: %s", self._spool.pending, error)
                pause_s = back_off.failed(at_least_s=_asked_s(error))
            except OSError as error:
                logger.warning("nothing is sent: the disk says %s", error)
                pause_s = 60.0
            self._ended.wait(pause_s)


def _formed(sample: npt.NDArray[Any] | str) -> tuple[npt.NDArray[Any], SampleInput]:
    """What it is compared by, and how it is kept."""
    if isinstance(sample, str):
        return unlike_others(sample), Texts([sample])
    array = np.asarray(sample)
    return array, array[None] if array.dtype == np.uint8 else Tensors(array[None].astype(np.float32))


def _asked_s(error: EverlearnClientError) -> float:
    return (error.retry_after_s or 0.0) if isinstance(error, Overloaded) else 0.0
