"""Client of the daemon's Unix socket."""

from semipd.client.aio import AsyncClient, GenerateStream

__all__ = ["AsyncClient", "GenerateStream"]
