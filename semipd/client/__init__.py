"""Clients of the daemon's Unix socket: asyncio and blocking. Each is imported when it is asked for, so that a
command does not wait for the one it does not use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semipd.client.aio import AsyncClient, GenerateStream, LoadStream, StateStream
    from semipd.client.blocking import Client, GenerateIterator, LoadIterator, StateIterator
    from semipd.wire.client_protocol import GenerateItem
    from semipd.wire.client_results import Greeting, Logprobs, Model, Tokens
    from semipd.wire.load_frame import LoadFrame

__all__ = [
    "AsyncClient",
    "Client",
    "GenerateItem",
    "GenerateIterator",
    "GenerateStream",
    "Greeting",
    "LoadFrame",
    "LoadIterator",
    "LoadStream",
    "Logprobs",
    "Model",
    "StateIterator",
    "StateStream",
    "Tokens",
]

_ASYNC = ("AsyncClient", "GenerateStream", "LoadStream", "StateStream")
_BLOCKING = ("Client", "GenerateIterator", "LoadIterator", "StateIterator")
_MODULES = dict.fromkeys(_ASYNC, "semipd.client.aio") | dict.fromkeys(_BLOCKING, "semipd.client.blocking")
_MODULES["GenerateItem"] = "semipd.wire.client_protocol"
_MODULES["LoadFrame"] = "semipd.wire.load_frame"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, "semipd.wire.client_results")), name)
