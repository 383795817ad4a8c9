"""everlearn.v1.AdminService, on a Unix socket in the data folder: who may open the folder may ask."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

import grpc

from everlearn.errors import UnavailableError
from everlearn_protos.v1 import admin_pb2
from everlearn_server.rpc import wire
from everlearn_server.rpc.messages import rotation_message
from everlearn_server.store.backup import Work, back_up
from everlearn_server.store.manifest import Manifest
from everlearn_server.store.store import Store

SOCKET: Final = "admin.sock"
_TELL_EVERY_S: Final = 0.2


class AdminService:
    """Translates; `store.backup` does the work."""

    NAME = "everlearn.v1.AdminService"

    def __init__(self, store: Store) -> None:
        self._store = store
        self._running: dict[asyncio.Task[Manifest], Work] = {}

    def handler(self) -> grpc.GenericRpcHandler:
        """To register with the server."""
        p = admin_pb2
        return wire.service(
            self.NAME,
            {
                "Backup": wire.server_stream(p.BackupRequest, self.backup),
                "RotateSigningKey": wire.unary(p.RotateSigningKeyRequest, self.rotate_signing_key),
            },
        )

    async def backup(
        self, request: admin_pb2.BackupRequest, _: wire.Context
    ) -> AsyncGenerator[admin_pb2.BackupResponse, None]:
        """Now and then how far it is, at last what it holds."""
        work = Work()
        running = asyncio.create_task(back_up(self._store, Path(request.to), work), name="backup")
        self._running[running] = work
        running.add_done_callback(self._running.pop)
        try:
            while not (await asyncio.wait([running], timeout=_TELL_EVERY_S))[0]:
                yield _progress(work)
            yield _summary(running.result())
        finally:
            work.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def rotate_signing_key(
        self, _: admin_pb2.RotateSigningKeyRequest, __: wire.Context
    ) -> admin_pb2.RotateSigningKeyResponse:
        """The rotation that was made."""
        try:
            made = await asyncio.to_thread(self._store.keys.rotate)
        except OSError as error:
            raise UnavailableError(f"the signing key was not exchanged: {error.strerror}") from error
        return admin_pb2.RotateSigningKeyResponse(rotation=rotation_message(made))

    async def close(self) -> None:
        """Ends what runs: it reads from a store that is to be closed."""
        for work in self._running.values():
            work.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


class AdminSocket:
    """Where the service is reached: `admin.sock` in the data folder. Paths through /proc, because a socket's own may
    have 107 bytes, and a data folder's may be longer."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError where there is no such folder."""
        self._folder = folder
        self._descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    @property
    def address(self) -> str:
        """For gRPC, in this process only."""
        return f"unix:/proc/self/fd/{self._descriptor}/{SOCKET}"

    def bind(self, server: grpc.aio.Server) -> None:
        """Listens, for this user alone. A socket that a crash left is replaced. Raises RuntimeError, OSError."""
        (self._folder / SOCKET).unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            server.add_insecure_port(self.address)
        finally:
            os.umask(before)

    def close(self) -> None:
        """Lets go of the folder."""
        os.close(self._descriptor)


def _progress(work: Work) -> admin_pb2.BackupResponse:
    return admin_pb2.BackupResponse(stage=work.stage, bytes_done=work.bytes_done, bytes_total=work.bytes_total)


def _summary(manifest: Manifest) -> admin_pb2.BackupResponse:
    return admin_pb2.BackupResponse(
        stage="done",
        size_bytes=manifest.size,
        files=len(manifest.files),
        samples={name: told["samples"] for name, told in manifest.models.items()},
    )
