"""Clients of the daemon's Unix socket: asyncio and blocking."""

from semipd.client.aio import AsyncClient, GenerateStream, StateStream
from semipd.client.blocking import Client, GenerateIterator, StateIterator
from semipd.wire.client_protocol import GenerateItem
from semipd.wire.client_results import Greeting, Logprobs, Model, Tokens

__all__ = [
    "AsyncClient",
    "Client",
    "GenerateItem",
    "GenerateIterator",
    "GenerateStream",
    "Greeting",
    "Logprobs",
    "Model",
    "StateIterator",
    "StateStream",
    "Tokens",
]
