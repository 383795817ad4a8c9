"""A random key for each client of a model, itself sealed with the folder's keys: what seals its latents, or its sums.

Destroying a key's row makes unreadable all that was ever sealed with it; but a backup from before has the row as well,
until that backup is deleted.
"""

from __future__ import annotations

import secrets
from typing import Final

import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Connection, delete, insert, select

from everlearn.errors import DataLossError
from everlearn_server.store.database import Database
from everlearn_server.store.key_file import KEY_BYTES
from everlearn_server.store.keys import NONCE_BYTES, Keys
from everlearn_server.store.schema import client_key

_logger = structlog.get_logger(__name__)
PURPOSE: Final = "client_key"


class ClientKeys:
    """All models' clients' keys. Methods raise UnavailableError once the store has failed or is closed."""

    def __init__(self, database: Database, keys: Keys) -> None:
        self._database = database
        self._keys = keys

    async def sealer(self, model: str) -> ClientSealer:
        """Seals and opens for one model."""
        return ClientSealer(self, model, await self._database.read(_opened, self._keys, model))

    async def destroy(self, model: str, client: str) -> bool:
        """Whether there was one. What it sealed cannot be opened any more; a sealer that is in use goes on with what
        it knows until it is told (`ClientSealer.forget`)."""
        return await self._database.write(_destroy, model, client)

    def make(self, model: str, client: str) -> AESGCM:
        """A new key, durable when this returns; replaces one that does not open. Blocks; not on the event loop."""
        key = secrets.token_bytes(KEY_BYTES)
        sealed = self._keys.seal(key, purpose=PURPOSE, place=_place(model, client))
        self._database.call(self._put, model, client, sealed)
        return AESGCM(key)

    def _put(self, model: str, client: str, sealed: bytes) -> None:
        with self._database.transaction() as connection:
            _destroy(connection, model, client)
            connection.execute(insert(client_key).values(model=model, client=client, sealed_key=sealed))


class ClientSealer:
    """Implements `everlearn.memories.sealing.Sealer` (AES-256-GCM). A client that has no key gets one when something of
    it is sealed first."""

    def __init__(self, keys: ClientKeys | None, model: str, opened: dict[str, AESGCM]) -> None:
        """`keys`: makes those that are missing; None for one that only opens."""
        self._keys = keys
        self._model = model
        self._opened = opened
        self._forgotten: set[str] = set()

    def seal(self, client: str, plain: bytes) -> bytes | None:
        """See Sealer. Blocks where a key has to be made."""
        if client in self._forgotten:
            return None
        if client not in self._opened:
            assert self._keys is not None, "it only opens"
            self._opened[client] = self._keys.make(self._model, client)
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._opened[client].encrypt(nonce, plain, _place(self._model, client))

    def unseal(self, client: str, sealed: bytes) -> bytes | None:
        """See Sealer."""
        key = self._opened.get(client)
        if key is None:
            _logger.warning("what was sealed is gone with the key of its client", model=self._model, client=client)
            return None
        try:
            return key.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _place(self._model, client))
        except (InvalidTag, ValueError):
            raise DataLossError(
                f"what is kept of client {client!r} does not open: it was changed, or sealed elsewhere"
            ) from None

    def renew(self, client: str) -> None:
        """See Sealer."""
        self._opened.pop(client, None)

    def forget(self, client: str) -> None:
        """Its key was destroyed: nothing of it is sealed or opened any more, until the next start."""
        self._opened.pop(client, None)
        self._forgotten.add(client)


def opener(connection: Connection, keys: Keys, model: str) -> ClientSealer:
    """Opens what was sealed for a model, for who only reads."""
    return ClientSealer(None, model, _opened(connection, keys, model))


def _place(model: str, client: str) -> bytes:
    return f"{model}\0{client}".encode()


def _opened(connection: Connection, keys: Keys, model: str) -> dict[str, AESGCM]:
    opened: dict[str, AESGCM] = {}
    for row in connection.execute(
        select(client_key.c.client, client_key.c.sealed_key).where(client_key.c.model == model)
    ):
        try:
            place = _place(model, row.client)
            opened[row.client] = AESGCM(keys.unseal(row.sealed_key, purpose=PURPOSE, place=place))
        except DataLossError:  # of another folder's keys: what it sealed is lost, as if it had been destroyed
            _logger.error("the key of a client does not open", model=model, client=row.client)
    return opened


def _destroy(connection: Connection, model: str, client: str) -> bool:
    gone = delete(client_key).where(client_key.c.model == model, client_key.c.client == client)
    return connection.execute(gone).rowcount > 0
