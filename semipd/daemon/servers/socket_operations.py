"""The operations of the Unix socket: one table of their fields, who may ask, and how they are answered."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from semipd.core.errors import SemipdError
from semipd.daemon.openai.models import model_card
from semipd.daemon.openai.tokenize import detokenized, tokenized
from semipd.daemon.operators import partition
from semipd.daemon.operators.drain import DrainRequest, ShutdownRequest
from semipd.daemon.operators.partition import PartitionClear, PartitionSet, SloSet
from semipd.daemon.requests.schema import SocketRequest
from semipd.daemon.servers.load_subscription import LoadSubscription
from semipd.daemon.servers.socket_bodies import (
    CancelRequest,
    GenerateRequest,
    RequestsRequest,
    SocketDetokenize,
    SocketTokenize,
    SubscribeRequest,
    UnsubscribeRequest,
)
from semipd.daemon.servers.socket_generate import generate
from semipd.daemon.servers.socket_session import Session
from semipd.daemon.servers.subscription import StateSubscription, Subscription

Answer = dict[str, object] | None
"""Without the request's id; None: all has been said."""


@dataclass(frozen=True, slots=True)
class Operation:
    """`handler(session, request, arrival_ns)` raises SemipdError. `for_guests`: members of socket.group may
    ask, too, about requests of their own.
    `asks_engine`: few at a time, see MAX_ASKED."""

    name: str
    body: type[SocketRequest]
    handler: Callable[[Session, Any, int], Awaitable[Answer]]
    for_guests: bool = False
    asks_engine: bool = False

    async def answer(self, session: Session, request: SocketRequest, arrival_ns: int) -> Answer:
        """Raises SemipdError."""
        if not self.asks_engine:
            return await self.handler(session, request, arrival_ns)
        async with session.asking:
            return await self.handler(session, request, arrival_ns)


async def _generate(session: Session, request: GenerateRequest, arrival_ns: int) -> Answer:
    await generate(session, request, arrival_ns)
    return None


async def _cancel(session: Session, request: CancelRequest, _arrival_ns: int) -> Answer:
    """{cancelled}; by public id also {result}, as DELETE /v1/requests/{id} says it."""
    if request.target is not None and request.request_id is not None:
        raise SemipdError("invalid_value", "Send either target or request_id.", param="target")
    if request.request_id is not None:
        result = session.services.cancel_named(request.request_id, session.caller)
        return {"cancelled": result == "cancelled", "result": result}
    if request.target is None:
        raise SemipdError("missing_field", "Send target or request_id.", param="target")
    choices = session.generations.get(request.target)
    if choices is not None:
        choices.cancel()
    return {"cancelled": choices is not None}


async def _tokenize(session: Session, request: SocketTokenize, _arrival_ns: int) -> Answer:
    request.check()
    session.take_token()
    return {**await tokenized(session.services.generation, request)}


async def _detokenize(session: Session, request: SocketDetokenize, _arrival_ns: int) -> Answer:
    session.take_token()
    return {**await detokenized(session.services.generation, request.tokens)}


async def _models(session: Session, _request: SocketRequest, _arrival_ns: int) -> Answer:
    return {"models": [model_card(session.services)]}


async def _status(session: Session, _request: SocketRequest, _arrival_ns: int) -> Answer:
    return {"status": await session.services.status()}


async def _requests(session: Session, request: RequestsRequest, _arrival_ns: int) -> Answer:
    history, caller = session.services.history, session.caller
    if request.request_id is not None:
        named = history.named(request.request_id, caller)
        return {"requests": [history.to_wire(record, timeline=True) for record in named]}
    async with session.listing:
        records = history.records(request.state, request.limit, caller)
        parts = await session.services.listings.written(records, history.all_to_wire)
        await session.stream.say({"id": request.id, "requests": [shown for part in parts for shown in part]})
    return None


async def _subscribe(session: Session, request: SubscribeRequest, _arrival_ns: int) -> Answer:
    await _run(session, request, StateSubscription(session.services, request, session.stream))
    return None


async def _record(session: Session, request: SocketRequest, _arrival_ns: int) -> Answer:
    actor = session.peer_name
    await _run(session, request, LoadSubscription(session.services, request.id, session.stream, actor))
    return None


async def _run(session: Session, request: SocketRequest, subscription: Subscription) -> None:
    session.subscriptions[request.id] = subscription
    try:
        await subscription.run()
    finally:
        del session.subscriptions[request.id]


async def _unsubscribe(session: Session, request: UnsubscribeRequest, _arrival_ns: int) -> Answer:
    subscription = session.subscriptions.get(request.target)
    if subscription is not None:
        subscription.end("unsubscribed")
    return {"unsubscribed": subscription is not None}


async def _drain(session: Session, request: DrainRequest, _arrival_ns: int) -> Answer:
    drain, actor = session.services.drain, request.actor or session.peer_name
    if request.cancel:
        drain.cancel(actor, request.reason)
    else:
        drain.begin(actor, request.reason, request.limit_s)
    return {"drain": drain.to_wire()}


async def _shutdown(session: Session, request: ShutdownRequest, _arrival_ns: int) -> Answer:
    drain = session.services.drain
    drain.begin(request.actor or session.peer_name, request.reason, request.limit_s, stops=True)
    return {"shutting_down": True, "drain": drain.to_wire()}


async def _get_partition(session: Session, _request: SocketRequest, _arrival_ns: int) -> Answer:
    return {"partition": await partition.partition(session.services)}


async def _set_partition(session: Session, request: PartitionSet, _arrival_ns: int) -> Answer:
    return {"partition": await partition.override(session.services, request, session.peer_name)}


async def _clear_partition(session: Session, request: PartitionClear, _arrival_ns: int) -> Answer:
    return {"partition": await partition.clear_override(session.services, request, session.peer_name)}


async def _get_slo(session: Session, _request: SocketRequest, _arrival_ns: int) -> Answer:
    return {"slo": await partition.slo(session.services)}


async def _set_slo(session: Session, request: SloSet, _arrival_ns: int) -> Answer:
    return {"slo": await partition.update_slo(session.services, request, session.peer_name)}


TABLE = {
    operation.name: operation
    for operation in (
        Operation("generate", GenerateRequest, _generate, for_guests=True),
        Operation("cancel", CancelRequest, _cancel, for_guests=True),
        Operation("tokenize", SocketTokenize, _tokenize, for_guests=True),
        Operation("detokenize", SocketDetokenize, _detokenize, for_guests=True),
        Operation("models", SocketRequest, _models, for_guests=True),
        Operation("status", SocketRequest, _status, asks_engine=True),
        Operation("requests", RequestsRequest, _requests, for_guests=True),
        Operation("subscribe", SubscribeRequest, _subscribe),
        Operation("record", SocketRequest, _record),
        Operation("unsubscribe", UnsubscribeRequest, _unsubscribe),
        Operation("drain", DrainRequest, _drain),
        Operation("shutdown", ShutdownRequest, _shutdown),
        Operation("partition.get", SocketRequest, _get_partition, asks_engine=True),
        Operation("partition.set", PartitionSet, _set_partition, asks_engine=True),
        Operation("partition.clear", PartitionClear, _clear_partition, asks_engine=True),
        Operation("slo.get", SocketRequest, _get_slo, asks_engine=True),
        Operation("slo.set", SloSet, _set_slo, asks_engine=True),
    )
}


def allowed(*, is_operator: bool) -> list[str]:
    """Names of what this caller may ask."""
    return [name for name, operation in TABLE.items() if is_operator or operation.for_guests]
