"""everlearn-server that seals no latents: the control of the tests that they are sealed."""

from __future__ import annotations

from everlearn_server import cli
from everlearn_server.engine import live_model


async def nobody(*_: object) -> None:
    """In the place of `sealer_of`."""


if __name__ == "__main__":
    live_model.sealer_of = nobody  # type: ignore[assignment]  # the point of this file
    cli.main()
