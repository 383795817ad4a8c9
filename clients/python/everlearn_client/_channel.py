"""How the client's channels are set up, and why: gRPC's defaults suit a data centre, not a flaky edge link."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass

import grpc

from everlearn_client.errors import InvalidArgument
from everlearn_client.resource_names import learner_name

MAX_MESSAGE_BYTES = 4 * 2**20


@functools.cache
def keep_grpc_aio() -> None:
    """To be called before the first grpc.aio channel of a process.

    grpc.aio ends its polling thread with its last object and waits for it; where that object is freed by the garbage
    collector, it can wait for ever (seen with grpcio 1.85.1). Counted once more, the thread ends with the process.
    """
    grpc.aio.init_grpc_aio()


_SAFE_TO_REPEAT = {
    # Not DeleteModel (the second answer would be NOT_FOUND) nor RollbackModel (it would step back twice).
    "everlearn.v1.ModelService": (
        "PlanModel",
        "ApplyModel",
        "LockModel",
        "GetModel",
        "ListModels",
        "GetVersion",
        "ListVersions",
        "PromoteVersion",
    ),
    "everlearn.v1.PredictService": ("Predict",),
    "everlearn.v1.ExportService": ("CreateExport", "GetExport", "ListExports"),
    "everlearn.v1.ClientService": ("ListClients", "QuarantineClient", "ReleaseClient"),
    "everlearn.v1.ServerInfoService": ("GetServerInfo",),
    "google.longrunning.Operations": ("GetOperation",),
}
"""Streams are left out: Learn and DownloadExport go on from where they were, by themselves."""

_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": s, "method": m} for s, methods in _SAFE_TO_REPEAT.items() for m in methods],
            # Only UNAVAILABLE (AIP-194).
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}

OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # Without it, calls above about 256 KB are never retried.
    ("grpc.per_rpc_retry_buffer_size", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A half-open connection (a NAT that has forgotten, a cable) is closed within 30 s; the server allows this often.
    ("grpc.keepalive_time_ms", 12_000),
    ("grpc.keepalive_timeout_ms", 8_000),
    # Of gRPC's other pings, behind which its keepalive's would wait: a minute by default.
    ("grpc.http2.ping_timeout_ms", 8_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A restarted server is found again at once; gRPC's default waits up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_500),
)


@dataclass(frozen=True)
class Tls:
    """Encrypted connection. None = the system's roots; with key and certificate the client proves itself as well."""

    root_certificates: bytes | None = None
    """PEM."""
    private_key: bytes | None = None
    """PEM."""
    certificate_chain: bytes | None = None
    """PEM."""

    def credentials(self) -> grpc.ChannelCredentials:
        """As gRPC wants them."""
        return grpc.ssl_channel_credentials(self.root_certificates, self.private_key, self.certificate_chain)


CLIENT_HEADER = "everlearn-client"
"""Who calls: so that an erasure's receipt can name who has a copy of what contained the erased."""


def call_metadata(
    target: str, *, tls: Tls | None, token: str | None, client_id: str | None = None
) -> tuple[tuple[str, str], ...]:
    """Headers of every call. `client_id`: a name that lasts, or none. Raises InvalidArgument where a token would cross
    a network in clear text, and for a `client_id` that is no name."""
    named = ((CLIENT_HEADER, learner_name(client_id)),) if client_id is not None else ()
    if token is None:
        return named
    if tls is None and not target.startswith(("127.0.0.1:", "localhost:", "[::1]:", "unix:")):
        raise InvalidArgument(f"a token for {target} would travel in clear text; give tls=Tls(...)", field="token")
    return (("authorization", f"Bearer {token}"), *named)
