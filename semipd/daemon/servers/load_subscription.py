"""A client that records the load: what came and how it ended, since the frame before."""

import asyncio
import logging
from typing import Any

from semipd.core.state.load import LoadFacts
from semipd.daemon.history.load import BLOCK_TOKENS, LoadRecording
from semipd.daemon.servers.frame_stream import FrameStream
from semipd.daemon.servers.subscription import Subscription
from semipd.daemon.state.services import Services
from semipd.daemon.web.status_codes import is_clients_fault
from semipd.wire.client_protocol import RequestId
from semipd.wire.load_frame import LoadFrame

log = logging.getLogger(__name__)

INTERVAL_S = 0.5


class LoadSubscription(Subscription):
    """The first frame has the facts. A reader that is slow loses requests, and is told how many."""

    def __init__(self, services: Services, request_id: RequestId, stream: FrameStream, actor: str) -> None:
        super().__init__(INTERVAL_S, stream)
        self._services = services
        self._request_id = request_id
        self._actor = actor
        self._facts: LoadFacts | None = load_facts(services)
        self._recording = LoadRecording(
            services.history, lambda code: not is_clients_fault(code), services.clock
        )

    async def run(self) -> None:
        log.info("%s begins to record the load", self._actor)
        try:
            with self._recording.observing():
                await super().run()
        finally:
            log.info("%s records the load no more", self._actor)

    async def _frame(self) -> dict[str, Any]:
        facts, self._facts = self._facts, None
        batch = await self._recording.batch()
        return LoadFrame(facts, *batch).to_wire(self._request_id)

    async def _say_the_rest(self) -> None:
        self._recording.end()
        while self._recording.has_more:
            await self._stream.say(await self._frame())
            await asyncio.sleep(0)
        await self._stream.say(LoadFrame(ended=self._why).to_wire(self._request_id))


def load_facts(services: Services) -> LoadFacts:
    ready, classes = services.supervisor.ready, services.classes
    return {
        "model": services.model_name,
        "device": None if ready is None else ready.info["name"],
        "block_tokens": BLOCK_TOKENS,
        "classes": {name: classes.targets(name).to_wire() for name in classes.names},
    }
