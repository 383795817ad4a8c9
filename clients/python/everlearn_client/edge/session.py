"""One ONNX file of an export, ready to answer: it names its own input, labels and task, and is tried before it is used.

Axes: N samples, C classes, K outputs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from everlearn_client.edge.texts import TOKENIZER_FILE, TextTokens
from everlearn_client.edge.thumbnails import Resized
from everlearn_client.errors import DataLoss, FailedPrecondition, InvalidArgument
from everlearn_client.results import Predictions, ScoredLabel
from everlearn_client.samples import SampleInput, Tensors, Texts

# Before its first import: official builds from 1.31 on report to Microsoft unless they are told not to.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

PROBES_FILE: Final = "probes.npz"
_PREFIX: Final = "everlearn."
_NOVELTY: Final = "novelty"
"""Output of files that abstain; in the probes, what it must be."""
_FEATURES: Final = "features"
"""Name of what the trunk gives, in every file of everlearn, whatever lies between it and the answers."""
_TELL_FEATURES: Final = b"\x3a\x12\x62\x10\x0a\x08features\x12\x04\x0a\x02\x08\x01"
"""Behind the bytes of a ModelProto: its graph (field 7) has one output (12) more, `features` of type float32. protobuf
merges a message that comes twice, so no library for ONNX files is needed here."""


class EdgeSession:
    """A version that answers; immutable, so that it is exchanged by one assignment."""

    def __init__(self, path: Path, *, threads: int = 1, with_features: bool = False) -> None:
        """`with_features`: it can tell them, for which the file is in memory once more while it is read. Raises
        DataLoss where ONNX Runtime does not take the file, or it is no export of everlearn."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        try:
            model = path.read_bytes() + _TELL_FEATURES if with_features else str(path)
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no common base but this
            raise DataLoss(f"{path.name} cannot be run: {error}") from error
        told: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        try:
            self.model, self.version = told[f"{_PREFIX}model"], int(told[f"{_PREFIX}version"])
            self.task = told[f"{_PREFIX}task"]
            self.labels = tuple(json.loads(told[f"{_PREFIX}{'outputs' if self.task == 'regression' else 'labels'}"]))
            self.feature_digest = told[f"{_PREFIX}feature_digest"]
            self.precision = told.get(f"{_PREFIX}precision", "fp32")
            self._servers = told.get(f"{_PREFIX}server_precision", "fp32")
        except (KeyError, ValueError) as error:
            raise DataLoss(f"{path.name} is no export of everlearn: {error} is not in its metadata") from None
        self.resized = _resized(told)
        """What its front makes of an image before it crops; None of a model that takes none."""
        self._tokenizer = path.with_name(TOKENIZER_FILE), told
        self._with_features = with_features
        self.input_name = str(self._session.get_inputs()[0].name)
        self._output = "values" if self.task == "regression" else "scores"
        self.tells_novelty = any(output.name == _NOVELTY for output in self._session.get_outputs())
        """Whether it abstains from what is unlike all that was learned."""

    def scores(self, given: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """[N, C], or of a regression values [N, K]. Raises InvalidArgument for an array that the file does not take."""
        return self._run([self._output], given)[0]

    def answers(self, given: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], tuple[float, ...]]:
        """Scores as above, and each sample's novelty, where the file tells it. Raises InvalidArgument."""
        if not self.tells_novelty:
            return self.scores(given), ()
        scores_NC, novelty_N = self._run([self._output, _NOVELTY], given)
        return scores_NC, tuple(novelty_N.tolist())

    def check_features(self) -> None:
        """Raises FailedPrecondition where the features of this file are not the server's, or cannot be told."""
        if self.precision != self._servers:
            raise FailedPrecondition(
                f"version {self.version} computes in {self.precision} here: its features are not the server's",
                reason="NO_FEATURES",
            )
        if not self._with_features:
            raise FailedPrecondition(f"version {self.version} was opened without its features", reason="NO_FEATURES")

    def features(self, given: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """[N, d], as the server's own trunk would give them: what `Features` takes under `feature_digest`.

        Raises as `check_features`, InvalidArgument.
        """
        self.check_features()
        return self._run([_FEATURES], given)[0]

    def _run(self, outputs: list[str], given: npt.NDArray[Any]) -> list[npt.NDArray[np.float32]]:
        try:
            found = self._session.run(outputs, {self.input_name: given})
        except Exception as error:  # as above
            raise InvalidArgument(f"the model does not take {given.dtype} {list(given.shape)}: {error}") from error
        return [np.asarray(each, np.float32) for each in found]

    def predict(self, samples: SampleInput, *, top_k: int = 0, scores: bool = False) -> Predictions:
        """As Client.predict, answered here. Raises InvalidArgument."""
        scores_NC, novelty = self.answers(self.array_of(samples))
        name = f"models/{self.model}/versions/{self.version}"
        if self.task == "regression":
            return Predictions(name, (), self.labels, None, 0.0, 0.0, scores_NC)
        top = tuple(self._top(scores_C, top_k) for scores_C in scores_NC)
        return Predictions(name, top, self.labels, scores_NC if scores else None, 0.0, 0.0, novelty=novelty)

    def array_of(self, samples: SampleInput) -> npt.NDArray[Any]:
        """Samples as the file takes them. Raises InvalidArgument for what only the server can read."""
        if self.input_name == "image" and isinstance(samples, np.ndarray) and samples.dtype == np.uint8:
            return np.ascontiguousarray(samples[None] if samples.ndim == 3 else samples)
        if self.input_name == "tensor" and isinstance(samples, Tensors):
            return np.ascontiguousarray(samples.values_N, np.float32)
        if self.input_name == "input_ids" and isinstance(samples, Texts):
            return self._tokens.ids(samples.texts)
        if self.input_name == "input_ids" and isinstance(samples, np.ndarray) and samples.dtype == np.int64:
            return np.ascontiguousarray(samples)
        right = {"image": "uint8 [N, H, W, 3], decoded", "tensor": "Tensors(float32 [N, *shape])"}
        wanted = right.get(self.input_name, "Texts([...])")
        raise InvalidArgument(f"here the model takes {wanted}, not {type(samples).__name__}", field="samples")

    @cached_property
    def _tokens(self) -> TextTokens:
        path, told = self._tokenizer
        sha256, most = told[f"{_PREFIX}tokenizer_sha256"], int(told[f"{_PREFIX}max_tokens"])
        return TextTokens(path, sha256=sha256, max_tokens=most)

    def self_test(self, path: Path) -> float:
        """Runs the stored probes; returns the largest difference of a score, relative to max(1, the largest score), or
        of the novelty, relative to max(1, novelty).

        Raises DataLoss where it is above what the file allows, or the file is none.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            expected_BC, tolerance = arrays["expected"], float(arrays["tolerance"])
            samples = [arrays[f"sample_{row}"] for row in range(len(expected_BC))]
            novelty_B = arrays[_NOVELTY].tolist() if self.tells_novelty else [None] * len(samples)
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise DataLoss(f"{path.name} cannot be read: {error}") from error
        worst = 0.0
        for sample, expected_C, novelty in zip(samples, expected_BC, novelty_B, strict=True):
            (scores_C,), told = self.answers(sample)
            if scores_C.shape != expected_C.shape:
                raise DataLoss(f"the model gives {len(scores_C)} scores where {len(expected_C)} were expected")
            apart = float((np.abs(scores_C - expected_C) / np.maximum(1.0, np.abs(expected_C).max())).max())
            if novelty is not None:  # a squared length: twice as far off as what it is of
                apart = float(np.maximum(apart, abs(told[0] - novelty) / (2 * max(1.0, novelty))))
            # Not `>`: a score that is not a number differs from everything.
            if not apart <= tolerance:
                raise DataLoss(f"scores of a probe differ by {apart:.3g} of their size; {tolerance:g} is allowed")
            worst = max(worst, apart)
        return worst

    def _top(self, scores_C: npt.NDArray[np.float32], top_k: int) -> tuple[ScoredLabel, ...]:
        if self.task == "multilabel" and top_k == 0:
            chosen = [int(index) for index in np.flatnonzero(scores_C >= 0.5)]
            chosen.sort(key=lambda index: -scores_C[index])
        else:
            chosen = [int(index) for index in np.argsort(-scores_C, kind="stable")[: max(1, top_k)]]
        return tuple(ScoredLabel(self.labels[index], index, float(scores_C[index])) for index in chosen)


def _resized(told: Mapping[str, str]) -> Resized | None:
    """Files of earlier releases name the size after the crop alone: then it is taken to keep 7/8, as most do."""
    size = told.get(f"{_PREFIX}front_size")
    if size is None:
        return None
    height, width = map(int, told.get(f"{_PREFIX}front_resized", size).split("x"))
    if f"{_PREFIX}front_resized" not in told:
        return Resized(height=-(-height * 8 // 7), width=-(-width * 8 // 7), squash=False)
    return Resized(height=height, width=width, squash=told[f"{_PREFIX}front_resize"] == "squash")
