"""Client of an everlearn server: grpcio, numpy and protobuf, never torch.

>>> from everlearn_client import Client
>>> with Client("127.0.0.1:8470") as client:  # doctest: +SKIP
...     report = client.learn("digits", [(images_uint8, labels)])
...     client.predict("digits", images_uint8).top[0][0].label
"""

from everlearn_client._channel import Tls
from everlearn_client._download import DownloadProgress
from everlearn_client._late import LabelReport, LateRefusal
from everlearn_client.aio import AsyncClient
from everlearn_client.client import Client
from everlearn_client.errors import (
    AccessDenied,
    Conflict,
    DataLoss,
    DeadlineExceeded,
    EverlearnClientError,
    FailedPrecondition,
    Fenced,
    Held,
    InvalidArgument,
    NotFound,
    Overloaded,
    SequenceGap,
    ServerBug,
    TimelineChanged,
    Unavailable,
)
from everlearn_client.events import (
    Durable,
    LearnEvent,
    LearnReport,
    Opened,
    Prequential,
    Received,
    Reconnecting,
    Rejected,
    StageTimes,
)
from everlearn_client.results import Applied, ExportFile, ExportInfo, Predictions, ScoredLabel
from everlearn_client.samples import Batch, Features, Pixels, Predicted, SampleInput, Tensors, Texts, split_batch

__all__ = [
    "AccessDenied",
    "Applied",
    "AsyncClient",
    "Batch",
    "Client",
    "Conflict",
    "DataLoss",
    "DeadlineExceeded",
    "DownloadProgress",
    "Durable",
    "EverlearnClientError",
    "ExportFile",
    "ExportInfo",
    "FailedPrecondition",
    "Features",
    "Fenced",
    "Held",
    "InvalidArgument",
    "LabelReport",
    "LateRefusal",
    "LearnEvent",
    "LearnReport",
    "NotFound",
    "Opened",
    "Overloaded",
    "Pixels",
    "Predicted",
    "Predictions",
    "Prequential",
    "Received",
    "Reconnecting",
    "Rejected",
    "SampleInput",
    "ScoredLabel",
    "SequenceGap",
    "ServerBug",
    "StageTimes",
    "Tensors",
    "Texts",
    "TimelineChanged",
    "Tls",
    "Unavailable",
    "split_batch",
]
