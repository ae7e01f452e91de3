"""Clients of the daemon's Unix socket: asyncio and blocking."""

from semipd.client.aio import AsyncClient, GenerateStream, StateStream
from semipd.client.blocking import Client, GenerateIterator, StateIterator

__all__ = ["AsyncClient", "Client", "GenerateIterator", "GenerateStream", "StateIterator", "StateStream"]
