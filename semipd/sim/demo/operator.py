"""The demo's operator: validated and answered by what validates and answers a daemon's."""

import json
from typing import Any, TypeVar

from pydantic import BaseModel

from semipd.core.request import CancelResult
from semipd.core.state.partition import ChangeAnswer, PartitionDocument, SloAnswer
from semipd.core.state.requests import RequestRow
from semipd.daemon.operators import partition
from semipd.daemon.operators.actions import OperatorAction, parsed_body
from semipd.daemon.operators.partition import PartitionOverride, SloUpdate
from semipd.daemon.servers.socket_bodies import CancelRequest, RequestsRequest
from semipd.sim.demo.world import D, DemoWorld, over_the_wire
from semipd.wire.client_protocol import given

ACTOR = "you (demo)"

B = TypeVar("B", bound=BaseModel)


class DemoOperator:
    """The methods of semipd.client.AsyncClient for operators. What they change has its effect at once."""

    def __init__(self, world: DemoWorld) -> None:
        self._world = world
        self._state = world.state

    async def partition(self) -> PartitionDocument:
        return over_the_wire(await partition.partition(self._state))

    async def set_partition(self, **fields: Any) -> ChangeAnswer:
        body = _read(PartitionOverride, fields)
        return self._done(await partition.override(self._state, body, ACTOR))

    async def clear_partition(self, **fields: Any) -> ChangeAnswer:
        body = _read(OperatorAction, fields)
        return self._done(await partition.clear_override(self._state, body, ACTOR))

    async def slo(self) -> SloAnswer:
        return over_the_wire(await partition.slo(self._state))

    async def set_slo(self, **fields: Any) -> SloAnswer:
        return self._done(await partition.update_slo(self._state, _read(SloUpdate, fields), ACTOR))

    async def requests(self, **fields: Any) -> list[RequestRow]:
        history = self._state.history
        asked = _read(RequestsRequest, _frame("requests", fields))
        if asked.request_id is None:
            return history.all_to_wire(history.records(asked.state, asked.limit))
        return [history.to_wire(record, timeline=True) for record in history.named(asked.request_id)]

    async def cancel_request(self, request_id: str) -> CancelResult:
        asked = _read(CancelRequest, _frame("cancel", {"request_id": request_id}))
        result = self._state.cancel_named(asked.request_id or "")
        self._world.settle()
        return result

    def _done(self, answer: D) -> D:
        self._world.settle()
        return over_the_wire(answer)


def _read(schema: type[B], fields: dict[str, Any]) -> B:
    """Raises SemipdError, as the daemon refuses a request."""
    return parsed_body(schema, json.dumps(fields).encode())


def _frame(op: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {"op": op, "id": 1, **given(fields)}
