"""Clients of the daemon's Unix socket: asyncio and blocking. Each is imported when it is asked for, so that a
command does not wait for the one it does not use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_ASYNC = ("AsyncClient", "GenerateStream", "StateStream")
_BLOCKING = ("Client", "GenerateIterator", "StateIterator")
_MODULES = dict.fromkeys(_ASYNC, "semipd.client.aio") | dict.fromkeys(_BLOCKING, "semipd.client.blocking")
_MODULES["GenerateItem"] = "semipd.wire.client_protocol"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, "semipd.wire.client_results")), name)
