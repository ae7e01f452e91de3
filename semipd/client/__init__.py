"""Clients of the daemon's Unix socket: asyncio and blocking. Each is imported when it is asked for, so that a
command does not wait for the one it does not use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semipd.client.aio import AsyncClient, GenerateStream, StateStream
    from semipd.client.blocking import Client, GenerateIterator, StateIterator

__all__ = ["AsyncClient", "Client", "GenerateIterator", "GenerateStream", "StateIterator", "StateStream"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    is_async = name in ("AsyncClient", "GenerateStream", "StateStream")
    return getattr(import_module(f"{__name__}.{'aio' if is_async else 'blocking'}"), name)
